"""Bridges the occupants of one service: the port, its symlink, the advertised address, and the key proxy. None of them
exists before the occupant was identified as an engine. Ports are leased for a tenure and rest afterwards; nginx only
follows the port's symlink. A failure is in the tenure's `problem`, and is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from gateway_sidecar.control.edge.key_proxies import KeyState
from gateway_sidecar.control.edge.peer_supervisor import PeerState
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.leases import NoFreePort, PortLeases
from gateway_sidecar.domain.mesh import mark_of
from gateway_sidecar.domain.model import Access, ConnectionMode, PeerAddress, ReplicaId
from gateway_sidecar.nginx.key_proxy import Keyed
from gateway_sidecar.sources.api import NAME as API
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.logs import get_logger

_WAITS = "waits for the port that all gateways use for it"
_RETRY_S = 1.0  # As loops rest after a fault (`PAUSE_S`): a port that others hold becomes free in seconds.
_RETRY_GAP_S = 0.02
"""However many wait for a port: together they ask 50 times a second for one."""


def needs_nginx(access: Access) -> bool:
    """Whether a bridge alone does not do for an engine."""
    return access.api_key is not None or access.prefix is not None or access.tls is True


class Links(Protocol):
    """Where each bridge leads."""

    def link(self, port: int, target: Path, mark: str = "") -> None: ...

    def unlink(self, port: int) -> None: ...

    def name(self, url: str, replica: str) -> None: ...

    def unname(self, url: str) -> None: ...

    def nameless(self, urls: Collection[str]) -> Collection[str]: ...


class Peers(Protocol):
    """The addresses that replicas are advertised under."""

    def request(self, address: PeerAddress, owner: str, replica: str, port: int, *, grpc: bool) -> PeerState: ...

    def withdraw(self, address: PeerAddress, owner: str) -> None: ...

    def listen(self, listener: Callable[[], None]) -> None: ...

    def unlisten(self, listener: Callable[[], None]) -> None: ...


class Keys(Protocol):
    """What shows engines their API keys."""

    def request(self, port: int, to: Keyed) -> KeyState: ...

    def withdraw(self, port: int) -> None: ...

    def listen(self, listener: Callable[[], None]) -> None: ...

    def unlisten(self, listener: Callable[[], None]) -> None: ...


class FleetPort(Enum):
    """What there is to do about a port, where the fleet's table names none."""

    WAIT = "wait"
    OWN = "take one of this gateway's own"


class FleetTable(Protocol):
    """The ports that all gateways of a fleet use alike: for replicas of the API, since all have these.

    marks: whether links say which replica they are for, so that URLs can mean the same at all of them.
    """

    marks: bool

    def port_of(self, service: str, replica: ReplicaId, owner: str, entry: RawEntry | None) -> int | FleetPort:
        """owner: the stay that it is for; the next one gets another port. entry: by which its engine was found."""
        ...

    def ask_next(self, service: str, replica: ReplicaId, not_this: int) -> None:
        """The replica's engine before this one has this port still."""
        ...

    def listen(self, listener: Callable[[], None]) -> None: ...

    def unlisten(self, listener: Callable[[], None]) -> None: ...


class NoTable:
    """A gateway that works alone takes its own ports."""

    marks = False

    def port_of(self, service: str, replica: ReplicaId, owner: str, entry: RawEntry | None) -> int | FleetPort:
        """Always its own."""
        return FleetPort.OWN

    def ask_next(self, service: str, replica: ReplicaId, not_this: int) -> None:
        """Never happens."""

    def listen(self, listener: Callable[[], None]) -> None:
        """There is nothing to hear."""

    def unlisten(self, listener: Callable[[], None]) -> None:
        """The opposite of `listen`."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What bridges are made of."""

    links: Links
    leases: PortLeases
    peers: Peers
    keys: Keys
    table: FleetTable


