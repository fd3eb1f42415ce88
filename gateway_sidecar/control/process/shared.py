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
from gateway_sidecar.telemetry.metrics import Metrics
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


def measure_ports(leases: PortLeases, metrics: Metrics) -> None:
    """Has the metrics say how the bridge ports are used."""
    ports = metrics.bridge_ports
    ports.labels("leased").set_function(lambda: len(leases.leased))
    ports.labels("quarantined").set_function(lambda: len(leases.quarantined))
    ports.labels("free").set_function(lambda: leases.size - len(leases.leased) - len(leases.quarantined))
    metrics.bridge_port_share.set_function(lambda: leases.share)
