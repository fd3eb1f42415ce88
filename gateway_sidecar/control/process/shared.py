"""What all services of a daemon share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway_sidecar.control.edge.destinations import Destinations
from gateway_sidecar.control.edge.key_proxies import KeyProxies
from gateway_sidecar.control.edge.peer_supervisor import PeerSupervisor
from gateway_sidecar.control.state.api_replicas import ReplicasOfApi
from gateway_sidecar.control.state.usage import UsageCollector
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.telemetry.problems import Problems
from gateway_sidecar.tunnels.fleet import TunnelFleet

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Shared:
    """Each of them once in a daemon. `fleet` is None for a gateway that works alone."""

    nginx: Nginx
    leases: PortLeases
    peers: PeerSupervisor
    destinations: Destinations
    keys: KeyProxies
    tunnels: TunnelFleet
    api: ReplicasOfApi
    usage: UsageCollector
    problems: Problems
    fleet: Fleet | None = None
