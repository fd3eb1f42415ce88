"""Keeps the keys and certificates of all services where nginx looks, as their files have them.

A file that turns bad changes nothing: what was good stays in force, and the log, the status and a metric say so. nginx
is not told of any of it, and goes on with what is there while no daemon runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncinotify import Inotify, Mask

from gateway_sidecar.bridges.front_door import DoorPlaces
from gateway_sidecar.config import FrontendSettings, TlsSettings
from gateway_sidecar.doors.certificate import read_certificate, today
from gateway_sidecar.doors.keys import Keys, read_keys
from gateway_sidecar.doors.publish import publish_keys, publish_pem, withdraw_keys
from gateway_sidecar.errors import FrontDoorError
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

CERTIFICATE, EXPIRY, KEYS = "certificate", "expiry", "keys"
_CHANGES = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CREATE | Mask.DELETE | Mask.ATTRIB | Mask.ONLYDIR
_DAY_S = 86400.0
_AGAIN_S = 60.0

Signature = tuple[tuple[int, ...] | None, ...]


@dataclass(slots=True)
class _Seen:
    """What was last made of one service's files."""

    keys: Signature = ()
    keys_file: Path | None = None
    links: Keys | None = None
    links_at: int | None = None
    pair: Signature = ()
    tls: TlsSettings | None = None
    expires_at: float | None = None
    looked_at: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)


