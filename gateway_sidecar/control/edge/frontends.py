"""Copies the keys and certificates of all services to where nginx looks for them. A file that turns bad changes
nothing: what was good stays in force, and the log, `status` and a metric say so. nginx needs no reload for it, and goes
on with what is there while no daemon runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asyncinotify import Inotify, Mask

from gateway_sidecar.config import FrontendSettings, TlsSettings
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.domain.renewal import DAY_S, Validity
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.files.replace import is_unfinished
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.frontend.files import (
    CERTIFICATE,
    CLIENT_CA,
    KEYS,
    CertificateTaken,
    ClientCaTaken,
    FrontendFiles,
    KeysTaken,
)
from gateway_sidecar.frontend.served_files import withdraw_certificate, withdraw_keys
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

EXPIRY, NAMES, HANGS = "expiry", "names", "disk"
# inotify(7): whatever may change what stands at a name in a directory.
_CHANGES = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CREATE | Mask.DELETE | Mask.ATTRIB | Mask.ONLYDIR
_AGAIN_S = 60.0  # A choice: a full disk or a wrong clock is mended by a person, in minutes.
_MOMENT_S = 0.5
"""Whoever replaces two files one after the other has done so by then: it took 8 ms with `mv`."""


@dataclass(slots=True)
class _Seen:
    """One service's files, the thread that looks at them, and what was last made of them."""

    files: FrontendFiles
    thread: OwnThread
    has_keys: bool = False
    tls: TlsSettings | None = None
    validity: Validity | None = None
    client_ca: str = ""
    directories: frozenset[Path] = frozenset()
    looked_at: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, float] = field(default_factory=dict)
    """Since when a part cannot be used that could, while that is not told yet."""


