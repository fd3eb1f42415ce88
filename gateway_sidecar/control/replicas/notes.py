"""Opens replicas' sockets, and reads what is written beside them: `<replica>.yaml`, or what their source says.

All of it may be on a disk that hangs, so it is done beside the loop: what was found is written into the tenure's notes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from pathlib import Path

from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import Overrides
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import opened_at
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger

ReadOverrides = Callable[[Path, int], Overrides]
"""Reads a `<replica>.yaml` for a socket of this owner. Raises ConfigError."""


def open_path(path: Path) -> int:
    """A descriptor of what is at the path, be it a link, not of a connection to it. Raises OSError. Blocks."""
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


class Handles:
    """Opens paths in a thread of its own."""

    def __init__(
        self, name: str, *, opened_by: Callable[[Path], int] = open_path, patience_s: float = BRIEF_DISK_S
    ) -> None:
        self._thread = OwnThread(f"handles {name}")
        self._open = opened_by
        self._patience_s = patience_s

    async def open(self, paths: Iterable[Path]) -> list[int | OSError]:
        """For each path, in order, its descriptor, which is the caller's to close, or why there is none.

        What does not come in time is missing at the end, and closed should it come later.
        """
        if self._thread.hangs:
            return []  # It was waited for once: others are looked for meanwhile.
        batch = _Batch(paths, self._open)
        try:
            await self._thread.run(batch.open, patience_s=self._patience_s)
        except TimeoutError:
            return batch.take()
        except BaseException:
            _close(batch.take())
            raise
        return batch.take()


class _Batch:
    """Paths that are opened one after the other, for as long as somebody waits for them."""

    def __init__(self, paths: Iterable[Path], opened_by: Callable[[Path], int]) -> None:
        self._paths = list(paths)
        self._open = opened_by
        self._lock = threading.Lock()
        self._opened: list[int | OSError] = []
        self._is_taken = False

    def open(self) -> None:
        for path in self._paths:
            try:
                opened: int | OSError = self._open(path)
            except OSError as error:
                opened = error
            with self._lock:
                if self._is_taken:
                    _close([opened])
                    return
                self._opened.append(opened)

    def take(self) -> list[int | OSError]:
        """What there is by now."""
        with self._lock:
            self._is_taken = True
            return self._opened


def _close(opened: Iterable[int | OSError]) -> None:
    for each in opened:
        if isinstance(each, int):
            os.close(each)


class NotesReader:
    """One service's. Woken whenever somebody was seen; what could not be opened or read is tried again then.

    Before the first look it opens and reads nothing: what an earlier daemon wrote down may not be so any more.
    """

    def __init__(
        self, service: str, tenures: Registry, queue: WorkQueue[Key], reflector: Reflector, read: ReadOverrides
    ) -> None:
        self._service = service
        self._tenures = tenures
        self._queue = queue
        self._reflector = reflector
        self._read = read
        self._logger = get_logger(service=service)
        self._thread = OwnThread(f"notes {service}")
        self._handles: dict[str, Handles] = {}
        self._wake = asyncio.Event()

    def look_soon(self) -> None:
        """A look has shown who is there, or that nobody can be seen: there may be sockets to open and notes to read."""
        self._wake.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Who needs no disk is not held up by one that hangs.
            await self._describe(t for t in self._undescribed() if not _needs_the_disk(t))
            await self._open(t for t in self._tenures.current.values() if t.address is None)
            await self._describe(self._undescribed())

    def _undescribed(self) -> list[Tenure]:
        return [t for t in self._tenures if not t.gone and not _is_described(t)]

    async def _open(self, unopened: Iterable[Tenure]) -> None:
        by_source: dict[str, list[Tenure]] = {}
        for tenure in unopened:
            by_source.setdefault(tenure.sighting.source, []).append(tenure)
        # Beside each other: what hangs holds up its own source alone.
        await asyncio.gather(*(self._open_those_of(source, tenures) for source, tenures in by_source.items()))

    async def _open_those_of(self, source: str, tenures: list[Tenure]) -> None:
        handles = self._handles.setdefault(source, Handles(f"{self._service} {source}"))
        opened = await handles.open(tenure.sighting.place for tenure in tenures)
        for tenure, handle in zip_longest(tenures, opened):
            if not isinstance(handle, int):
                reason = handle.strerror if handle is not None else "the file system does not answer"
                tenure.notes.handle_problem = f"cannot open {tenure.sighting.place}: {reason}"
            elif tenure.gone or not is_at(handle, tenure.sighting):
                os.close(handle)  # Replaced since the look: the next one begins a new tenure.
                self._reflector.look_soon()
            else:
                self._tenures.hold(tenure, handle)
                tenure.notes.handle_problem = None
            self._queue.add(tenure.key)

    async def _describe(self, undescribed: Iterable[Tenure]) -> None:
        """Reads what was written; where the disk hangs the next look tries again."""
        for tenure in sorted(undescribed, key=_needs_the_disk):
            if not await self._describe_one(tenure, tenure.sighting):
                return

    async def _describe_one(self, tenure: Tenure, sighting: Sighting) -> bool:
        """False if the file does not come in time: what was known of the tenure stays."""
        notes = tenure.notes
        try:
            overrides, problem = sighting.overrides or Overrides(), None
            if sighting.notes is not None:
                read = partial(self._read_beside, sighting.notes.path, sighting, tenure.handle)
                # One that hangs was waited for once: others come and go meanwhile.
                overrides = await self._thread.run(read, patience_s=0.0 if self._thread.hangs else BRIEF_DISK_S)
        except ConfigError as error:
            overrides, problem = notes.overrides, error.problems[0]
            self._logger.error("replica.notes_refused", replica=tenure.replica, problems=error.problems)
        except TimeoutError:
            if not notes.read:
                notes.problem = "the file system of its .yaml does not answer"
                self._queue.add(tenure.key)
            return False
        except FileNotFoundError:
            return True  # The socket itself is gone: the next look tells what that means.
        notes.of, notes.overrides, notes.problem = sighting, overrides, problem
        self._queue.add(tenure.key)
        return True

    def _read_beside(self, notes: Path, sighting: Sighting, handle: int | None) -> Overrides:
        """What is noted beside a socket, whose owner it has to belong to. Raises ConfigError, OSError. Blocks."""
        try:
            owner = (sighting.place.lstat() if handle is None else os.fstat(handle)).st_uid
            found = socket_identity(sighting.place if handle is None else handle)
        except OSError:
            raise FileNotFoundError(sighting.place) from None
        if found != sighting.occupant:
            raise FileNotFoundError(sighting.place)
        return self._read(notes, owner)


def _is_described(tenure: Tenure) -> bool:
    of, sighting = tenure.notes.of, tenure.sighting
    if sighting.described and sighting.overrides is None:
        return True  # As it was written down: its source says the rest.
    return of is not None and of.says_as_much_as(sighting)


def _needs_the_disk(tenure: Tenure) -> bool:
    return tenure.sighting.notes is not None


def is_at(handle: int, sighting: Sighting) -> bool:
    """Whether what is open is what was looked at, and lies there: no link was put on the way to it meanwhile."""
    return socket_identity(handle) == sighting.occupant and opened_at(handle) == str(sighting.place)
