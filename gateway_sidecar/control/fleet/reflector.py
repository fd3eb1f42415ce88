"""Follows the store: a full read every few seconds is the truth, and a watch only hurries it. What it hurries is a read
of what has changed, if the store can tell all of that, and else a full one.

What cannot be read, or be believed, changes nothing: the last good snapshot stays, in memory and on disk.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.fleet import StoreState
from gateway_sidecar.domain.store_memory import (
    LINEAGE,
    Entry,
    Lineage,
    Memory,
    Snapshot,
    Verdict,
    judge,
    lineage_of,
)
from gateway_sidecar.errors import StoreConflict, StoreError, StoreRefused, StoreTooNew
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem

REPLICAS = "replicas/"
"""`replicas/SERVICE/REPLICA`: an entry, as it was put over the API."""
GATEWAYS = "gateways/"
"""`gateways/NAME`: a gateway that is alive; with its lease."""
DRAINS = "drains/"
"""`drains/SERVICE/REPLICA`: a drain that all gateways were asked for."""
PORTS = "ports"
"""The ports that all gateways use alike: one table."""
KEYS = "keys/"
"""`keys/NAME`: a key's hash and bounds, for all services that have keys of the store; `keys/@NAME`: a plan."""
TLS = "tls/"
CERTIFICATES = f"{TLS}certificates/"
"""`tls/certificates/NAME`: a certificate, its chain and its key, for services with `tls.store: NAME`."""
ACME = f"{TLS}acme/"
"""`tls/acme/FILE`: what gateways keep of certificates by ACME."""
CHALLENGES = f"{TLS}challenges/"
"""`tls/challenges/TOKEN`: what an ACME server asks for; with the lease of the gateway that orders."""
ORDERER = f"{TLS}orderer"
"""The gateway that orders; with its lease."""
SEEN = "seen/"
"""`seen/NAME`: the states of a gateway's replicas, for people; with its lease. It is read only when it is asked for."""
SIGNALS = "signals/"
"""`signals/NAME`: what a gateway measured of the services that are scaled; with its lease. Read as `seen/` is."""
SCALING = "scaling/"
"""`scaling/SERVICE`: which gateway recommends, and what was recommended last. Read as `seen/` is."""
USAGE = "usage/"
"""`usage/INSTANCE`: what keys of the store have used at a gateway; with a lease of a month. Read as `seen/` is."""
MESH = "mesh/"
"""`mesh/authorities`: what signs the certificates of routers that are in a mesh. Read, and not watched."""
WATCHED = (REPLICAS, DRAINS, PORTS, GATEWAYS, KEYS, TLS)
TOPICS = (*WATCHED, MESH)
"""What is read. A topic is a prefix, so that one range reads it for all services."""
LASTING = (REPLICAS, DRAINS, KEYS, CERTIFICATES, ACME, MESH)
"""What of it is put back when an operator has the store filled again."""

_UPGRADE = "upgrade this gateway"
_CURE = "`gateway-sidecar store accept` takes the store as it is, `store refill` puts back what this gateway knows"

