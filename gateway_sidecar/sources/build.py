"""A service's settings -> its sources, of whatever kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.kinds import SOURCES
from gateway_sidecar.sources.base import Given, SocketOf, SourceKind
from gateway_sidecar.sources.entry import ApiRecord
from gateway_sidecar.sources.listing import MergedSources
from gateway_sidecar.sources.placed import OwnSockets


def used_by(service: ServiceSettings) -> Iterator[tuple[SourceKind[Any], Any]]:
    """The kinds that a service has, in order of precedence, with what its settings say at each."""
    for kind in SOURCES:
        value = getattr(service.replicas, kind.name) if kind.setting is not None else None
        if value or kind.setting is None:
            yield kind, value


def shown_of(service: ServiceSettings) -> dict[str, str]:
    """Where the settings have replicas looked for, by kind, in words."""
    return {kind.name: kind.show(value) for kind, value in used_by(service) if kind.setting is not None}


def given_to(service: ServiceSettings, socket_of: SocketOf, own: OwnSockets, record: ApiRecord) -> Given:
    """What the service's sources are built with."""
    return Given(service.name, service.replicas.ssh_defaults, socket_of, own, record)


def source_of(service: ServiceSettings, given: Given) -> MergedSources:
    """All sources of a service as one."""
    return MergedSources({kind.name: kind.build(value, given) for kind, value in used_by(service)})


def claim_of(service: ServiceSettings, socket: Path) -> tuple[ReplicaId, str] | None:
    """The replica whose socket would be at this path, and the name of its source."""
    claims = ((kind.claim(value, socket), kind.name) for kind, value in used_by(service))
    return next(((replica, name) for replica, name in claims if replica is not None), None)
