"""What a service reaches the world through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.hold.queue import Gates
from gateway_sidecar.control.replicas.asking import Probe
from gateway_sidecar.control.replicas.bridging import FleetTable, Keys, Links, NoTable, Peers
from gateway_sidecar.control.replicas.drain import FleetAsks, NobodyAsks
from gateway_sidecar.control.replicas.notes import ReadOverrides
from gateway_sidecar.control.replicas.tenure import BridgeHosts
from gateway_sidecar.control.routers.process import PrivatePorts
from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.tunnels import PathOf
from gateway_sidecar.sources.listing import Source


class Switches(Links, Gates, Protocol):
    """nginx, as one service has it: where bridges lead, whether requests wait, and which router they go to."""

    def point(self, service: str, slot: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ServiceAdapters:
    """All of it, for one service.

    hosts: where bridges listen.
    make_router: a router for a slot, not started yet, that calls what it is given whenever its state changes.
    read_overrides: reads a `<replica>.yaml` for a socket of this owner. Raises ConfigError.
    path_of: how a tunnel is.
    move_address: makes nginx serve a service's address for its routers as they are now. Raises RouterUnavailable.
    touch: called when there is something new to write down.
    asks: the drains that all gateways of the fleet were asked for. table: the ports that they use alike.
    """

    source: Source
    probe: Probe
    switches: Switches
    leases: PortLeases
    peers: Peers
    keys: Keys
    hosts: BridgeHosts
    make_router: Callable[[ServiceSettings, str, Callable[[], None]], Router]
    private_ports: PrivatePorts
    read_overrides: ReadOverrides
    path_of: PathOf
    move_address: Callable[[str], Awaitable[None]]
    touch: Callable[[], None]
    asks: FleetAsks = field(default_factory=NobodyAsks)
    table: FleetTable = field(default_factory=NoTable)
