"""Replicas behind SSH servers, as the settings name them; the daemon opens a tunnel to each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from pydantic import Field

from gateway_sidecar.config.tunnels import SshDefaults, SshReplica, SshReplicas, tunnel_to
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.sources.base import Given, SourceKind
from gateway_sidecar.sources.described import tunnelled
from gateway_sidecar.sources.listing import Listing


class TunnelledReplicas:
    """Replicas that are there as long as the settings are (a source)."""

    def __init__(self, replicas: Mapping[str, SshReplica], given: Given) -> None:
        found = {}
        for name, ssh in replicas.items():
            tunnel = tunnel_to(f"{given.service}/{name}", ssh, given.ssh_defaults)
            found[ReplicaId(name)] = tunnelled(ReplicaId(name), tunnel, SOURCE.name, given, Overrides())
        self._listing = Listing(found)

    async def look(self) -> Listing:
        """Always the same."""
        return self._listing

    async def hints(self) -> AsyncIterator[None]:
        """Yields once: nothing changes."""
        yield


def _check(replicas: Mapping[str, SshReplica], defaults: SshDefaults) -> None:
    for replica, ssh in replicas.items():
        try:
            tunnel_to(replica, ssh, defaults)
        except ValueError as error:
            raise ValueError(f"ssh.{replica}: {error}") from None


SOURCE: SourceKind[Mapping[str, SshReplica]] = SourceKind(
    name="ssh",
    setting=(
        SshReplicas,
        Field(
            default={},
            description="Replicas behind SSH servers, by id. The daemon opens a tunnel to each.",
            examples=[{"r1": {"host": "gpu7.example.net", "forward": "127.0.0.1:8000"}}],
        ),
    ),
    build=TunnelledReplicas,
    check=_check,
    show=lambda replicas: counted(len(replicas), "SSH server"),
)
