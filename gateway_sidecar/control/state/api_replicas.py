"""The replicas that were put over the admin API, of all services: on disk before anybody is answered.

The record is no hint but the only place where this stands. So one that cannot be read is no empty one: while a disk
does not give it out, nothing is changed; one that is no record of ours is put aside, and the replicas that it may have
held stay as they are until somebody says again what is to be of them.
"""

from __future__ import annotations

import asyncio
import errno
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gateway_sidecar.control.state.records import read_record
from gateway_sidecar.control.state.writer import Record, RecordWriter
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import StateError, StoreFull
from gateway_sidecar.sources.api import same_entry
from gateway_sidecar.sources.entry import ApiRecord, RawEntry
from gateway_sidecar.supervision.loops import PAUSE_S
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems

_FULL = (errno.ENOSPC, errno.EDQUOT)

Content = dict[str, object]


@dataclass(frozen=True, slots=True)
class Put:
    """The result of a put. `entry` is the one in force; `was_leaving` says that it was being drained."""

    created: bool
    changed: bool
    entry: RawEntry
    was_leaving: bool = False


def is_full(error: StateError) -> bool:
    """Whether it was for want of room that something could not be written."""
    cause = error.__cause__
    return isinstance(cause, StoreFull) or (isinstance(cause, OSError) and cause.errno in _FULL)


class ReplicasOfApi(Protocol):
    """What keeps the replicas that were put over the API: this daemon's own record, or a store that gateways share."""

    def of(self, service: str) -> ApiRecord: ...

    async def load(self, owned_before: Mapping[str, Iterable[ReplicaId]]) -> None: ...

    async def run(self) -> None: ...

    async def put(self, service: str, replica: ReplicaId, entry: RawEntry) -> Put: ...

    async def take_out(self, service: str, replica: ReplicaId) -> RawEntry | None: ...


class _InTurn(Record):
    """A record that is written by one at a time: what is written last is what is true last."""

    def __init__(self, name: str, path: Path, content: Callable[[], Mapping[str, object]]) -> None:
        super().__init__(name, path, content)
        self.turn = asyncio.Lock()

    async def write(self, content: Mapping[str, object] | None = None) -> None:
        async with self.turn:
            await super().write(content)


