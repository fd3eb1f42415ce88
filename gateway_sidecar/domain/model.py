"""The project's words as frozen values. Nothing here does I/O, reads a clock or draws a random number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NewType

ReplicaId = NewType("ReplicaId", str)
"""What `{replica}` matched; unique within a service."""


class WorkerType(StrEnum):
    """The part a worker plays in its service."""

    REGULAR = "regular"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODE = "encode"


BY_KV_ROLE = {
    "kv_producer": WorkerType.PREFILL,
    "kv_consumer": WorkerType.DECODE,
    "kv_both": WorkerType.REGULAR,
}
"""What a `kv_role` of vLLM's is by itself. One that is both may be used as either."""


class ConnectionMode(StrEnum):
    """How the router speaks to a worker."""

    HTTP = "http"
    GRPC = "grpc"
    TCP = "tcp"
    """The request plane of NVIDIA Dynamo, for a router that speaks it."""


class ReplicaState(StrEnum):
    """Where a replica stands; the words of `status`."""

    SEEN = "seen"
    LOADING = "loading"
    REGISTERING = "registering"
    SERVING = "serving"
    DRAINING = "draining"
    FOREIGN = "foreign"
    UNREACHABLE = "unreachable"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class SocketIdentity:
    """What is behind a path now: a socket's inode, or a tunnel of ours whatever inode it has.

    `born_ns`, the time of its birth, tells a recycled inode number from the original even across a restart of the
    daemon. It is 0 where the file system keeps none; a handle keeps the inode from being recycled there. A tunnel that
    comes back binds its socket anew, and leads to the same place: it is named instead, and the rest is 0.
    """

    device: int
    inode: int
    born_ns: int
    tunnel: str = ""


MOST_NAMES = 64
"""Of one engine that a router is told. Each is a worker of its own, which the router asks for its health."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself; independent of the address it is reached at.

    Field names are those of a router's API. `runtime_type` is the engine's name; `external` is any other
    OpenAI-compatible server.
    `dp_size` is the engine's number of data-parallel ranks. `instance` differs from start to start, even if all else is
    the same; None where the engine has no such id. `health` are the pages that are asked for its health over HTTP, one
    after the other. `names` are further names and adapters that it serves beside `model`, which come and go.
    """

    runtime_type: str
    connection_mode: ConnectionMode
    worker_type: WorkerType = WorkerType.REGULAR
    model: str | None = None
    version: str | None = None
    bootstrap_port: int | None = None
    kv_connector: str | None = None
    kv_role: str | None = None
    kv_engine_id: str | None = None
    dp_size: int = 1
    instance: str | None = field(default=None, compare=False)
    health: tuple[str, ...] = field(default=("/health",), compare=False)
    names: tuple[str, ...] = field(default=(), compare=False)

    def is_same_engine(self, other: EngineFacts) -> bool:
        """Whether both may have been said by one engine that was not started again in between.

        Over HTTP a connector is only guessed from a metrics page, which may not be there each time.
        """
        other = other.called(self.model)
        if self.connection_mode is ConnectionMode.HTTP and None in (self.kv_connector, other.kv_connector):
            other = replace(other, kv_connector=self.kv_connector)
        same = self == other
        return same and (None in (self.instance, other.instance) or self.instance == other.instance)

    def called(self, model: str | None) -> EngineFacts:
        """The same with this one of its names as the first."""
        if model not in self.names:
            return self
        first = () if self.model is None else (self.model,)
        return self.listing(model, (*first, *self.names))

    def listing(self, model: str | None, names: Iterable[str]) -> EngineFacts:
        """The same with these names, of which `model` is the first."""
        return replace(self, model=model, names=tuple(sorted({*names} - {model})[: MOST_NAMES + 1]))


@dataclass(frozen=True, slots=True)
class Ready:
    """The probe's best news: an engine that we know and that says it is healthy."""

    facts: EngineFacts


