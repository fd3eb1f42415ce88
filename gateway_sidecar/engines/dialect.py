"""The shape of an engine's entry: what it is asked, and how its answers read.

Each engine's file fills in these tables; `http_probe.py` and `grpc_probe.py` follow them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message

from gateway_sidecar.domain.discovery import HealthReader, HttpAnswer, ModelList, read_standard_health
from gateway_sidecar.domain.model import EngineFacts, Unknown
from gateway_sidecar.engines._pb import grpc_pb2
from gateway_sidecar.engines.fields import Fields


@dataclass(frozen=True, slots=True)
class HttpDialect:
    """An engine that speaks HTTP.

    `questions`: each is a tuple of paths, the newest name first; the next is tried where one answers 404.
    `read` gets the model list and one answer for each question, in order.
    """

    runtime_type: str
    owned_by: frozenset[str]
    questions: tuple[tuple[str, ...], ...]
    read: Callable[[ModelList, tuple[HttpAnswer, ...]], EngineFacts | Unknown]


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


@dataclass(frozen=True, slots=True)
class GrpcDialect:
    """An engine that speaks gRPC.

    `services` are the names by which reflection knows it. `read` gets the fields of both info answers. `health`
    is another one only where the engine has no grpc.health.v1, and never one that makes the engine generate.
    """

    runtime_type: str
    services: frozenset[str]
    server_info: Rpc
    model_info: Rpc
    read: Callable[[Fields, Fields], EngineFacts | Unknown]
    health: HealthCheck = STANDARD_HEALTH

    @property
    def service(self) -> str:
        """The engine's own name for its service, by which its health may be asked."""
        return self.server_info.path.split("/")[1]
