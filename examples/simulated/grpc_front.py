"""An engine's gRPC server: grpcio on a private abstract socket, behind the engine's own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from examples.simulated.core import EngineCore, Health
from examples.simulated.http_front import HttpFront
from examples.simulated.options import Lie
from examples.simulated.pages import FASTAPI_NOT_FOUND, Site
from examples.simulated.relay import Relay
from examples.simulated.services.base import EngineService, Rpc

HUGE_FIELD = b"\xfa\x7f\x80\x80\x80\x20" + bytes(64 * 1024 * 1024)
"""An unknown field (2047) of 64 MiB, to be appended to any message."""
GARBAGE = b"\xff" * 64
HTTP_LIES = (Lie.REDIRECT, Lie.NOT_AN_ENGINE)
UNGUARDED = ("/grpc.health.v1.", "/grpc.reflection.")
SERVER_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcFront:
    """Speaks gRPC for an engine, with the health and reflection services where the engine offers them."""

    def __init__(self, core: EngineCore, service: EngineService) -> None:
        self._core = core
        self._service = service
        self._address = f"simulated-engine-{secrets.token_hex(8)}"
        self._relay = Relay(core, self._address)
        self._web_server: HttpFront | None = None
        self._server: Any = None

    async def start(self) -> None:
        """Start grpcio's server. It is reached through `connection` only."""
        self._server = grpc.aio.server(interceptors=[_Interceptor(self._core)], options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        self._server.add_insecure_port(f"unix-abstract:{self._address}")
        await self._server.start()

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol for one accepted connection."""
        if self._core.behaviour.lie in HTTP_LIES:
            if self._web_server is None:
                self._web_server = HttpFront(self._core, Site({}, FASTAPI_NOT_FOUND, guards=lambda _path: False))
            return self._web_server.connection()
        return self._relay.connection()

    def drop_connections(self) -> None:
        """Break every open connection."""
        self._relay.drop_connections()
        if self._web_server is not None:
            self._web_server.drop_connections()

    async def stop(self) -> None:
        """Cancel what is left, and end grpcio's server."""
        if self._server is not None:
            await self._server.stop(grace=None)
        self.drop_connections()

    def _handlers(self) -> list[Any]:
        engine = self._service.descriptor
        handlers = [_handler(engine, self._service.rpcs, self._serialize)]
        if (further := self._service.further) is not None:
            engine, rpcs = further
            handlers.append(_handler(engine, rpcs, self._serialize))
        if self._service.offers_health:
            health = health_pb2.DESCRIPTOR.services_by_name["Health"]
            mirror = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
            names = (engine.full_name, health.full_name, mirror.full_name)
            info = reflection.aio.ReflectionServicer(names).ServerReflectionInfo
            handlers += [
                _handler(health, _health_rpcs(self._core, engine.full_name), self._serialize),
                _handler(mirror, {"ServerReflectionInfo": info}, self._serialize),
            ]
        return handlers

    def _serialize(self, message: Message) -> bytes:
        match self._core.behaviour.lie:
            case Lie.HUGE | Lie.ENDLESS:
                return message.SerializeToString() + HUGE_FIELD
            case Lie.EMPTY:
                return b""
            case Lie.GARBAGE:
                return GARBAGE
            case _:
                return message.SerializeToString()


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Counts every RPC, known or not, lets it wait, and asks for the key."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        method: str = details.method
        self._core.ledger.called(method.removeprefix("/"))
        await self._core.pause()
        shown = dict(details.invocation_metadata).get("authorization")
        open_to_all = method.startswith(UNGUARDED) and not self._core.behaviour.guard_all
        if open_to_all or self._core.admits(shown):
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_request: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the key is missing or wrong")


def _health_rpcs(core: EngineCore, engine: str) -> Mapping[str, Rpc]:
    """grpc.health.v1 for the whole server and for the engine's service; Watch tells once, as real ones do."""

    def status() -> Message:
        states = health_pb2.HealthCheckResponse
        message: Message = states(status=states.SERVING if core.health is Health.SERVING else states.NOT_SERVING)
        return message

    async def check(request: Any, context: Any) -> Message:
        if request.service not in ("", engine):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service: {request.service}")
        return status()

    async def watch(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield status()

    return {"Check": check, "Watch": watch}


def _handler(service: Any, rpcs: Mapping[str, Rpc], serialize: Callable[[Message], bytes]) -> Any:
    """grpcio's handler for one service: what `rpcs` names, with the messages that the descriptor names."""
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        method.name: makers[method.client_streaming, method.server_streaming](
            rpcs[method.name],
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=serialize,
        )
        for method in service.methods
        if method.name in rpcs
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)
