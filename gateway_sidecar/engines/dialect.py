"""The shape of an engine (`kinds.ENGINES`): what it is asked, how its answers read, what its metrics are called.

Each engine's file ends with one `ENGINE = Engine(...)`, which `http_probe.py`, `grpc_probe.py` and
`engine_metrics.py` follow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from gateway_sidecar.domain.discovery import HealthReader, HttpAnswer, ModelList, NoAnswer, read_standard_health
from gateway_sidecar.domain.model import EngineFacts, ProbeResult, Unknown, WorkerSpec
from gateway_sidecar.engines._pb import grpc_pb2, loads_pb2
from gateway_sidecar.engines.fields import Fields


@dataclass(frozen=True, slots=True)
class HttpDialect:
    """An engine that speaks HTTP. `owned_by` are the values in `/v1/models` that name it.

    `questions`: each is a tuple of paths, the newest name first; the next is tried where one answers 404.
    `read` gets the model list and one answer for each question, in order. `health` are pages that it may have, which
    are asked for its health before the usual one. `connectors`: how the series of a KV connector begin on its metrics
    page -> the connector, which an engine has that does not say so otherwise.
    """

    owned_by: frozenset[str]
    questions: tuple[tuple[str, ...], ...]
    read: Callable[[ModelList, tuple[HttpAnswer, ...]], EngineFacts | Unknown]
    health: tuple[str, ...] = ()
    connectors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rpc:
    """One unary method: its full path and our own messages with the engine's field numbers."""

    path: str
    request: type[Message]
    response: type[Message]


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A call that asks for health, and how its answer reads."""

    rpc: Rpc
    read: HealthReader


STANDARD_HEALTH = HealthCheck(
    Rpc("/grpc.health.v1.Health/Check", grpc_pb2.HealthCheckRequest, grpc_pb2.HealthCheckResponse),
    read_standard_health,
)


def loads_of(service: str) -> Rpc:
    """`GetLoads` of SGLang and TokenSpeed, whose answers begin alike."""
    return Rpc(f"/{service}/GetLoads", loads_pb2.GetLoadsRequest, loads_pb2.GetLoadsResponse)


@dataclass(frozen=True, slots=True)
class GrpcDialect:
    """An engine that speaks gRPC. `services` are its names in reflection. `read` gets the fields of both info answers.
    `health` differs only where the engine has no grpc.health.v1, and never makes the engine generate.
    `loads`: what says how much the engine has to do, of which something moves whenever it works; not every engine does.
    """

    services: frozenset[str]
    server_info: Rpc
    model_info: Rpc
    read: Callable[[Fields, Fields], EngineFacts | Unknown]
    health: HealthCheck = STANDARD_HEALTH
    loads: Rpc | None = None

    @property
    def service(self) -> str:
        """The engine's own name for its service, by which its health may be asked."""
        return self.server_info.path.split("/")[1]


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """An engine's metrics over HTTP: where they are, and what two histograms in seconds are called, newer names first.

    `ttft` is the time to the first token, `itl` the pause between two; without names the page says neither.
    `progress`: counters and gauges of which some move whenever the engine works, and none while its core hangs.
    """

    path: str = "/metrics"
    ttft: tuple[str, ...] = ()
    itl: tuple[str, ...] = ()
    progress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Engine:
    """One inference engine. `name` is the `runtime_type` of the facts that its dialects read.

    `single_connection`: it serves one connection at a time, so none is kept open to notice its end.
    `look`: of an engine that is asked nothing: its address, and the directory that it writes in -> what it is.
    `lacks`: what its registration does not say although it has to, with the cure; None if it says all.
    """

    name: str
    http: HttpDialect | None = None
    grpc: GrpcDialect | None = None
    metrics: MetricsPage = MetricsPage()
    single_connection: bool = False
    look: Callable[[str, Path], Awaitable[ProbeResult | NoAnswer]] | None = None
    lacks: Callable[[WorkerSpec], str | None] = lambda _spec: None
