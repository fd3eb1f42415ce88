"""Keeps the journal over restarts of the daemon: one event a line, appended in a thread of its own, a moment after it
was logged. The file is bounded: once it has doubled it is replaced, atomically, by what the journal still has.

It is a hint like all records. A line that was cut off in the middle is left out, and nobody waits for the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import open_to_append, replace_file
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import PAUSE_S
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.journal import Entry, Journal
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem

_GAP_S = 0.2  # Events of a moment are one write: a daemon that is killed loses so much at the most.
_IDLE_S = 5.0  # News ends the pause; this beats for the watchdog.
_LEAST_BYTES = 1024 * 1024
"""A file that is smaller is only appended to."""
_MOST_BYTES = 64 * 1024 * 1024
"""All events that are kept take some 14 MB (`telemetry/journal.py`): a file beyond this is not ours."""


class EventFile:
    """The journal's file in state_dir. `problem` says why it cannot be written."""

    def __init__(self, state_dir: Path, journal: Journal, problem: Problem, metrics: Metrics) -> None:
        self._path = state_dir / "events.jsonl"
        self._journal = journal
        self._problem = problem
        self._up = metrics.record_up.labels("events")
        self._logger = get_logger()
        self._thread = OwnThread(f"record {self._path.name}")
        self._written = 0
        self._bytes, self._most_bytes = 0, 0
        self._news = asyncio.Event()
        self._is_loaded = False

    async def load(self) -> None:
        """Puts what an earlier daemon wrote before what was logged since. A file that cannot be read is left out.

        In the file's thread: 16,384 events take 0.4 s, and nothing that begins needs them.
        """
        try:
            lines = await self._thread.run(partial(_read, self._path), patience_s=DISK_S)
            await self._thread.run(partial(self._journal.restore, lines), patience_s=DISK_S)
        except (OSError, TimeoutError) as error:
            self._logger.warning("state.ignored", reason=f"cannot read {self._path}: {_why(error)}")
        self._is_loaded = True

    async def run(self) -> None:
        """Loads, and then writes, until cancelled."""
        if not self._is_loaded:
            await self.load()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            if not self._news.is_set():
                loop.call_soon_threadsafe(self._news.set)

        self._journal.listen(tell)
        try:
            while True:
                if self._journal.last <= self._written:
                    await awake.until_set(self._news, _IDLE_S)
                self._news.clear()
                await asyncio.sleep(_GAP_S if await self.write() else PAUSE_S)
        finally:
            self._journal.unlisten(tell)

    async def write(self) -> bool:
        """Writes what is new; whether it could. Tells when failures begin and end.

        Nothing before it is loaded: what an earlier daemon wrote is in no journal yet.
        """
        if not self._is_loaded:
            return True
        fresh, lost = self._journal.after(self._written)
        anew = lost or not self._most_bytes or self._bytes > self._most_bytes
        entries = self._journal.entries() if anew else fresh
        if not entries:
            return True
        write = _replace if anew else _append
        try:
            self._bytes = await self._thread.run(partial(write, self._path, entries), patience_s=DISK_S)
        except (OSError, TimeoutError) as error:
            self._most_bytes = 0  # Half a line may stand at its end: it is written anew.
            self._up.set(0)
            if self._problem.set(f"cannot write {self._path}: {_why(error)}"):
                self._logger.error("state.not_written", path=str(self._path), reason=self._problem.text)
            return False
        self._written = entries[-1].seq
        if anew:
            self._most_bytes = self._bytes + max(self._bytes, _LEAST_BYTES)
        self._up.set(1)
        if self._problem.set(""):
            self._logger.info("state.written_again", path=str(self._path))
        return True


def _why(error: OSError | TimeoutError) -> str:
    return getattr(error, "strerror", None) or "the file system does not answer"


def _read(path: Path) -> Sequence[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MOST_BYTES).splitlines()


def _replace(path: Path, entries: Sequence[Entry]) -> int:
    make_directory(path.parent)
    content = _lines(entries)
    replace_file(path, content)
    return len(content)


def _append(path: Path, entries: Sequence[Entry]) -> int:
    """The file's size then. Raises OSError, too if only some of it could be written."""
    content = _lines(entries)
    descriptor = open_to_append(path, 0o600)
    try:
        written = os.write(descriptor, content)
        if written < len(content):
            raise OSError(28, os.strerror(28))
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _lines(entries: Sequence[Entry]) -> bytes:
    return b"".join(entry.line + b"\n" for entry in entries)