class ApiReplicas:
    """Keeps the replicas that the API was given. A line of `problems` says what of it is lost or unread."""

    def __init__(self, path: Path, problems: Problems, metrics: Metrics) -> None:
        self._problem = problems.of("api")
        self._logger = get_logger()
        self._records: defaultdict[str, ApiRecord] = defaultdict(ApiRecord)
        self._record = _InTurn("replicas", path, self._content)
        self._supervisor = RecordWriter(self._record, problems.of(self._record.name), metrics)
        self._change = asyncio.Lock()
        self._thread = OwnThread(f"aside {path.name}")
        self._owned_before: Mapping[str, Iterable[ReplicaId]] = {}
        self._aside: Path | None = None
        self._unread: str | None = None

    def of(self, service: str) -> ApiRecord:
        """The record of one service; the same object for as long as the daemon runs."""
        if service not in self._records:
            self._records[service].unread = self._unread
        return self._records[service]

    async def load(self, owned_before: Mapping[str, Iterable[ReplicaId]]) -> None:
        """Takes up what an earlier daemon was given. `owned_before`: the replicas that are known to be from there."""
        self._owned_before = owned_before
        await self._load()

    async def run(self) -> None:
        """Runs until cancelled."""
        while self._unread is not None:
            await asyncio.sleep(PAUSE_S)
            await self._load()
        await self._supervisor.run()

    async def put(self, service: str, replica: ReplicaId, entry: RawEntry) -> Put:
        """The replica is as this says from now on; what that changed.

        Raises StateError, nothing changed, if that cannot be written.
        """
        async with self._change:
            record = self.of(service)
            before = record.entries.get(replica)
            if before is not None and same_entry(before, entry):
                return Put(created=False, changed=False, entry=before)
            await self._write(service, replica, entry)
            record.entries[replica] = entry
            was_leaving = record.leaving.pop(replica, None) is not None
            record.lost.discard(replica)
            self._tell()
            return Put(created=before is None, changed=True, entry=entry, was_leaving=was_leaving)

    async def take_out(self, service: str, replica: ReplicaId) -> RawEntry | None:
        """The replica has to go; it is shown until `forget`. Its entry, None if that is lost.

        Raises KeyError for one that was not put over the API, StateError, nothing changed, if that cannot be written.
        """
        async with self._change:
            record = self.of(service)
            if replica in record.leaving:
                return record.leaving[replica]
            if replica not in record.entries and replica not in record.lost:
                raise KeyError(replica)
            await self._write(service, replica, None)
            record.lost.discard(replica)
            self._tell()
            entry = record.entries.pop(replica, None)
            if entry is not None:
                record.leaving[replica] = entry
            return entry

    # -- the record

    def _content(self) -> Content:
        return {
            "replicas": {name: dict(record.entries) for name, record in self._records.items() if record.entries},
            "lost": {name: sorted(record.lost) for name, record in self._records.items() if record.lost},
        }

    async def _write(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> None:
        """Writes down how it is with this one changed. Raises StateError."""
        if self._unread is not None:
            raise StateError(self._unread)
        content = self._content()
        replicas, lost = content["replicas"], content["lost"]
        assert isinstance(replicas, dict)
        assert isinstance(lost, dict)
        entries = {name: it for name, it in replicas.get(service, {}).items() if name != replica}
        replicas[service] = entries if entry is None else {**entries, replica: entry}
        lost[service] = [name for name in lost.get(service, []) if name != replica]
        try:
            await self._record.write(content)
        except StateError:
            self._supervisor.touch()  # It may be on the disk all the same: what holds is written over it.
            raise

    async def _load(self) -> None:
        path = self._record.path
        try:
            entries, lost = _from_json(path, await self._record.read())
        except StateError as error:
            if isinstance(error.__cause__, OSError):
                self._note_unread(f"{error}; replicas that were put over the API stay as they are")
                return
            try:
                self._aside = await self._thread.run(partial(_put_aside, path), patience_s=DISK_S)
            except OSError as trouble:
                self._note_unread(f"{error}, and cannot be put aside: {trouble.strerror or trouble}")
                return
            self._logger.error("state.put_aside", reason=str(error), path=str(self._aside))
            entries, lost = {}, {name: set(replicas) for name, replicas in self._owned_before.items()}
        self._unread = None
        for name in {*entries, *lost, *self._records}:
            it = self._records[name]
            it.unread = None
            it.entries = entries.get(name, {})
            it.lost = lost.get(name, set()) - it.entries.keys()
        self._tell()
        if self._aside is not None and not await self._supervisor.write():
            self._supervisor.touch()

    def _note_unread(self, why: str) -> None:
        if self._unread != why:
            self._logger.error("state.unread", reason=why)
        self._unread = why
        for record in self._records.values():
            record.unread = why
        self._tell()

    def _tell(self) -> None:
        records = sorted(self._records.items())
        lost = [f"{service}/{replica}" for service, record in records for replica in sorted(record.lost)]
        if self._unread is not None:
            self._problem.set(self._unread)
        elif lost or self._aside is not None:
            which = f"the API's entries of {', '.join(lost[:10])} are lost" if lost else "the API's entries are lost"
            kept = f"; the old record is {self._aside}" if self._aside is not None else ""
            self._problem.set(f"{which}{kept}; put the replicas again, or delete them")
        else:
            self._problem.set("")


def read_entries(path: Path) -> Mapping[str, Mapping[ReplicaId, RawEntry]]:
    """What a record holds; changes nothing. Raises StateError. Blocks."""
    return _from_json(path, read_record(path))[0]


def _from_json(
    path: Path, content: Mapping[str, Any]
) -> tuple[dict[str, dict[ReplicaId, RawEntry]], dict[str, set[ReplicaId]]]:
    try:
        entries: dict[str, dict[ReplicaId, RawEntry]] = {
            str(name): {ReplicaId(replica): dict(entry) for replica, entry in by_id.items()}
            for name, by_id in content.get("replicas", {}).items()
        }
        lost = {
            str(name): {ReplicaId(str(it)) for it in replicas} for name, replicas in content.get("lost", {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise StateError(f"{path} has an unknown form: {error}") from error
    return entries, lost


def _put_aside(path: Path) -> Path:
    """A free name for a damaged record. Raises OSError. Blocks."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.unusable-{number}")
        if not aside.exists():
            return path.rename(aside)
    raise OSError(errno.EEXIST, f"{path}.unusable-* are 999 files already")
