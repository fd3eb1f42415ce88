"""Drains that the whole fleet is asked for: `drains/SERVICE/REPLICA`.

Who is asked writes the key, and every gateway that is alive says in its own key what still needs the engine there
(`Gateway.drains`). The key stays until a `resume`, or until no gateway has that engine any more.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.reflector import DRAINS, StoreReflector
from gateway_sidecar.control.fleet.replicas import SharedReplicas
from gateway_sidecar.control.replicas.drain import DrainReport, Drains
from gateway_sidecar.domain.fleet import (
    AskedDrain,
    DrainAt,
    DrainSeen,
    connections,
    drain_elsewhere,
    drains_in,
    is_over,
)
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import StoreConflict, StoreError
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger

Says = Callable[[str, AskedDrain], DrainSeen]
"""What this gateway has to say of a drain of SERVICE/REPLICA."""
Until = Callable[[Callable[[], bool], float], Awaitable[bool]]
"""Whether a condition came to hold within so many seconds (`Service.until`)."""
_TRIES = 5
"""As for a PUT: whoever else writes has won once by then."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One request that waits for the fleet. `trouble`: why the others could not be asked."""

    key: str
    asked: AskedDrain
    began: float
    revision: int = 0
    trouble: str = ""


class FleetDrains:
    """What the fleet was asked for (a `FleetAsks`)."""

    def __init__(
        self, store: Store, reflector: StoreReflector, membership: Membership, replicas: SharedReplicas
    ) -> None:
        self._store = store
        self._reflector = reflector
        self._membership = membership
        self._replicas = replicas
        self._written: dict[str, int] = {}
        """SERVICE/REPLICA -> the revision of a drain that was asked for here, until it was read."""
        self._listeners: list[Callable[[], None]] = []
        self._by_service: Mapping[str, Mapping[ReplicaId, AskedDrain]] | None = None
        self._waiting: Counter[str] = Counter()
        self._logger = get_logger()
        self.held: Mapping[str, AskedDrain] = {}
        """SERVICE/REPLICA -> the drain that was asked for."""
        reflector.on_change(self._take_in)

    # -- what services hear

    def asked_of(self, service: str) -> Mapping[ReplicaId, AskedDrain] | None:
        """The drains of a service's replicas; None while nothing is known of the store."""
        return None if self._by_service is None else self._by_service.get(service, {})

    def is_outdated(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> bool:
        """Whether the store lists another entry than the one that an engine was found by."""
        return self._replicas.is_outdated(service, replica, entry)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it whenever other drains are asked for than before."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """The opposite of `listen`."""
        self._listeners.remove(listener)

    # -- what is asked here

    async def drain(self, of: Drains, replica: ReplicaId, timeout_s: float, until: Until) -> DrainReport:
        """As `Drains.drain`, at every gateway of the fleet. Raises KeyError."""
        began, ends = awake.monotonic(), awake.now() + timeout_s
        with self.waiting(of.service, replica):
            asking, report = await asyncio.gather(self.ask(of.service, replica), of.drain(replica, timeout_s))
            report = await self.finish(of, report, asking, max(0.0, ends - awake.now()), until)
        return replace(report, took_s=awake.monotonic() - began)

    @contextmanager
    def waiting(self, service: str, replica: ReplicaId) -> Iterator[None]:
        """Somebody waits for the fleet meanwhile: what was asked for stays, also if no gateway has an engine for it."""
        key = f"{service}/{replica}"
        self._waiting[key] += 1
        try:
            yield
        finally:
            self._waiting[key] -= 1

    async def ask(self, service: str, replica: ReplicaId) -> Asking:
        """Asks every gateway to drain a replica. Never raises StoreError: `trouble` says why that could not be."""
        key, began = f"{service}/{replica}", awake.now()
        asked = AskedDrain(secrets.token_hex(8), self._membership.name)
        try:
            revision = await self._write(key, asked.to_json())
        except StoreError as error:
            return Asking(key, asked, began, trouble=f"the other gateways could not be asked: {error}")
        self._written[key] = revision
        # Who is alive is judged by what was read after it was written, and so is which engine is meant: while the store
        # was away here, the replica may have been put elsewhere.
        await self._reflector.look()
        return Asking(key, asked, began, revision)

    async def finish(
        self, of: Drains, report: DrainReport, asking: Asking, timeout_s: float, until: Until
    ) -> DrainReport:
        """The report of this gateway's own drain, once all others are done or so many seconds are over."""
        ends, is_safe = awake.now() + timeout_s, partial(self._is_safe, of, asking)
        while not asking.trouble and await until(is_safe, max(0.0, ends - awake.now())):
            await self._reflector.look()  # What is known may be seconds old: its hints may miss things.
            if is_safe():
                break
        reason = "; ".join(dict.fromkeys(filter(None, [report.reason, *self._unsafe(of, asking)])))
        elsewhere = self._elsewhere(asking) or []
        return replace(report, drained=report.drained and not reason, elsewhere=elsewhere, reason=reason)

    async def take_back(self, of: Drains, replica: ReplicaId) -> None:
        """Nobody is asked for it any more. Raises StoreError if others may have been, and cannot be told; KeyError.

        A drain that this gateway alone was asked for, while the store was away, is its own to take back.
        """
        key = f"{of.service}/{replica}"
        try:
            await self._write(key, None)
        except StoreError:
            is_unread = self._written.get(key, 0) > self._reflector.read_revision
            if key in self.held or is_unread or not of.is_asked_here_alone(replica):
                raise

    @asynccontextmanager
    async def asked_once(self, service: str, replica: ReplicaId) -> AsyncIterator[Asking]:
        """Asks every gateway to drain a replica that was deleted, and takes that very drain back in the end.

        If the store is away then, that is done once it is back.
        """
        with self.waiting(service, replica):
            asking = await self.ask(service, replica)
            try:
                yield asking
            finally:
                if self.held.get(asking.key) == asking.asked:
                    await self._remove(asking.key, asking.asked)

    def _is_safe(self, of: Drains, asking: Asking) -> bool:
        return not self._unsafe(of, asking)

    def _unsafe(self, of: Drains, asking: Asking) -> list[str]:
        """Why it is not safe to stop the engine: for the sake of other gateways, or because it came back here."""
        if asking.trouble:
            return [asking.trouble]
        status, asked, found = self._reflector.status, self.held.get(asking.key), self._elsewhere(asking)
        away = [f"the store cannot be read: {status.reason}"] if not self._reflector.is_up else []
        if asked is None or found is None:
            return away or ["it was taken back meanwhile"]
        own = of.says(ReplicaId(asking.key.partition("/")[2]), asked.id)
        back = [] if own.is_safe else [f"{connections(own.in_flight)} in flight at this gateway"]
        return back + [f"{it.gateway}: {it.reason}" for it in found if not it.is_safe] + away

    def _elsewhere(self, asking: Asking) -> list[DrainAt] | None:
        """How the other gateways stand with it; None if that was not read yet, or the drain was taken back."""
        asked = self.held.get(asking.key)
        if asked is None or asking.trouble or self._reflector.read_revision < asking.revision:
            return None
        it, age_s = self._membership, awake.now() - asking.began
        return drain_elsewhere(asking.key, asked, it.others, it.gone_s, grace_s=it.grace_s, age_s=age_s)

    # -- what is over

    async def run(self, says: Says) -> None:
        """Removes what nobody holds any more, until cancelled."""
        while True:
            heartbeat()
            self._written = {key: it for key, it in self._written.items() if it > self._reflector.read_revision}
            others, grace_s = self._membership.others, self._membership.grace_s
            away = {name for name, gone_s in self._membership.gone_s.items() if gone_s < grace_s}
            names = away.union(it.name for it in others)
            for key, asked in list(self.held.items()) if self._reflector.is_up else ():
                is_ours = asked.gateway not in names
                if is_ours and not self._waiting[key] and is_over(key, asked, says(key, asked), others):
                    await beating(self._remove(key, asked))
            await awake.rest(LOOK_S)

    async def _remove(self, key: str, asked: AskedDrain) -> None:
        entry = self._reflector.known.entries.get(DRAINS + key) if self._reflector.known else None
        if entry is None or entry.value != asked.to_json():
            return
        try:
            revision = await self._store.swap(DRAINS + key, None, seen=entry.revision)
        except StoreError:
            return  # The next look tells.
        self._reflector.note_write(DRAINS + key, None, revision)

    async def _write(self, key: str, value: str | None) -> int:
        for _ in range(_TRIES):
            before = await self._reflector.read_one(DRAINS + key)
            if before is None and value is None:
                self._reflector.look_soon()
                return 0
            try:
                revision = await self._store.swap(DRAINS + key, value, seen=before.revision if before else None)
            except StoreConflict:
                continue
            if value is None:
                self._reflector.note_write(DRAINS + key, None, revision)
            return revision
        raise StoreError("other gateways ask for drains of the same replica all the time; try again")

    def _take_in(self, snapshot: Snapshot) -> None:
        held = drains_in(snapshot, DRAINS)
        if self._by_service is not None and held == self.held:
            return
        by_service: defaultdict[str, dict[ReplicaId, AskedDrain]] = defaultdict(dict)
        for key, asked in held.items():
            service, _, replica = key.partition("/")
            by_service[service][ReplicaId(replica)] = asked
        self.held, self._by_service = held, by_service
        self._membership.touch()
        for listener in self._listeners:
            listener()