@dataclass(frozen=True, slots=True)
class Loading:
    """An engine, or a socket waiting for one, that does not serve yet. A state with an age, not a failure.

    `facts` is set where the engine is identified already; `refused` where nothing answered: the connection was refused,
    or closed before an answer, which `closed` says. `asleep`: it was put to sleep, and will be woken.
    """

    reason: str
    facts: EngineFacts | None = None
    refused: bool = False
    closed: bool = False
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something answers, and it is not an inference engine that we can serve."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer within the deadline, or an answer that proves nothing. Changes nothing by itself.

    `ours` says that the trouble is the daemon's own (no descriptors left, say): no evidence about the engine at all.
    `begun`: it has named itself, and takes its time over the rest.
    """

    reason: str
    ours: bool = False
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """Its requests show that it does no work, whatever its health check says (`domain/progress.py`)."""

    reason: str


ProbeResult = Ready | Loading | Foreign | Unknown | Dead


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a replica's peers find it. `host` is an IP address in its shortest spelling, without brackets.

    `direct` says that this machine reaches the replica there itself, so that nothing is bridged.
    """

    host: str
    port: int
    direct: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Access:
    """How an engine is reached and asked, as the operator says it; None leaves it to the engine's own answers.

    path: the page for its health. expect: what that page's body must contain.
    prefix: where its API is, in place of `/v1`. tls: whether it speaks TLS.
    model: its model's name. engine: the kind that it is, where nobody is to find out. dynamo: the directory that it
        writes its entries in, if it is a worker of NVIDIA Dynamo.
    """

    path: str | None = None
    expect: str | None = None
    prefix: str | None = None
    tls: bool | None = None
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    engine: str | None = None
    dynamo: str | None = None

    def over(self, usual: Access) -> Access:
        """This, and the usual where this says nothing."""
        pairs = ((getattr(self, name), getattr(usual, name)) for name in self.__dataclass_fields__)
        return Access(*(usually if said is None else said for said, usually in pairs))

    def at(self, path: str) -> str:
        """Where the engine has a path of the OpenAI API that begins with `/v1`."""
        return path if self.prefix is None else self.prefix + path.removeprefix("/v1")


_NOTHING_OWN = (None, None, Access())


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a `<replica>.yaml` beside the socket adds to or puts above the engine's own answers.

    names: further names of the model, beside `model`.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    worker_type: WorkerType | None = None
    priority: int | None = None
    cost: float | None = None
    peer: PeerAddress | None = None
    bootstrap_port: int | None = None
    model: str | None = None
    health: Access = Access()
    names: tuple[str, ...] = ()
    kv_connector: str | None = None
    kv_role: str | None = None
    kv_engine_id: str | None = None

    def access(self, usual: Access) -> Access:
        """How to ask the engine, where `usual` is how its service's engines are asked."""
        if (self.api_key, self.model, self.health) == _NOTHING_OWN:
            return usual
        return replace(self.health.over(usual), api_key=self.api_key, model=self.model)


ENTRIES_LABEL = "entries"
"""The label of a worker of NVIDIA Dynamo that says where its entries are."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a registration says of one worker. Field names are those of a router's API.

    model_id is what the engine says, and may be corrected by the router; `named` is the name that the worker must have.
    bridged says that a bridge of ours is at `url`, and not the engine itself; replica: whose, where the
    bridge is the only address that it has.
    """

    url: str
    runtime_type: str
    connection_mode: ConnectionMode
    worker_type: WorkerType = WorkerType.REGULAR
    model_id: str | None = None
    bootstrap_port: int | None = None
    kv_connector: str | None = None
    kv_role: str | None = None
    kv_engine_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    priority: int | None = None
    cost: float | None = None
    named: str | None = None
    bridged: bool = True
    replica: str = ""


class WorkerStatus(StrEnum):
    """What a router says of one worker."""

    PENDING = "pending"
    READY = "ready"
    NOT_READY = "not_ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Registered:
    """One worker as the router lists it. `note` is what the router adds, such as why it failed.

    `runtime_type` is None where the router does not name the engine: it has one word for many, or has not asked yet.
    """

    worker_id: str
    url: str
    status: WorkerStatus
    worker_type: WorkerType
    connection_mode: ConnectionMode
    runtime_type: str | None
    model_id: str | None = None
    bootstrap_port: int | None = None
    kv_connector: str | None = None
    kv_role: str | None = None
    kv_engine_id: str | None = None
    note: str | None = None
