"""One occupant's stay behind one replica socket: from first sight until no connection to it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gateway_sidecar.domain.lifecycle import Against, Evidence
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    Foreign,
    Overrides,
    PeerAddress,
    ProbeResult,
    Ready,
    ReplicaId,
    ReplicaState,
)
from gateway_sidecar.domain.planning import OccupantView, Why, worker_urls
from gateway_sidecar.domain.progress import Answers, Work
from gateway_sidecar.sources.listing import Sighting


def owner_of(service: str, sighting: Sighting, generation: int) -> str:
    """The name a tenure's port is leased under."""
    it = sighting.occupant
    place = it.tunnel or f"{it.device}:{it.inode}:{it.born_ns}"
    return f"{service}/{sighting.replica}/{place}/{generation}"


class Presence(StrEnum):
    """What an occupant is to its replica."""

    PRESENT = "present"
    SUPERSEDED = "superseded"
    """The replica is elsewhere now, and this one serves until that one does."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class BridgeHosts:
    """The addresses that bridges listen on: each port is there twice, for HTTP and for bytes as they are."""

    http: str
    grpc: str

    def of(self, mode: ConnectionMode) -> str:
        """The one for engines that speak this."""
        return self.http if mode is ConnectionMode.HTTP else self.grpc


def worker_url(host: str, port: int, mode: ConnectionMode) -> str:
    """A bridge's address in the scheme that the engine behind it speaks."""
    shown = f"[{host}]" if ":" in host else host
    return f"{mode.value}://{shown}:{port}"


@dataclass(frozen=True, slots=True)
class SavedTenure:
    """What the next daemon needs to go on with a tenure. `leaving` says that the occupant was gone already.

    port: None for a drained occupant that was never identified as an engine.
    asked: the drain of the fleet, as `Draining` has it.
    """

    sighting: Sighting
    generation: int
    port: int | None
    facts: EngineFacts | None
    drain: bool
    leaving: bool = False
    peer: PeerAddress | None = None
    asked: str | None = None


@dataclass(slots=True, eq=False)
class Notes:
    """What is at and beside its socket. Written by the notes' reader.

    of: the sighting that `overrides` were read of; None before the first time.
    """

    of: Sighting | None = None
    handle_problem: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    problem: str | None = None

    @property
    def read(self) -> bool:
        """Whether what the operator wrote was read once."""
        return self.of is not None


@dataclass(slots=True, eq=False)
class Liveness:
    """The connection that tells at once when its engine ends, and when the next one is due. Written by `liveness.py`.

    life_s: how long the last one lasted.
    """

    connection: asyncio.Transport | None = None
    due: float = 0.0
    life_s: float = 0.0
    is_connecting: bool = False


@dataclass(slots=True, eq=False)
class Probed:
    """What its engine has said, and when to ask again. Written by the prober.

    asked: whether `result` came from the occupant's side, and not from a tunnel that was down.
    health_asked_at: when it was last asked for its health (awake seconds); while `task` asks it, the time before.
    answers: how the requests that it got have ended.
    timer: when the prober comes back to it, which is at `due`.
    due: when to ask it next; never, while it is drained.
    other: what somebody else says who answers behind the same socket now: another engine that is ready, or no engine.
    ejected: what proved that it has to leave, or has proved it anew since; None while it may stay.
    access: how it is asked.
    """

    facts: EngineFacts | None = None
    result: ProbeResult | None = None
    asked: bool = False
    other: Ready | Foreign | None = None
    evidence: Evidence = field(default_factory=Evidence)
    ejected: Against | None = None
    ejected_at: float = 0.0
    task: asyncio.Task[None] | None = None
    due: float = 0.0
    health_asked_at: float = 0.0
    answers: Answers = field(default_factory=Answers)
    timer: asyncio.TimerHandle | None = None
    identify_next: bool = True
    access: Access = field(default_factory=Access)
    liveness: Liveness = field(default_factory=Liveness)


@dataclass(slots=True, eq=False)
class Traffic:
    """What its requests show of it. Written by the traffic watch (`control/process/traffic_watch.py`)."""

    work: Work = field(default_factory=Work)


@dataclass(slots=True, eq=False)
class Bridged:
    """What leads to it. Written by the bridging.

    leads_to: what the bridge's link leads to: the socket, or the nginx that shows the key.
    mark: by which the link says which replica it is for.
    peer: the address that it is advertised under; the same for the whole stay, once a router was told of it.
    peer_is_ours: whether that address is kept for this stay; until then it has no URL.
    peer_problem: why the address does not lead to it.
    peer_refused: whether that is because this machine needs the address itself.
    key_problem: why the engine is not shown its API key.
    named: the URL at which the access log knows its replica.
    """

    port: int | None = None
    linked: bool = False
    leads_to: Path | None = None
    mark: str = ""
    problem: str | None = None
    key_problem: str | None = None
    peer: PeerAddress | None = None
    peer_is_ours: bool = False
    peer_problem: str | None = None
    peer_refused: bool = False
    named: str | None = None


@dataclass(slots=True, eq=False)
class Draining:
    """How far its leaving is. Written by the drains.

    asked: the last drain of the fleet that was asked for during this stay; with `requested` unset it was meant for
        another engine. None where only this gateway was asked.
    done: set when it is safe to stop the engine.
    out_at: since when no router lists its worker any more, once it has to go; monotonic, to tell what came first.
    in_flight: connections on its bridge, counted after that; None before.
    quiet_since: since when that has been zero.
    """

    requested: bool = False
    asked: str | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    out_at: float | None = None
    in_flight: int | None = None
    quiet_since: float | None = None