class Frontends:
    """Keys and certificates of all services.

    `wanted` says what each service's frontend is to be, `served` what nginx has in force, or None where that is not
    known: what it may still look for is not taken away.
    """

    def __init__(
        self,
        places: FrontendPlaces,
        wanted: Callable[[], Mapping[str, FrontendSettings]],
        served: Callable[[], Mapping[str, FrontendSettings] | None],
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

    def look_soon(self) -> None:
        """A file has changed."""
        self._look_now.set()

    def client_ca(self, service: str) -> str:
        """The number of the authorities that are there for nginx to read; empty if none were ever good."""
        seen = self._seen.get(service)
        return "" if seen is None else seen.client_ca

    async def look(self, *, withdraw: bool = True) -> None:
        """Takes in every file that changed. Never raises for what a file holds.

        `withdraw`: what no frontend needs any more is taken away; not before nginx has been told of it.
        """
        async with self._looking:
            self._look_now.clear()
            wanted = dict(self._wanted())
            in_force = self._served()
            served, withdraw = in_force or {}, withdraw and in_force is not None
            if not self._has_looked:
                # What an earlier daemon left for a service that is no more.
                self._has_looked = True
                self._seen = {it: self._fresh(it) for it in await asyncio.to_thread(self._places.services)}
            if withdraw:
                for service in self._seen.keys() - wanted.keys() - served.keys():
                    await asyncio.to_thread(self._withdraw, service)
                    self._seen.pop(service).thread.end()
            async with asyncio.TaskGroup() as looks:
                for service, settings in wanted.items():
                    if (seen := self._seen.get(service)) is None:
                        seen = self._seen[service] = self._fresh(service)
                    told = served.get(service, settings)
                    if withdraw and told.auth == settings.auth:
                        await self._let_go_of_keys(service, settings, seen)
                    if withdraw and told.tls == settings.tls:
                        self._let_go_of_certificate(service, settings, seen)
                        self._let_go_of_client_ca(service, settings, seen)
                    if any(_files([settings])):
                        looks.create_task(self._look_at(service, settings, seen))
                    else:
                        seen.directories = frozenset()

    async def run(self) -> None:
        """Runs until cancelled: looks when inotify hints, and every few seconds in any case."""
        while True:
            await self.look()
            directories = self._directories()
            hints = asyncio.create_task(self._take_hints(directories))
            try:
                while directories == self._directories():
                    await awake.until_set(self._look_now, self._rescan_interval_s)
                    await self.look()
            finally:
                hints.cancel()
                await asyncio.gather(hints, return_exceptions=True)

    def _directories(self) -> frozenset[Path]:
        return frozenset().union(*(seen.directories for seen in self._seen.values()))

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
                self._look_now.set()  # What changed before the watch was there.
                while True:
                    event = await inotify.get()
                    if event.name is None or not is_unfinished(event.name.name):
                        self._look_now.set()
        except OSError as error:
            self._logger.warning("source.hints_failed", reason=str(error))

    def _fresh(self, service: str) -> _Seen:
        it = self._places
        files = FrontendFiles(it.keys(service), it.pem(service), it.client_ca(service), it.last_used(service))
        return _Seen(files, OwnThread(f"frontend {service}"))

    async def _let_go_of_keys(self, service: str, settings: FrontendSettings, seen: _Seen) -> None:
        if settings.auth is not None and settings.auth.keys_file is not None:
            return
        directory = self._places.keys(service)
        if seen.has_keys or directory.exists():
            await asyncio.to_thread(withdraw_keys, directory)
            seen.files.forget_keys()
            seen.has_keys = False
            self._clear(service, seen, KEYS)
            self._metrics.frontend_keys.remove_by_labels({"service": service})

    def _let_go_of_certificate(self, service: str, settings: FrontendSettings, seen: _Seen) -> None:
        if settings.tls is not None:
            return
        place = self._places.pem(service)
        if seen.tls is not None or place.exists():
            withdraw_certificate(place)
            seen.files.forget_certificate()
            for part in (CERTIFICATE, EXPIRY, NAMES):
                self._clear(service, seen, part)
            self._metrics.frontend_expiry.remove_by_labels({"service": service})
        seen.tls = seen.validity = None

    def _let_go_of_client_ca(self, service: str, settings: FrontendSettings, seen: _Seen) -> None:
        place = self._places.client_ca(service)
        if (settings.tls is None or settings.tls.client_ca is None) and place.exists():
            place.unlink(missing_ok=True)
            seen.files.forget_client_ca()
            seen.client_ca = ""
            self._clear(service, seen, CLIENT_CA)

    async def _look_at(self, service: str, settings: FrontendSettings, seen: _Seen) -> None:
        """One piece of work in one thread, since each further thread would delay a key's revocation on a busy
        machine.
        """
        if seen.thread.hangs:
            return
        again = {part for part in (KEYS, CERTIFICATE, CLIENT_CA) if part in seen.doubts or self._is_due(seen, part)}
        look = partial(seen.files.look, settings, self._now(), again=again)
        try:
            found = await seen.thread.run(look, patience_s=BRIEF_DISK_S)
        except TimeoutError:
            paths = ", ".join(str(path) for path in _files([settings]))
            error = FrontendError([f"{paths}: not read within {BRIEF_DISK_S:g} s; check the disk"])
            self._refuse(service, seen, HANGS, error)
            return
        if HANGS in seen.problems:
            self._clear(service, seen, HANGS)
        seen.directories = found.directories
        self._take_keys(service, seen, found.keys)
        if settings.tls is not None:
            self._take_certificate(service, settings.tls, seen, found.certificate)
        self._take_client_ca(service, seen, found.client_ca)
        if settings.tls is not None and settings.tls.client_ca is not None:
            # If it is gone it was removed by somebody, and is put there again: nginx need not be told.
            seen.client_ca = self._places.client_ca_number(service) or seen.client_ca

    def _take_keys(self, service: str, seen: _Seen, keys: KeysTaken | FrontendError | OSError | None) -> None:
        if keys is None:
            return
        seen.has_keys, seen.looked_at[KEYS] = True, awake.monotonic()
        if not isinstance(keys, KeysTaken):
            self._doubt(service, seen, KEYS, keys)
            return
        self._clear(service, seen, KEYS)
        self._metrics.frontend_keys.labels(service).set(keys.keys)
        if keys.added or keys.removed:
            self._logger.info(
                "frontend.keys_taken_in", service=service, keys=keys.keys, added=keys.added, removed=keys.removed
            )

    def _take_client_ca(self, service: str, seen: _Seen, found: ClientCaTaken | FrontendError | OSError | None) -> None:
        if found is None:
            return
        seen.looked_at[CLIENT_CA] = awake.monotonic()
        if not isinstance(found, ClientCaTaken):
            self._doubt(service, seen, CLIENT_CA, found)
            return
        self._clear(service, seen, CLIENT_CA)
        if found.is_new:
            self._logger.info("frontend.client_ca_taken_in", service=service, certificates=found.certificates)

    def _take_certificate(
        self, service: str, tls: TlsSettings, seen: _Seen, taken: CertificateTaken | FrontendError | OSError | None
    ) -> None:
        seen.tls = tls
        if taken is not None:
            seen.looked_at[CERTIFICATE] = awake.monotonic()
        if isinstance(taken, CertificateTaken):
            self._clear(service, seen, CERTIFICATE)
            self._look_at_names(service, tls, seen, taken)
            seen.validity = Validity(taken.begins_at, taken.expires_at)
            self._metrics.frontend_expiry.labels(service).set(taken.expires_at)
            if taken.is_new:
                days = round((taken.expires_at - self._now()) / DAY_S, 1)
                self._logger.info("frontend.certificate_taken_in", service=service, expires_in_days=days)
        elif taken is not None:
            self._doubt(service, seen, CERTIFICATE, taken)
        self._look_at_expiry(service, tls, seen)

    def _look_at_names(self, service: str, tls: TlsSettings, seen: _Seen, taken: CertificateTaken) -> None:
        if not taken.wrong_for:
            self._clear(service, seen, NAMES)
            return
        text = f"{tls.named} is not for {', '.join(taken.wrong_for)}; put the certificate of that name there"
        if seen.problems.get(NAMES) != text:
            self._logger.warning("frontend.certificate_wrong_name", service=service, reason=text)
        self._problem(service, seen, NAMES, text)

    def _look_at_expiry(self, service: str, tls: TlsSettings, seen: _Seen) -> None:
        if seen.validity is None:
            return
        left_s, warn_s = seen.validity.ends_at - self._now(), tls.warn_days * DAY_S
        if left_s > (min(warn_s, seen.validity.last_s) if tls.acme else warn_s):
            self._clear(service, seen, EXPIRY)
            return
        days = left_s / DAY_S
        text = f"{tls.named} expires in {counted(days, 'day')}" if left_s > 0 else f"{tls.named} has expired"
        problem = f"{text}; {'why it is not renewed is said of acme' if tls.acme else 'renew it'}"
        if seen.problems.get(EXPIRY) != problem:
            self._logger.warning("frontend.certificate_expires", service=service, reason=text)
        self._problem(service, seen, EXPIRY, problem)

    def _is_due(self, seen: _Seen, part: str) -> bool:
        """What failed may succeed without a change of its file: a disk that was full, a clock that was wrong."""
        return part in seen.problems and awake.monotonic() - seen.looked_at.get(part, 0.0) > _AGAIN_S

    def _doubt(self, service: str, seen: _Seen, part: str, error: FrontendError | OSError) -> None:
        """Refuses it, unless somebody may be about to put its other half there: two renames are not one."""
        now = awake.monotonic()
        since = seen.doubts.setdefault(part, now)
        if part not in seen.problems and self._is_in_force(service, part) and now - since < _MOMENT_S:
            asyncio.get_running_loop().call_later(_MOMENT_S, self._look_now.set)
            return
        self._refuse(service, seen, part, error)

    def _is_in_force(self, service: str, part: str) -> bool:
        """Whether nginx has something of an earlier look that stays as it is."""
        there = {
            CERTIFICATE: self._places.pem(service).exists(),
            KEYS: self._places.keys(service).is_dir(),
            CLIENT_CA: self._places.client_ca(service).exists(),
        }
        return there.get(part, any(there.values()))

    def _refuse(self, service: str, seen: _Seen, part: str, error: FrontendError | OSError) -> None:
        seen.doubts.pop(part, None)
        before = self._is_in_force(service, part)
        stays = "what was there before stays in force" if before else "no client gets in until it can be used"
        text = f"{error}; {stays}"
        if seen.problems.get(part) != text:
            self._logger.error("frontend.refused", service=service, part=part, reason=str(error))
        self._problem(service, seen, part, text)

    def _problem(self, service: str, seen: _Seen, part: str, text: str) -> None:
        seen.problems[part] = text
        self._metrics.frontend_problem.labels(service, part).set(1)

    def _clear(self, service: str, seen: _Seen, part: str) -> None:
        seen.doubts.pop(part, None)
        if seen.problems.pop(part, None) is not None:
            self._logger.info("frontend.repaired", service=service, part=part)
        self._metrics.frontend_problem.labels(service, part).set(0)

    def _withdraw(self, service: str) -> None:
        self._seen[service].files.keep_uses()
        withdraw_keys(self._places.keys(service))
        withdraw_certificate(self._places.pem(service))
        self._places.client_ca(service).unlink(missing_ok=True)


def _files(frontends: Iterable[FrontendSettings]) -> Iterable[Path]:
    for settings in frontends:
        if settings.auth is not None and settings.auth.keys_file is not None:
            yield settings.auth.keys_file
        if settings.tls is not None:
            yield from settings.tls.certificate_files
            if settings.tls.client_ca is not None:
                yield settings.tls.client_ca
