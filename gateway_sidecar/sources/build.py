"""A service's settings -> its source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gateway_sidecar.config import Described, ServiceSettings, ToldEntry, read_inventory, read_told, tunnel_to
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.sources.described import FixedReplicas, SocketOf
from gateway_sidecar.sources.inventory import Inventory
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.sources.several import SeveralSources, Source
from gateway_sidecar.sources.socket_pattern import SocketPattern
from gateway_sidecar.sources.told import NAME, Told, ToldReplicas


def sources_of(service: ServiceSettings, socket_of: SocketOf, own: OwnSockets) -> Mapping[str, Source]:
    """The sources that a service's settings name, in order of precedence."""
    replicas = service.replicas
    found: dict[str, Source] = {}
    if replicas.sockets is not None:
        found["sockets"] = SocketPattern(str(replicas.sockets), own)
    if replicas.ssh:
        described = {
            ReplicaId(replica): Described(
                tunnel_to(f"{service.name}/{replica}", ssh, replicas.ssh_defaults), Overrides()
            )
            for replica, ssh in replicas.ssh.items()
        }
        found["ssh"] = FixedReplicas("ssh", described, socket_of, own)
    if replicas.inventory is not None:
        read = partial(read_inventory, service=service.name, defaults=replicas.ssh_defaults)
        found["inventory"] = Inventory("inventory", Path(replicas.inventory), read, socket_of, own)
    return found


def source_of(service: ServiceSettings, socket_of: SocketOf, told: Told, own: OwnSockets) -> Source:
    """All of them as one, and after them what the admin API was told."""

    def read(entry: ToldEntry, replica: ReplicaId) -> Described:
        return read_told(entry, service.name, replica, service.replicas.ssh_defaults)

    return SeveralSources({**sources_of(service, socket_of, own), NAME: ToldReplicas(told, read, socket_of, own)})
