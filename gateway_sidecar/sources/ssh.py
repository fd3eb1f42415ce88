"""Replicas behind SSH servers, as the settings name them; the daemon opens a tunnel to each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial

from pydantic import Field

from gateway_sidecar.config.tunnels import SshDefaults, SshReplica, SshReplicas, tunnel_to
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.sources.base import Given, SourceKind
from gateway_sidecar.sources.described import listing_of
from gateway_sidecar.sources.entry import Described
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision.own_thread import OwnThread

_PATIENCE_S = 5.0


class SshReplicaSource:
    """Replicas that are there as long as the settings are (a source)."""

    def __init__(self, described: Mapping[ReplicaId, Described], given: Given) -> None:
        self._described = described
        self._given = given
        self._thread = OwnThread(f"source {SOURCE.name}")

    async def look(self) -> Listing:
        """What is there now. Never raises."""
        look = partial(listing_of, self._described, SOURCE.name, self._given.socket_of, self._given.own)
        try:
            return await self._thread.run(look, patience_s=_PATIENCE_S)
        except TimeoutError:
            return Listing(blind="the file system of a replica's socket does not answer")

    async def hints(self) -> AsyncIterator[None]:
        """Yields once: nothing changes."""
        yield


def _build(replicas: Mapping[str, SshReplica], given: Given) -> SshReplicaSource:
    described = {
        ReplicaId(replica): Described(tunnel_to(f"{given.service}/{replica}", ssh, given.ssh_defaults), Overrides())
        for replica, ssh in replicas.items()
    }
    return SshReplicaSource(described, given)


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
            description="Replicas behind SSH servers, by id; the daemon opens a tunnel to each.",
            examples=[{"r1": {"host": "gpu7.example.net", "forward": "127.0.0.1:8000"}}],
        ),
    ),
    build=_build,
    check=_check,
    show=lambda replicas: counted(len(replicas), "SSH server"),
)