@dataclass(slots=True, eq=False)
class Status:
    """What `status` and the events say of it. Written by the reporting."""

    state: ReplicaState = ReplicaState.SEEN
    since: float = 0.0
    reason: str = ""
    served: bool = False


@dataclass(slots=True, eq=False)
class Tenure:
    """What is known of one occupant: its identity, which the registry writes, and one record for each other writer.

    Times are awake seconds, if nothing else is said.
    owner: the name its port is leased under; unique, and the same after a restart of the daemon.
    handle: an O_PATH descriptor of the socket. It keeps the inode from being recycled while we compare inodes, and
        `/proc/self/fd/<handle>` is an address of this very occupant, however long the socket's path is.
    gone_because: why it is gone, once it is.
    """

    key: int
    owner: str
    generation: int
    sighting: Sighting
    seen_at: float
    handle: int | None
    hosts: BridgeHosts
    presence: Presence = Presence.PRESENT
    gone_because: Why | None = None
    notes: Notes = field(default_factory=Notes)
    probe: Probed = field(default_factory=Probed)
    traffic: Traffic = field(default_factory=Traffic)
    bridge: Bridged = field(default_factory=Bridged)
    drain: Draining = field(default_factory=Draining)
    status: Status = field(default_factory=Status)

    @property
    def replica(self) -> ReplicaId:
        """The replica that its occupant is, or was."""
        return self.sighting.replica

    @property
    def gone(self) -> bool:
        """Whether its occupant is not its replica any more, and does not serve in the meantime either."""
        return self.presence is Presence.GONE

    @property
    def address(self) -> str | None:
        """A connectable path of the occupant, short enough for any socket API; None if there is none.

        A tunnel's socket is ours and stays at its short path, whatever inode it has: it has no handle.
        """
        if self.sighting.tunnel is not None:
            return None if self.gone else str(self.sighting.socket)
        return None if self.handle is None else f"/proc/self/fd/{self.handle}"

    @property
    def bridge_host(self) -> str:
        """Where its bridge listens, as far as is known what the engine speaks."""
        return self.hosts.of(self.probe.facts.connection_mode if self.probe.facts else ConnectionMode.HTTP)

    @property
    def base_url(self) -> str | None:
        """Its bridge, or what it is advertised under, in the scheme that the engine speaks."""
        return None if self.probe.facts is None else self.url_as(self.probe.facts.connection_mode)

    @property
    def urls(self) -> Mapping[str, str | None]:
        """Its workers: URL -> which of the engine's names; None is the first."""
        base, facts, peer = self.base_url, self.probe.facts, self.bridge.peer
        if base is None or facts is None:
            return {}
        return worker_urls(base, facts, self.notes.overrides, bridged=peer is None or not peer.direct)

    @property
    def url(self) -> str | None:
        """The URL of its first worker."""
        return next(iter(self.urls), None)

    def url_as(self, mode: ConnectionMode) -> str | None:
        """The URL that the worker has, or would have, if its engine speaks this."""
        if self.bridge.port is None or (self.bridge.peer is not None and not self.bridge.peer_is_ours):
            return None
        host, port = (
            (self.hosts.of(mode), self.bridge.port)
            if self.bridge.peer is None
            else (self.bridge.peer.host, self.bridge.peer.port)
        )
        return worker_url(host, port, mode)

    @property
    def has_telling_bridge(self) -> bool:
        """Whether its bridge tells which requests failed: that of an HTTP engine without an address of its own.

        It does not tell of those that it could not connect for, and a router takes them for failures of the engine.
        """
        facts = self.probe.facts
        return facts is not None and facts.connection_mode is ConnectionMode.HTTP and self.bridge.peer is None

    @property
    def counted_at(self) -> frozenset[int | PeerAddress]:
        """Where connections to it end: its bridge's port and, if it has one, its advertised address."""
        places: list[int | PeerAddress] = [] if self.bridge.port is None else [self.bridge.port]
        if self.bridge.peer is not None and self.bridge.peer_is_ours:
            places.append(self.bridge.peer)
        return frozenset(places)

    @property
    def can_be_described(self) -> bool:
        """Whether the file beside the socket has been read, so that the registration is right."""
        return self.notes.read and self.notes.problem is None

    @property
    def moves(self) -> bool:
        """Whether the operator wants it advertised under another address than it is."""
        return self.can_be_described and self.notes.overrides.peer != self.bridge.peer and not self.gone

    @property
    def leaving(self) -> Why | None:
        """Why it has to leave the router, if it has to."""
        if self.gone_because is not None:
            return self.gone_because
        if self.drain.requested:
            return Why.DRAIN
        if self.bridge.peer_refused:
            return Why.ADDRESS
        return Why.UNREACHABLE if self.probe.ejected is not None else None

    def view(self, url: str | None = None, name: str | None = None) -> OccupantView:
        """The occupant for the planner, as the worker at `url`. Wanted is one that was ready when last asked and that
        we can describe.
        """
        return OccupantView(
            facts=self.probe.facts,
            wanted=isinstance(self.probe.result, Ready) and self.leaving is None and self.can_be_described,
            leaving=self.leaving,
            gone=self.gone,
            port=self.bridge.port,
            linked=self.bridge.linked,
            url=url or self.url,
            name=name,
            replica=self.replica,
            overrides=self.notes.overrides,
            in_flight=self.drain.in_flight,
            reachable=self.bridge.key_problem is None
            and (self.bridge.peer is None or (self.bridge.peer_is_ours and self.bridge.peer_problem is None)),
        )

    @property
    def was_engine(self) -> bool:
        """Whether it was found to be an engine, by us or by the earlier daemon that gave it its port."""
        return self.probe.facts is not None or self.bridge.port is not None
