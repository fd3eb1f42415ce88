"""The ports that all gateways use alike: one table in the store (`ports`), which any of them brings up to date.

A replica never waits long for it. Where the store is away, or the table's port is somebody else's here, this gateway
takes a port of its own, and the replica keeps that for its stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.reflector import PORTS, REPLICAS, StoreReflector
from gateway_sidecar.control.fleet.replicas import SharedReplicas
from gateway_sidecar.control.replicas.bridging import FleetPort
from gateway_sidecar.domain.fleet_ports import PortNeeds, PortsSeen, PortTable, next_table
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import StoreConflict, StoreError
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, beating, heartbeat

Has = Callable[[], Mapping[str, int]]
"""SERVICE/REPLICA -> the port that a replica of the API has here."""
_PATIENCE_S = 2.0
"""So long a replica waits for a port of the table; then it takes one of this gateway's own."""
_GAP_S = 0.01  # A crowd of replicas that comes at once is one change of the table.
_NO_STAY = ""
"""In the place of a stay that was told a port: one that there was not here."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A port is wanted since then (awake seconds), and not this one."""

    since: float
    not_this: int | None = None


class FleetPorts:
    """The table, as it is known (a `FleetTable`)."""

    marks = True

    def __init__(
        self,
        store: Store,
        reflector: StoreReflector,
        membership: Membership,
        replicas: SharedReplicas,
        leases: PortLeases,
    ) -> None:
        self._store = store
        self._reflector = reflector
        self._membership = membership
        self._replicas = replicas
        self._leases = leases
        self._common = frozenset(leases.free[: leases.size // 2])
        self._requests: dict[str, _Request] = {}
        self._told: dict[str, tuple[int, str]] = {}
        """SERVICE/REPLICA -> its port in the table, and the first stay here that was told so, whatever port it took."""
        self._entries: dict[str, RawEntry] = {}
        """SERVICE/REPLICA -> its entry, as it was when it was looked at last."""
        self._due = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self.table = PortTable()
        leases.set_apart(self._common, ())
        reflector.on_change(self._take_in)

    # -- what bridges ask

    def port_of(self, service: str, replica: ReplicaId, owner: str, entry: RawEntry | None) -> int | FleetPort:
        """The replica's port at every gateway; whether to wait for it, or to take another one, where there is none.

        A port that a stay before this one was told is the last engine's, also where that stay took another one: else a
        gateway that was out of step once would take at each turn what the others are giving up.

        An engine that was found by an entry which the store lists no more is told none: another look is on its way, and
        the port may be meant for the engine that it finds elsewhere.
        """
        key = f"{service}/{replica}"
        port, request = self.table.current.get(key), self._requests.get(key)
        if self._replicas.is_outdated(service, replica, entry):
            port = None
        is_free_to_ask = self._reflector.is_up and (request is None or request.not_this is None)
        if port is not None and is_free_to_ask and self._is_anothers(key, port, owner):
            request = self._request(key, port)
        if port is not None and (request is None or request.not_this != port):
            self._requests.pop(key, None)
            self._told[key] = (port, owner)
            return port
        if not self._reflector.is_up or (request is not None and awake.now() - request.since > _PATIENCE_S):
            self._requests.pop(key, None)
            return FleetPort.OWN
        if request is None:
            self._request(key, None)
        return FleetPort.WAIT

    def ask_next(self, service: str, replica: ReplicaId, not_this: int) -> None:
        """The replica's engine before this one has its port still: the next one gets another."""
        self._request(f"{service}/{replica}", not_this)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it whenever the table has changed."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """The opposite of `listen`."""
        self._listeners.remove(listener)

    @property
    def told(self) -> Mapping[str, tuple[int, str]]:
        """For the next daemon: SERVICE/REPLICA -> its port in the table, and the first stay here that was told so."""
        return self._told

    def recall(self, told: Mapping[str, tuple[int, str]]) -> None:
        """What an earlier daemon of this boot had told. A port that the table has no more means nothing."""
        self._told = {**told, **self._told}

    # -- what the others are told

    def says(self) -> PortsSeen:
        """Which ports that rest in the table this gateway still holds."""
        return PortsSeen(self.table.number, frozenset(port for port in self.table.rests if self._leases.holds(port)))

    # -- the table

    async def run(self, has: Has) -> None:
        """Brings it up to date until cancelled."""
        while True:
            heartbeat()
            self._due.clear()
            if self._reflector.is_up and self._membership.joined.is_set():
                await beating(self._bring_up_to_date(has))
            await asyncio.sleep(_GAP_S)
            await awake.until_set(self._due, LOOK_S)

    async def _bring_up_to_date(self, has: Has) -> None:
        known = self._reflector.known
        if known is None:
            return
        replicas = {key.removeprefix(REPLICAS) for key in known.entries if key.startswith(REPLICAS)}
        wants = {key: request.not_this for key, request in self._requests.items()}
        free = self._leases.free if wants else ()
        common = [port for port in free if port in self._common]
        needs = PortNeeds(wants, has(), replicas, common, [port for port in free if port not in self._common])
        table = next_table(self.table, needs, self._said())
        if table is self.table:
            return
        entry = known.entries.get(PORTS)
        try:
            revision = await self._store.swap(PORTS, table.to_json(), seen=entry.revision if entry else None)
        except StoreConflict:
            await self._reflector.look()
            self._due.set()
        except StoreError:
            return  # The next round tells.
        else:
            self._reflector.note_write(PORTS, table.to_json(), revision)

    def _said(self) -> list[PortsSeen | None]:
        it = self._membership
        may_come_back = any(gone_s < it.grace_s for gone_s in it.gone_s.values())
        return [self.says(), *(other.ports for other in it.others), *([None] if may_come_back else [])]

    def _is_anothers(self, key: str, port: int, owner: str) -> bool:
        """Whether another stay of this replica was told this port."""
        told = self._told.get(key)
        return told is not None and told[0] == port and told[1] != owner

    def _request(self, key: str, not_this: int | None) -> _Request:
        request = self._requests[key] = _Request(awake.now(), not_this)
        self._due.set()
        return request

    def _note_moves(self) -> None:
        """The port that the table has of a replica that was put elsewhere is that of the engine before.

        A gateway that could not reach that one was never told the port, and would take it for the next engine.
        """
        entries = {}
        for key, port in self.table.current.items():
            service, _, replica = key.partition("/")
            before, entry = self._entries.get(key), self._replicas.of(service).entries.get(ReplicaId(replica))
            if entry is not None:
                entries[key] = entry
                if before is not None and before is not entry and _place_in(before) != _place_in(entry):
                    self._told[key] = (port, _NO_STAY)
        self._entries = entries

    def _take_in(self, snapshot: Snapshot) -> None:
        self._note_moves()
        entry = snapshot.entries.get(PORTS)
        table = PortTable.from_json(entry.value) if entry is not None else None
        if (table or PortTable()) == self.table:
            return
        self.table = table or PortTable()
        current = self.table.current
        self._told = {key: told for key, told in self._told.items() if current.get(key) == told[0]}
        self._leases.set_apart(self._common, self.table.taken)
        self._membership.touch()
        for listener in self._listeners:
            listener()


def _place_in(entry: RawEntry) -> tuple[object, object]:
    return entry.get("socket"), entry.get("ssh")
