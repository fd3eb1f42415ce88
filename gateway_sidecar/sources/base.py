"""What every kind of source has (`kinds.SOURCES`): one file each, which ends with one `SOURCE = SourceKind(...)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from gateway_sidecar.config.tunnels import SshDefaults
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.sources.entry import ApiRecord
from gateway_sidecar.sources.listing import Source
from gateway_sidecar.sources.placed import OwnSockets

S = TypeVar("S")

SocketOf = Callable[[Tunnel], Path]
"""Where a tunnel's socket is."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a source is built with, beside its setting.

    service: whose replicas they are. ssh_defaults: those of the service. socket_of: where a tunnel's socket is.
    own: the daemon's own sockets, which are no replicas. record: what the API was given.
    """

    service: str
    ssh_defaults: SshDefaults
    socket_of: SocketOf
    own: OwnSockets
    record: ApiRecord = field(default_factory=ApiRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKind(Generic[S]):
    """One way to learn which replicas a service has.

    name: the key under `services[].replicas`, and the `source` of its replicas in `status`.
    setting: what stands at that key: a type and a Field, with a default that is empty. None for a kind that is always
        there and has no setting.
    build: the setting's value -> source. Blocks nobody.
    check: raises ValueError for a value that lacks something, given the service's `ssh_defaults`.
    clash: why two services' values stand in each other's way, as what follows `A and B`; None if they do not.
    objections: why a value must not be, where run_dir is this directory, as what follows the value.
    claim: the replica whose socket would be at this path; None if it is none of this kind's.
    advise: what is unwise about a value on this machine. Reads files.
    show: a value as `status` has it.
    by_others: whether others than the operator place what it finds: what it refuses is no fault of the settings.
    """

    name: str
    build: Callable[[S, Given], Source]
    setting: tuple[Any, Any] | None = None
    check: Callable[[S, SshDefaults], None] = lambda _value, _defaults: None
    clash: Callable[[S, S], str | None] = lambda _one, _other: None
    objections: Callable[[S, Path], Iterable[str]] = lambda _value, _run_dir: ()
    claim: Callable[[S, Path], ReplicaId | None] = lambda _value, _socket: None
    advise: Callable[[S], Iterable[str]] = lambda _value: ()
    show: Callable[[S], str] = str
    by_others: bool = False