class Bridging:
    """The bridges of one service."""

    def __init__(self, service: str, edge: Edge, tenures: Registry, queue: WorkQueue[Key]) -> None:
        self._service = service
        self._links = edge.links
        self._leases = edge.leases
        self._peers = edge.peers
        self._keys = edge.keys
        self._table = edge.table
        self._queue = queue
        self._tenures = tenures
        self._preferred: dict[ReplicaId, int] = {}
        self._portless: set[int] = set()
        self._logger = get_logger(service=service)

    def listen(self) -> None:
        """Queues a tenure whenever its address or key proxy changed."""
        self._peers.listen(self._reconsider_addresses)
        self._keys.listen(self._reconsider_keys)
        self._table.listen(self._reconsider_portless)

    def unlisten(self) -> None:
        """The opposite of `listen`."""
        self._peers.unlisten(self._reconsider_addresses)
        self._keys.unlisten(self._reconsider_keys)
        self._table.unlisten(self._reconsider_portless)

    def restore(self, port: int, owner: str) -> bool:
        """Leases the port that an earlier daemon's tenure had; False where that cannot be."""
        return self._leases.restore(port, owner, service=self._service)

    def prefer(self, replica: ReplicaId, port: int) -> None:
        """The replica gets this port, if it is free by then."""
        self._preferred[replica] = port
        self._leases.save_for_last(port)

    def open(self, tenure: Tenure) -> None:
        """Leases a port and leads it to the occupant: at once or, if a key has to be shown, when that can be done."""
        if tenure.bridge.port is None and not self._lease(tenure):
            return
        self.ask_for_address(tenure)
        target = self._target(tenure)
        if target is not None and self._lead(tenure, target):
            tenure.bridge.linked = True
        self._name(tenure)

    def keep_up(self, tenure: Tenure) -> None:
        """Sees that the address and the key are as the tenure wants them."""
        if tenure.key in self._portless and not tenure.view().wanted:
            self._wait_no_more(tenure)
        self.ask_for_address(tenure)
        if tenure.bridge.linked and tenure.can_be_described:
            target = self._target(tenure)
            is_led = target == tenure.bridge.leads_to and tenure.bridge.mark == self._mark(tenure)
            if target is not None and not is_led and self._lead(tenure, target):
                self._withdraw_key(tenure)
        self._name(tenure)

    def close(self, tenure: Tenure) -> None:
        """Lets nothing new in; what is open goes on."""
        assert tenure.bridge.port is not None
        try:
            self._links.unlink(tenure.bridge.port)
        except OSError as error:
            self._trouble(tenure, f"cannot remove the bridge's symlink: {error}")
            return
        tenure.bridge.linked, tenure.bridge.problem = False, None

    def retry_s(self, tenure: Tenure) -> float | None:
        """In how many seconds to try again what could not be done."""
        return None if tenure.bridge.problem is None else max(_RETRY_S, len(self._portless) * _RETRY_GAP_S)

    def repair(self, linked: Container[int]) -> bool:
        """Makes the links again that are not among those there are; whether that was needed. Raises OSError."""
        removed = [
            t for t in self._tenures if t.bridge.linked and t.bridge.port is not None and t.bridge.port not in linked
        ]
        for tenure in removed:
            assert tenure.bridge.port is not None
            self._link(tenure, tenure.bridge.leads_to or tenure.sighting.place)
        named = {tenure.bridge.named: tenure for tenure in self._tenures if tenure.bridge.named is not None}
        nameless = self._links.nameless(named)
        for url in nameless:
            self._name(named[url], again=True)
        return bool(removed or nameless)

    def give_back(self, tenure: Tenure, late_until: float) -> None:
        """The occupant's stay is over. Its port rests while somebody holds a connection to it.

        Until `late_until` (awake seconds) a worker that was taken back may yet appear at its port.
        """
        if tenure.bridge.port is not None:
            self._leases.release(tenure.bridge.port, late_until)
            if tenure.drain.in_flight == 0:
                self._leases.note_quiet(tenure.bridge.port, awake.now())
            self._keys.withdraw(tenure.bridge.port)
        self._portless.discard(tenure.key)
        self._unname(tenure)
        self._withdraw_address(tenure)

    def abandon(self, tenure: Tenure) -> None:
        """The service is no more: nothing new gets in, and the port rests until it is quiet."""
        if tenure.bridge.port is not None:
            self._links.unlink(tenure.bridge.port)
            self._leases.release(tenure.bridge.port)
            self._keys.withdraw(tenure.bridge.port)
        self._unname(tenure)
        self._withdraw_address(tenure)

    def readdress(self, tenure: Tenure, peer: PeerAddress | None) -> None:
        """The occupant, whom no router knows yet, is advertised under another address."""
        self._withdraw_address(tenure)
        tenure.bridge.peer, tenure.bridge.peer_is_ours, tenure.bridge.peer_problem, tenure.bridge.peer_refused = (
            peer,
            False,
            None,
            False,
        )
        self.ask_for_address(tenure)

    def ask_for_address(self, tenure: Tenure) -> None:
        """Says, again, that the tenure's address is wanted, and learns how it stands with it."""
        if tenure.bridge.peer is None or tenure.bridge.port is None or tenure.probe.facts is None:
            return
        grpc = tenure.probe.facts.connection_mode is not ConnectionMode.HTTP
        replica = f"{self._service}/{tenure.replica}"
        state = self._peers.request(tenure.bridge.peer, tenure.owner, replica, tenure.bridge.port, grpc=grpc)
        tenure.bridge.peer_is_ours, tenure.bridge.peer_problem = state.ours, state.problem
        tenure.bridge.peer_refused = state.ours and state.refused

    def _withdraw_address(self, tenure: Tenure) -> None:
        if tenure.bridge.peer is not None:
            self._peers.withdraw(tenure.bridge.peer, tenure.owner)

    def _lease(self, tenure: Tenure) -> bool:
        try:
            tenure.bridge.port = self._port_for(tenure)
        except NoFreePort as error:
            self._portless.add(tenure.key)
            self._trouble(tenure, f"no free bridge port ({error}); widen bridges.ports")
            return False
        if tenure.bridge.port is None:
            self._portless.add(tenure.key)
            tenure.bridge.problem = _WAITS
            return False
        self._portless.discard(tenure.key)
        tenure.bridge.problem = None
        return True

    def _port_for(self, tenure: Tenure) -> int | None:
        """The fleet's port for the replica, if it can be had; None while that is being asked for. Raises NoFreePort."""
        service, replica, leases = self._service, tenure.replica, self._leases
        sighting, table = tenure.sighting, self._table
        is_for_all = sighting.source == API
        port = table.port_of(service, replica, tenure.owner, sighting.entry) if is_for_all else FleetPort.OWN
        if port is FleetPort.WAIT:
            return None
        if isinstance(port, int):
            if leases.claim(port, tenure.owner, service=service):
                return port
            holder = leases.leased.get(port, "")
            if leases.holds(port) and (not holder or holder.startswith(f"{service}/{replica}/")):
                self._table.ask_next(service, replica, port)
                return None
        return leases.acquire(tenure.owner, self._preferred.get(replica), service=service)

    def _wait_no_more(self, tenure: Tenure) -> None:
        self._portless.discard(tenure.key)
        tenure.bridge.problem = None

    def _target(self, tenure: Tenure) -> Path | None:
        """Where its link has to lead: to the socket, or to the nginx that knows its key, TLS or prefix."""
        assert tenure.bridge.port is not None
        access, facts, socket = tenure.probe.access, tenure.probe.facts, tenure.sighting.place
        if not needs_nginx(access):
            tenure.bridge.key_problem = None
            return socket
        if facts is None:
            return None
        occupant = tenure.sighting.occupant
        inode = (occupant.device, occupant.inode) if tenure.sighting.tunnel is None else None
        to = Keyed(socket, access, facts.connection_mode is ConnectionMode.GRPC, inode, tenure.handle)
        state = self._keys.request(tenure.bridge.port, to)
        tenure.bridge.key_problem = state.problem
        return state.listens_at

    def _withdraw_key(self, tenure: Tenure) -> None:
        """What showed a key is not needed any more once the bridge leads to the engine itself."""
        if tenure.bridge.port is not None and tenure.bridge.leads_to == tenure.sighting.place:
            self._keys.withdraw(tenure.bridge.port)

    def _lead(self, tenure: Tenure, target: Path) -> bool:
        assert tenure.bridge.port is not None
        try:
            self._link(tenure, target)
        except OSError as error:
            self._trouble(tenure, f"cannot make the bridge's symlink: {error}")
            return False
        tenure.bridge.leads_to, tenure.bridge.mark, tenure.bridge.problem = target, self._mark(tenure), None
        return True

    def _link(self, tenure: Tenure, target: Path) -> None:
        """Raises OSError."""
        assert tenure.bridge.port is not None
        self._links.link(tenure.bridge.port, target, self._mark(tenure))

    def _mark(self, tenure: Tenure) -> str:
        """What its URLs in a mesh are marked with; empty for one that only this gateway has."""
        is_shared = self._table.marks and tenure.sighting.source == API
        return mark_of(self._service, tenure.replica) if is_shared else ""

    def _name(self, tenure: Tenure, *, again: bool = False) -> None:
        """Has the access log name the replica. Without it lines have no name, which is no reason to serve nobody."""
        url = tenure.base_url
        if url is None or (url == tenure.bridge.named and not again):
            return
        with suppress(OSError):
            if tenure.bridge.named not in (None, url):
                self._unname(tenure)
            self._links.name(url, str(tenure.replica))
            tenure.bridge.named = url

    def _unname(self, tenure: Tenure) -> None:
        if tenure.bridge.named is not None:
            with suppress(OSError):
                self._links.unname(tenure.bridge.named)
            tenure.bridge.named = None

    def _trouble(self, tenure: Tenure, problem: str) -> None:
        before = None if tenure.bridge.problem == _WAITS else tenure.bridge.problem
        is_known = before is not None if tenure.bridge.port is None else before == problem
        if not is_known:  # Who holds how many ports changes all the time, and is no news of this replica.
            self._logger.error("replica.not_bridged", replica=tenure.replica, reason=problem)
        tenure.bridge.problem = problem

    def _reconsider_portless(self) -> None:
        for key in self._portless:
            self._queue.add(key, urgent=True)

    def _reconsider_addresses(self) -> None:
        for tenure in self._tenures:
            if tenure.bridge.peer is not None:
                self._queue.add(tenure.key)

    def _reconsider_keys(self) -> None:
        for tenure in self._tenures:
            if needs_nginx(tenure.probe.access):
                self._queue.add(tenure.key)