_LEAST_GAP_S = 0.01  # A crowd of writes is one read: a hundred of them a second at the most.
_AFTER_FAILURE = Backoff(0.5, 5.0)


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How it stands with the store. `since` is when that began, `read_at` when it was read last (monotonic seconds)."""

    state: StoreState
    since: float
    read_at: float | None = None
    reason: str = ""


class StoreReflector:
    """What the store holds, as far as this gateway believes it.

    Who wants to know of changes gives `on_change` something that enqueues keys.
    """

    def __init__(
        self, store: Store, remembered: RememberedStore, problem: Problem, metrics: Metrics, *, read_every_s: float
    ) -> None:
        self._store = store
        self._remembered = remembered
        self._problem = problem
        self._errors = metrics.store_errors
        self._read_every_s = read_every_s
        self._logger = get_logger()
        self._look_now = asyncio.Event()
        self._listeners: list[Callable[[Snapshot], object]] = []
        self._failures = 0
        self._read_whole_at = 0.0
        self._removed: dict[str, int] = {}
        """Keys that a watch said are gone -> since which revision; a hint, which the store's own count proves."""
        self.status = StoreStatus("unread", awake.monotonic())
        self.looked = asyncio.Event()
        """Set once a read has been tried."""
        self.read_revision = 0
        """Of the last read that was believed; writes of ours that came since are not in it."""
        self.read_at = self.up_since = awake.now()
        """When that was, and since when all reads were (awake seconds)."""

    @property
    def known(self) -> Snapshot | None:
        """The last good snapshot; None before the first."""
        return self._remembered.memory.known

    @property
    def is_up(self) -> bool:
        """Whether the last read could be done, and believed: only then is anything written."""
        return self.status.state == "up"

    def on_change(self, listener: Callable[[Snapshot], object]) -> None:
        """Calls it with each new snapshot that holds something else than the last one."""
        self._listeners.append(listener)

    def look_soon(self) -> None:
        """Something may be new."""
        self._look_now.set()

    # -- the loops

    async def run(self) -> None:
        """Reads until cancelled."""
        while True:
            self._look_now.clear()
            await beating(self.look())
            self.looked.set()
            await asyncio.sleep(_LEAST_GAP_S)
            heartbeat()
            pause_s = min(_AFTER_FAILURE.delay_s(self._failures) or self._read_every_s, self._read_every_s)
            await awake.until_set(self._look_now, pause_s)

    async def follow(self, topic: str) -> None:
        """Takes hints about one topic until cancelled. That they end is no news: the next read tells why."""
        while True:
            known = self.known
            if known is None or not self.is_up:
                await awake.rest(self._read_every_s / 4)
                continue
            try:
                async for removed in self._store.watch(topic, known.revision):
                    self._removed |= removed
                    self._look_now.set()
            except StoreError:
                await awake.rest(1.0)
            self._look_now.set()
            await asyncio.sleep(_LEAST_GAP_S)

    def tell(self) -> None:
        """Has everybody who wants to know of changes learn what is known, as after a start."""
        if self.known is not None:
            self._tell()

    # -- reading

    async def look(self) -> None:
        """One read. Never raises StoreError: `status` says what came of it."""
        memory = self._remembered.memory
        try:
            seen = await self._read_changes(memory.known) or await self._read_whole()
            verdict = judge(memory, seen)
            if verdict.is_new:
                await self._begin()
                seen = await self._read_whole()
                verdict = judge(memory, seen)
            if verdict.refusal:
                if verdict.memory != memory:
                    self._remembered.remember(verdict.memory)
                raise _refused(verdict)
        except StoreError as error:
            self._note_failure(error)
            return
        self._note_success()
        self._take_in(seen)

    async def _read_whole(self) -> Snapshot:
        began = awake.now()
        seen = await self._store.read(*TOPICS, LINEAGE)
        self._read_whole_at = began
        return seen

    async def _read_changes(self, known: Snapshot | None) -> Snapshot | None:
        """The same by what has changed since the last read that was believed; None if it is time to read the whole."""
        since, removed, self._removed = self.read_revision, self._removed, {}
        is_due = awake.now() - self._read_whole_at >= self._read_every_s
        if known is None or not since or is_due or not self.is_up:
            return None
        gone = {key for key, revision in removed.items() if revision > since}
        before = replace(known, entries={key: it for key, it in known.entries.items() if key not in gone})
        return await self._store.read_changes(before, since, *TOPICS, LINEAGE)

    async def read_one(self, key: str) -> Entry | None:
        """One key as it is now. Raises StoreError if the store cannot be read, or not be believed."""
        return (await self.read_now(key)).entries.get(key)

    async def read_now(self, *prefixes: str) -> Snapshot:
        """What is below these prefixes now. Raises StoreError as `read_one`."""
        if self.known is None:
            await self.look()
        memory = self._remembered.memory
        if memory.known is None:
            raise StoreError(f"the store was not read yet: {self.status.reason or 'try again in a second'}")
        seen = await self._store.read(*prefixes, LINEAGE)
        verdict = judge(memory, seen)
        if verdict.refusal:
            self._look_now.set()
            raise StoreRefused(f"the store is not believed: {verdict.refusal}; {_cure(_refused(verdict))}")
        return seen

    async def swap(self, key: str, value: str | None, *, seen: int | None, lease: str | None = None) -> int:
        """Writes a key, or removes it for None, if its revision is still `seen`; the revision of that write.

        Raises StoreConflict, StoreError; also if the store is not believed.
        """
        before = await self.read_one(key)
        if (before.revision if before is not None else None) != seen:
            await self.look()
            raise StoreConflict(f"'{key.rpartition('/')[2]}' was changed meanwhile")
        revision = await self._store.swap(key, value, seen=seen, lease=lease)
        self.note_write(key, value, revision)
        return revision

    def note_write(self, key: str, value: str | None, revision: int) -> None:
        """We have just written this: it holds before the next read tells."""
        memory = self._remembered.memory
        before = memory.known.entries.get(key) if memory.known else None
        if memory.known is None or (before is not None and before.revision >= revision):
            return
        self._remembered.remember(replace(memory, known=memory.known.with_entry(key, value, revision)))
        self._tell()

    # -- what an operator decides

    async def accept(self, *, refill: bool) -> int:
        """Believes the store as it is from now on, at every gateway; first, with `refill`, what this gateway knows of
        lasting keys is put in the place of what the store has of them. How many keys that changed.

        Raises StoreError, ValueError if the store is believed as it is.
        """
        seen = await self._store.read(*TOPICS, LINEAGE)
        memory = self._remembered.memory
        verdict = judge(memory, seen)
        if not verdict.refusal:
            raise ValueError("the store is believed as it is")
        if verdict.is_later:
            raise StoreTooNew(f"{verdict.refusal}; {_UPGRADE}")
        changed = await self._refill(seen, memory) if refill else 0
        ours, theirs = lineage_of(memory.known) if memory.known else None, lineage_of(seen)
        before = [it for one in (theirs, ours) if one is not None for it in (*one.ancestors, one.id)]
        entry = seen.entries.get(LINEAGE)
        lineage = Lineage(secrets.token_hex(8), tuple(dict.fromkeys(before)))
        await self._store.swap(LINEAGE, lineage.to_json(), seen=entry.revision if entry else None)
        self._logger.warning("store.accepted", reason=verdict.refusal, refilled=changed)
        await self.look()
        return changed

    async def _refill(self, seen: Snapshot, memory: Memory) -> int:
        known = memory.known.entries if memory.known else {}
        wanted = {key: it.value for key, it in known.items() if key.startswith(LASTING)}
        there = {key: it for key, it in seen.entries.items() if key.startswith(LASTING)}
        changed = 0
        for key in sorted({*wanted, *there}):
            before, value = there.get(key), wanted.get(key)
            if (before.value if before else None) != value:
                await self._store.swap(key, value, seen=before.revision if before else None)
                changed += 1
        return changed

    # -- what came of a read

    async def _begin(self) -> None:
        try:
            await self._store.swap(LINEAGE, Lineage(secrets.token_hex(8)).to_json(), seen=None)
        except StoreConflict:
            return  # Another gateway has begun it: as well.
        self._logger.info("store.begun")

    def _take_in(self, seen: Snapshot) -> None:
        before = self.known
        if before is not None and lineage_of(before) == lineage_of(seen) and seen.revision < before.revision:
            self._look_now.set()  # Read before a write of ours, which it does not have yet.
            return
        self.read_revision, self.read_at = seen.revision, awake.now()
        if before is not None and _texts(before.entries) == _texts(seen.entries):
            self._remembered.note(Memory(seen))
        else:
            self._remembered.remember(Memory(seen))
            self._tell()

    def _tell(self) -> None:
        assert self.known is not None
        for listener in self._listeners:
            listener(self.known)

    def _note_failure(self, error: StoreError) -> None:
        self._failures += 1
        self._errors.labels(error.kind).inc()
        state: StoreState = "refused" if isinstance(error, StoreRefused) else "away"
        if isinstance(error, StoreRefused):
            reason = f"the store is not believed: {error}; nothing changes until an operator says: {_cure(error)}"
        else:
            reason = (
                f"the store cannot be read: {error}; nothing changes meanwhile: PUT, DELETE and `key --store` answer"
                " 503, and no drain is safe"
            )
        if self._problem.set(reason):
            self._logger.error("store.refused" if state == "refused" else "store.away", reason=str(error))
        since = self.status.since if self.status.state == state else awake.monotonic()
        self.status = StoreStatus(state, since, self.status.read_at, str(error))

    def _note_success(self) -> None:
        self._failures = 0
        now = awake.monotonic()
        if not self.is_up:
            self.up_since = awake.now()
        if self._problem.set("") or self.status.state != "up":
            self._logger.info("store.up", away_s=round(now - self.status.since, 1))
        self.status = StoreStatus("up", self.status.since if self.is_up else now, now)


def _refused(verdict: Verdict) -> StoreRefused:
    return StoreTooNew(verdict.refusal) if verdict.is_later else StoreRefused(verdict.refusal)


def _cure(error: StoreRefused) -> str:
    return _UPGRADE if isinstance(error, StoreTooNew) else _CURE


def _texts(entries: Mapping[str, Entry]) -> dict[str, str]:
    return {key: entry.value for key, entry in entries.items()}
