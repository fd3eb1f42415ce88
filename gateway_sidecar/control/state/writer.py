"""Writes the records for the next daemon: after each change, when a file vanished, and every minute. A failure is
logged once and tried again each second; its end is logged too. Each record has a thread of its own, so that a state
disk that hangs does not keep the record of processes from being written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gateway_sidecar.control.state import records
from gateway_sidecar.errors import StateError
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import PAUSE_S
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem

_GAP_S = 0.2  # Changes of a moment are one write.
_LOOK_S = 5.0  # A choice: a record that somebody removed is missed at the next start, not before.
_ANEW_S = 60.0  # A choice: a disk that has become full or read-only is told of a minute later at the most.


class Record:
    """One file. `name` says in `status`, in the log and in a metric which."""

    def __init__(self, name: str, path: Path, content: Callable[[], Mapping[str, object]]) -> None:
        self.name = name
        self.path = path
        self.content = content
        self._thread = OwnThread(f"record {path.name}")

    async def read(self) -> dict[str, Any]:
        """What was written; empty if there is none. Raises StateError."""
        try:
            return await self._thread.run(partial(records.read_record, self.path), patience_s=DISK_S)
        except TimeoutError as error:
            raise StateError(f"cannot read {self.path}: the file system does not answer") from error

    async def write(self, content: Mapping[str, object] | None = None) -> None:
        """Writes what there is to write down now, or `content`. Raises StateError."""
        # Taken in one go, here; only the writing happens in the thread.
        write = partial(records.write_record, self.path, self.content() if content is None else content)
        try:
            await self._thread.run(write, patience_s=DISK_S)
        except TimeoutError:
            raise StateError(f"cannot write {self.path}: the file system does not answer") from None

    async def is_there(self) -> bool:
        """Whether the file is still there; True if that cannot be seen."""
        try:
            return await self._thread.run(self.path.exists, patience_s=DISK_S)
        except OSError:
            return True


class RecordWriter:
    """Writes one record until cancelled. `problem` says why it cannot."""

    def __init__(self, record: Record, problem: Problem, metrics: Metrics) -> None:
        self.record = record
        self._problem = problem
        self._up = metrics.record_up.labels(record.name)
        self._logger = get_logger()
        self._dirty = asyncio.Event()
        self._one_by_one = asyncio.Lock()
        self._asked = self._covered = 0
        self._written_at = awake.monotonic()

    def touch(self) -> None:
        """Something that is written down has changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._until_due()
            self._dirty.clear()
            if not await self.write():
                self._dirty.set()
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(_GAP_S)

    async def flush(self) -> None:
        """What holds now has been written down, or could not be; one write serves all who ask before it begins."""
        self._asked += 1
        mine = self._asked
        async with self._one_by_one:
            if self._covered < mine:
                await self.write()

    async def write(self) -> bool:
        """Writes it now; returns whether it could. Logs when failures begin and end."""
        self._covered = self._asked
        try:
            await self.record.write()
        except StateError as error:
            self._up.set(0)
            if self._problem.set(str(error)):
                self._logger.error("state.not_written", path=str(self.record.path), reason=str(error))
            return False
        self._up.set(1)
        self._written_at = awake.monotonic()
        if self._problem.set(""):
            self._logger.info("state.written_again", path=str(self.record.path))
        return True

    async def _until_due(self) -> None:
        while not self._dirty.is_set():
            await awake.until_set(self._dirty, _LOOK_S)
            if self._dirty.is_set():
                return
            # Anew now and then: a disk that became full or read-only is told of before it matters.
            if awake.monotonic() - self._written_at > _ANEW_S or not await self.record.is_there():
                return
