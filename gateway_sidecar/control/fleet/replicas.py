"""The replicas that were put over any gateway's API: one inventory, in the store.

A PUT and a DELETE are one compare-and-set each. Everybody else learns of it by the reflector, which says so here; each
service's source is then asked to look. SSH tunnels are made by each gateway for itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from gateway_sidecar.control.fleet.memory import RememberedStore, memory_from, record_in
from gateway_sidecar.control.fleet.reflector import DRAINS, REPLICAS, StoreReflector
from gateway_sidecar.control.state.api_replicas import Put, read_entries
from gateway_sidecar.control.state.records import read_record, write_record
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import StateError, StateInDoubt, StoreConflict, StoreError, StoreInDoubt
from gateway_sidecar.sources.api import same_entry
from gateway_sidecar.sources.entry import ApiRecord, RawEntry
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger

_TRIES = 5
"""Of a PUT that meets others' writes to the same replica: each of them has won once by then."""
_RETRY_S = 2.0  # As often as other loops look: what was put while this gateway worked alone counts here already.


class SharedReplicas:
    """The API's replicas, as the store has them (a `ReplicasOfApi`).

    joined: set once the other gateways know of this one: before that no replica is taken up that is new here.
    local: the record of a gateway that worked alone. What stands there is moved to the store once.
    """

    def __init__(
        self, store: Store, reflector: StoreReflector, remembered: RememberedStore, joined: asyncio.Event, local: Path
    ) -> None:
        self._joined = joined
        self._store = store
        self._reflector = reflector
        self._remembered = remembered
        self._local_path = local
        self._local: dict[str, RawEntry] = {}
        self._thread = OwnThread(f"record {local.name}")
        self._records: defaultdict[str, ApiRecord] = defaultdict(_new_record)
        self._texts: dict[str, str] = {}
        self._logger = get_logger()
        self._moving = asyncio.Event()
        reflector.on_change(self._take_in)

    def of(self, service: str) -> ApiRecord:
        """The record of one service; the same object for as long as the daemon runs."""
        if service not in self._records:
            self._records[service].unread = self._unread
        return self._records[service]

    def is_outdated(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> bool:
        """Whether the store lists another entry than the one that an engine was found by: a look is on its way."""
        listed = self.of(service).entries.get(replica)
        return entry is not None and listed is not None and entry != listed

    @property
    def _unread(self) -> str | None:
        if self._reflector.known is None:
            return self._reflector.status.reason or "the store was not read yet"
        return None if self._joined.is_set() else "the other gateways were not told of this one yet"

    async def load(self, owned_before: Mapping[str, Iterable[ReplicaId]]) -> None:
        """Takes up what an earlier daemon knew of the store, and what was put while this gateway worked alone."""
        try:
            read = partial(read_entries, self._local_path)
            local = await self._thread.run(read, patience_s=DISK_S)
            self._local = {_key(service, id_): it for service, by_id in local.items() for id_, it in by_id.items()}
        except (StateError, TimeoutError) as error:
            self._logger.error("state.unread", reason=str(error) or f"{self._local_path}: the disk does not answer")
        before = {_key(service, replica) for service, ids in owned_before.items() for replica in ids}
        await self._remembered.load(len(before - self._local.keys()))
        self._reflector.tell()
        if self._local:
            self._moving.set()

    async def run(self) -> None:
        """Moves what was put while this gateway worked alone; then waits until cancelled."""
        await self._joined.wait()
        self._reflector.tell()
        while True:
            await self._moving.wait()
            if self._reflector.is_up and await self._move():
                self._moving.clear()
            else:
                await asyncio.sleep(_RETRY_S)

    async def put(self, service: str, replica: ReplicaId, entry: RawEntry) -> Put:
        """The replica is as this says from now on, at every gateway; what that changed.

        Raises StateError if nothing was changed, StateInDoubt if that is not known.
        """
        key, value = _key(service, replica), _text(entry)
        for _ in range(_TRIES):
            try:
                before = await self._reflector.read_one(key)
                said = _entry_in(before.value) if before is not None else None
                if before is not None and said is not None and same_entry(said, entry):
                    self._reflector.note_write(key, before.value, before.revision)
                    return Put(created=False, changed=False, entry=self._in_force(service, replica, said))
                if before is None:
                    await self._end_drain(key)
                revision = await self._store.swap(key, value, seen=before.revision if before else None)
            except StoreConflict:
                continue
            except StoreError as error:
                raise _told(error) from error
            was_leaving = replica in self.of(service).leaving
            self._reflector.note_write(key, value, revision)
            return Put(before is None, True, self._in_force(service, replica, entry), was_leaving)
        raise StateError("other gateways write the same replica all the time; try again")

    async def take_out(self, service: str, replica: ReplicaId) -> RawEntry | None:
        """The replica has to go, at every gateway; it is shown here until `forget`. Its entry.

        Raises KeyError for one that was not put over the API, StateError, StateInDoubt.
        """
        key, record = _key(service, replica), self.of(service)
        for _ in range(_TRIES):
            try:
                before = await self._reflector.read_one(key)
                if before is None:
                    if replica in record.leaving:
                        return record.leaving[replica]
                    self._reflector.look_soon()
                    raise KeyError(replica)
                revision = await self._store.swap(key, None, seen=before.revision)
            except StoreConflict:
                continue
            except StoreError as error:
                raise _told(error) from error
            entry = record.entries.get(replica)
            if entry is not None:
                record.leaving[replica] = entry
            self._reflector.note_write(key, None, revision)
            return entry
        raise StateError("other gateways write the same replica all the time; try again")

    # -- what the store says

    def _take_in(self, snapshot: Snapshot) -> None:
        """Each record as the snapshot has it; an entry that says the same stays the same object."""
        texts = {key: it.value for key, it in snapshot.entries.items() if key.startswith(REPLICAS)}
        texts |= {key: _text(entry) for key, entry in self._local.items() if key not in texts}
        by_service: defaultdict[str, dict[ReplicaId, RawEntry]] = defaultdict(dict)
        for key, text in texts.items():
            service, _, replica = key.removeprefix(REPLICAS).partition("/")
            kept = self._records[service].entries.get(ReplicaId(replica)) if self._texts.get(key) == text else None
            by_service[service][ReplicaId(replica)] = kept if kept is not None else _entry_in(text)
        self._texts, unread = texts, self._unread
        for service in {*by_service, *self._records}:
            record, entries = self._records[service], by_service.get(service, {})
            if record.unread != unread or record.entries != entries:
                record.unread = unread
                record.entries = entries
                for replica in entries:
                    record.leaving.pop(replica, None)
                if record.news is not None:
                    record.news.set()

    async def _end_drain(self, key: str) -> None:
        """What is new here is not what an earlier drain was about. Raises StoreError."""
        drain = DRAINS + key.removeprefix(REPLICAS)
        before = await self._reflector.read_one(drain)
        if before is not None:
            self._reflector.note_write(drain, None, await self._store.swap(drain, None, seen=before.revision))

    def _in_force(self, service: str, replica: ReplicaId, entry: RawEntry) -> RawEntry:
        return self.of(service).entries.get(replica, entry)

    async def _move(self) -> bool:
        """Moves the local record's entries; whether all of them have their place. The store's own count."""
        moved, kept = 0, []
        for key, entry in sorted(self._local.items()):
            try:
                if await self._reflector.read_one(key) is None:
                    self._reflector.note_write(key, _text(entry), await self._store.swap(key, _text(entry), seen=None))
                    moved += 1
                else:
                    kept.append(key.removeprefix(REPLICAS))
            except StoreError:
                return False
            del self._local[key]
        empty = partial(write_record, self._local_path, {"replicas": {}, "lost": {}})
        try:
            await self._thread.run(empty, patience_s=DISK_S)
        except (StateError, TimeoutError):
            return False
        self._reflector.look_soon()
        self._logger.info("store.moved", replicas=moved, had_already=kept)
        return True


def read_remembered(state_dir: Path) -> Mapping[str, Mapping[ReplicaId, RawEntry]]:
    """What an earlier daemon knew of the store; changes nothing. Raises StateError. Blocks."""
    known = memory_from(read_record(record_in(state_dir))).known
    found: defaultdict[str, dict[ReplicaId, RawEntry]] = defaultdict(dict)
    for key, it in known.entries.items() if known else ():
        if key.startswith(REPLICAS):
            service, _, replica = key.removeprefix(REPLICAS).partition("/")
            found[service][ReplicaId(replica)] = _entry_in(it.value)
    return found


def _new_record() -> ApiRecord:
    return ApiRecord(news=asyncio.Event())


def _key(service: str, replica: ReplicaId) -> str:
    return f"{REPLICAS}{service}/{replica}"


def _text(entry: RawEntry) -> str:
    return json.dumps(entry, ensure_ascii=False, sort_keys=True)


def _entry_in(text: str) -> RawEntry:
    """What no gateway wrote is refused as an entry, by name, as any other mistake is."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    return entry if isinstance(entry, dict) else {"": text[:100]}


def _told(error: StoreError) -> StateError:
    return StateInDoubt(str(error)) if isinstance(error, StoreInDoubt) else StateError(str(error))