class FrontDoors:
    """Keys and certificates of all services.

    `wanted` says what each service's front door is to be, `served` what nginx has been told: what it may still look for
    is not taken away.
    """

    def __init__(
        self,
        places: DoorPlaces,
        wanted: Callable[[], Mapping[str, FrontendSettings]],
        served: Callable[[], Mapping[str, FrontendSettings]],
        metrics: Metrics,
        *,
        rescan_interval_s: float,
        now: Callable[[], float] = today,
    ) -> None:
        self._places = places
        self._wanted = wanted
        self._served = served
        self._metrics = metrics
        self._rescan_interval_s = rescan_interval_s
        self._now = now
        self._logger = get_logger()
        self._seen: dict[str, _Seen] = {}
        self._has_looked = False
        self._look_now = asyncio.Event()
        self._looking = asyncio.Lock()

    @property
    def problems(self) -> Mapping[str, str]:
        """What cannot be used, and so stays as it was: `SERVICE: frontend PART` -> why."""
        return {
            f"{service}: frontend {part}": reason
            for service, seen in sorted(self._seen.items())
            for part, reason in sorted(seen.problems.items())
        }

    async def look(self, *, withdraw: bool = True) -> None:
        """Takes in every file that changed. Never raises for what a file holds.

        `withdraw`: what no front door needs any more is taken away; not before nginx has been told of it.
        """
        async with self._looking:
            self._look_now.clear()
            wanted = dict(self._wanted())
            served = self._served()
            if not self._has_looked:
                # What an earlier daemon left for a service that is no more.
                self._has_looked = True
                self._seen = {service: _Seen() for service in await asyncio.to_thread(self._places.services)}
            if withdraw:
                for service in self._seen.keys() - wanted.keys() - served.keys():
                    await asyncio.to_thread(self._withdraw, service)
                    del self._seen[service]
            for service, settings in wanted.items():
                seen = self._seen.setdefault(service, _Seen())
                told = served.get(service, settings)
                await self._look_at_keys(service, settings, seen, withdraw=withdraw and told.auth == settings.auth)
                await self._look_at_certificate(service, settings, seen, withdraw=withdraw and told.tls == settings.tls)

    async def run(self) -> None:
        """Runs until cancelled: looks when inotify hints, and every few seconds whatever it says."""
        while True:
            directories = {path.parent for path in _files(self._wanted().values())}
            hints = asyncio.create_task(self._take_hints(directories))
            try:
                while directories == {path.parent for path in _files(self._wanted().values())}:
                    await self.look()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._rescan_interval_s):
                            await self._look_now.wait()
            finally:
                hints.cancel()
                await asyncio.gather(hints, return_exceptions=True)

    def withdraw(self) -> None:
        """Takes every key and certificate away: nginx has ended. Blocks."""
        for service in self._seen:
            with suppress(OSError):
                self._withdraw(service)

    async def _take_hints(self, directories: Iterable[Path]) -> None:
        try:
            with Inotify() as inotify:
                for directory in directories:
                    with suppress(OSError):  # Not there: the rescan says so.
                        inotify.add_watch(directory, _CHANGES)
                while True:
                    await inotify.get()
                    self._look_now.set()
        except OSError as error:
            self._logger.warning("source.hints_failed", reason=str(error))

    async def _look_at_keys(self, service: str, settings: FrontendSettings, seen: _Seen, *, withdraw: bool) -> None:
        file = settings.auth.keys_file if settings.auth else None
        directory = self._places.keys(service)
        if file is None:
            if not withdraw:
                return
            if seen.keys_file is not None or directory.exists():
                await asyncio.to_thread(withdraw_keys, directory)
                self._settle(service, seen, KEYS)
                self._metrics.frontend_keys.remove_by_labels({"service": service})
            seen.keys_file, seen.keys, seen.links = None, (), None
            return
        signature = await asyncio.to_thread(_signature, file)
        is_ours = seen.links is not None and seen.links_at == await asyncio.to_thread(_changed_at, directory)
        if seen.keys_file == file and seen.keys == signature and is_ours and not self._is_due(seen, KEYS):
            return
        seen.keys_file, seen.keys, seen.looked_at = file, signature, time.monotonic()
        try:
            keys = await asyncio.to_thread(read_keys, file)
            added, removed = await asyncio.to_thread(publish_keys, directory, keys, seen.links if is_ours else None)
            seen.links, seen.links_at = keys, await asyncio.to_thread(_changed_at, directory)
        except (FrontDoorError, OSError) as error:
            self._refuse(service, seen, KEYS, error)
            return
        self._settle(service, seen, KEYS)
        self._metrics.frontend_keys.labels(service).set(len(keys))
        if added or removed:
            self._logger.info("frontend.keys_taken_in", service=service, keys=len(keys), added=added, removed=removed)

    async def _look_at_certificate(
        self, service: str, settings: FrontendSettings, seen: _Seen, *, withdraw: bool
    ) -> None:
        tls, place = settings.tls, self._places.pem(service)
        if tls is None:
            if not withdraw:
                return
            if seen.tls is not None or place.exists():
                place.unlink(missing_ok=True)
                self._settle(service, seen, CERTIFICATE)
                self._settle(service, seen, EXPIRY)
                self._metrics.frontend_expiry.remove_by_labels({"service": service})
            seen.tls, seen.pair, seen.expires_at = None, (), None
            return
        signature = await asyncio.to_thread(_signature, tls.certificate, tls.key)
        is_there = await asyncio.to_thread(place.exists)
        if seen.tls != tls or seen.pair != signature or not is_there or self._is_due(seen, CERTIFICATE):
            seen.tls, seen.pair, seen.looked_at = tls, signature, time.monotonic()
            try:
                pair = await asyncio.to_thread(read_certificate, tls.certificate, tls.key, self._now())
                is_new = await asyncio.to_thread(publish_pem, place, pair.pem)
            except (FrontDoorError, OSError) as error:
                self._refuse(service, seen, CERTIFICATE, error)
            else:
                self._settle(service, seen, CERTIFICATE)
                seen.expires_at = pair.expires_at
                self._metrics.frontend_expiry.labels(service).set(pair.expires_at)
                if is_new:
                    days = round((pair.expires_at - self._now()) / _DAY_S, 1)
                    self._logger.info("frontend.certificate_taken_in", service=service, expires_in_days=days)
        self._look_at_expiry(service, tls, seen)

    def _look_at_expiry(self, service: str, tls: TlsSettings, seen: _Seen) -> None:
        if seen.expires_at is None:
            return
        left_s = seen.expires_at - self._now()
        if left_s > tls.warn_days * _DAY_S:
            self._settle(service, seen, EXPIRY)
            return
        days = left_s / _DAY_S
        text = f"{tls.certificate} expires in {days:.0f} days" if left_s > 0 else f"{tls.certificate} has expired"
        if seen.problems.get(EXPIRY) != f"{text}; renew it":
            self._logger.warning("frontend.certificate_expires", service=service, reason=text)
        self._problem(service, seen, EXPIRY, f"{text}; renew it")

    def _is_due(self, seen: _Seen, part: str) -> bool:
        """What failed may succeed without a change of its file: a disk that was full, a clock that was wrong."""
        return part in seen.problems and time.monotonic() - seen.looked_at > _AGAIN_S

    def _refuse(self, service: str, seen: _Seen, part: str, error: FrontDoorError | OSError) -> None:
        text = f"{error}; what was there before stays in force"
        if seen.problems.get(part) != text:
            self._logger.error("frontend.refused", service=service, part=part, reason=str(error))
        self._problem(service, seen, part, text)

    def _problem(self, service: str, seen: _Seen, part: str, text: str) -> None:
        seen.problems[part] = text
        self._metrics.frontend_problem.labels(service, part).set(1)

    def _settle(self, service: str, seen: _Seen, part: str) -> None:
        if seen.problems.pop(part, None) is not None:
            self._logger.info("frontend.mended", service=service, part=part)
        self._metrics.frontend_problem.labels(service, part).set(0)

    def _withdraw(self, service: str) -> None:
        withdraw_keys(self._places.keys(service))
        self._places.pem(service).unlink(missing_ok=True)


def _files(frontends: Iterable[FrontendSettings]) -> Iterable[Path]:
    for settings in frontends:
        if settings.auth is not None and settings.auth.keys_file is not None:
            yield settings.auth.keys_file
        if settings.tls is not None:
            yield settings.tls.certificate
            yield settings.tls.key


def _signature(*paths: Path) -> Signature:
    """What a file's change changes; None for one that cannot be looked at."""
    return tuple(_stat(path) for path in paths)


def _changed_at(directory: Path) -> int | None:
    """When a name in it was last added or removed; None if it is not there."""
    found = _stat(directory)
    return None if found is None else found[3]


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        it = os.stat(path)  # noqa: PTH116 - every two seconds, for ever
    except OSError:
        return None
    return it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns
