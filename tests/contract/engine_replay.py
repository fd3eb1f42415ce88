"""Real servers on real Unix sockets that replay what real engines answered, and some that answer worse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from smg_grpc_proto.generated import (
    mlx_engine_pb2,
    sglang_scheduler_pb2,
    tokenspeed_scheduler_pb2,
    trtllm_service_pb2,
    vllm_engine_pb2,
)

from tests.users import SELF, User

FIXTURES = Path(__file__).parents[1] / "fixtures" / "engines"

Json = Any
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fixture(name: str) -> dict[str, Json]:
    """A recorded engine's answers, by path or method."""
    answers = json.loads((FIXTURES / f"{name}.json").read_text())
    assert isinstance(answers, dict)
    return answers


# --- HTTP -------------------------------------------------------------------------------------------------------


@dataclass
class HttpReplay:
    """Answers by path: (status, body), and `otherwise`, but never at the path `mute`. `seen` records the requests."""

    answers: dict[str, tuple[int, Json]]
    delay_s: float = 0.0
    keep_alive: bool = True
    otherwise: tuple[int, Json] = (404, {"detail": "Not Found"})
    tls: ssl.SSLContext | None = None
    mute: str = ""
    seen: list[web.Request] = field(default_factory=list)

    @classmethod
    def of(cls, name: str) -> HttpReplay:
        """The recorded engine of this name."""
        return cls({path: (told["status"], told["body"]) for path, told in fixture(name).items()})

    @contextlib.asynccontextmanager
    async def serve(self, path: Path, user: User = SELF) -> AsyncIterator[HttpReplay]:
        """Serve at `path` until the block ends."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)  # Not the minute of a server that ends well.
        await runner.setup()
        try:
            await web.SockSite(runner, user.binds(path), ssl_context=self.tls).start()
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        await asyncio.sleep(3600.0 if request.path == self.mute else self.delay_s)
        status, body = self.answers.get(request.path, self.otherwise)
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        response = web.Response(status=status, body=raw, content_type="application/json")
        if not self.keep_alive:
            response.force_close()
        return response


# --- gRPC -------------------------------------------------------------------------------------------------------

SGLANG = "sglang.grpc.scheduler.SglangScheduler"
VLLM = "vllm.grpc.engine.VllmEngine"
MLX = "mlx.grpc.engine.MlxEngine"
TRTLLM = "trtllm.TrtllmService"
TOKENSPEED = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"
TOKENSPEED_ENCODER = "tokenspeed.grpc.encoder.TokenSpeedEncoder"

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

PUBLISHED = {
    SGLANG: sglang_scheduler_pb2,
    VLLM: vllm_engine_pb2,
    MLX: mlx_engine_pb2,
    TRTLLM: trtllm_service_pb2,
    TOKENSPEED: tokenspeed_scheduler_pb2,
}


def message(service: str, name: str, value: Mapping[str, Json]) -> Message:
    """A published message from its JSON form."""
    empty: Message = getattr(PUBLISHED[service], name)()
    json_format.ParseDict(dict(value), empty)
    return empty


@dataclass
class GrpcReplay:
    """Answers by method of one engine's service, with the standard services a real one has.

    `health` maps a service name to its status; a name that is not there answers NOT_FOUND, and None is a server
    without grpc.health.v1. `listed` None is a server without reflection. `failures` maps a method to the status
    that it fails with. `called` records the paths, `metadata` what came with them.
    """

    service: str
    answers: dict[str, Message | bytes]
    health: dict[str, int] | None = field(default_factory=lambda: {"": health_pb2.HealthCheckResponse.SERVING})
    listed: Sequence[str] | None = None
    failures: dict[str, grpc.StatusCode] = field(default_factory=dict)
    delay_s: float = 0.0
    called: list[str] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, service: str) -> GrpcReplay:
        """The recorded engine of this name."""
        told = fixture(name)
        methods = ("GetServerInfo", "GetModelInfo", "HealthCheck", "GetLoads")
        answers: dict[str, Message | bytes] = {
            method: message(service, f"{method}Response", told[method]["json"]) for method in methods if method in told
        }
        return cls(service, answers, listed=told["reflection v1alpha"])

    @contextlib.asynccontextmanager
    async def serve(self, path: Path, user: User = SELF) -> AsyncIterator[GrpcReplay]:
        """Serve at `path` until the block ends."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_AnyMethod(self),))
        with user.here():
            server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Answer one call."""
        self.called.append(path)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        await asyncio.sleep(self.delay_s)
        _, service, method = path.split("/")
        if method in self.failures:
            await context.abort(self.failures[method], "as the test wants it")
        if service == HEALTH and self.health is not None:
            asked = health_pb2.HealthCheckRequest.FromString(request).service
            if asked not in self.health:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {asked!r}")
            return _wire(health_pb2.HealthCheckResponse(status=self.health[asked]))
        if service == REFLECTION and self.listed is not None:
            return _listing(self.listed)
        if service == self.service and method in self.answers:
            told = self.answers[method]
            return told if isinstance(told, bytes) else _wire(told)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        raise AssertionError("abort always raises")


def _listing(names: Sequence[str]) -> bytes:
    services = [reflection_pb2.ServiceResponse(name=name) for name in names]
    listed = reflection_pb2.ListServiceResponse(service=services)
    return _wire(reflection_pb2.ServerReflectionResponse(list_services_response=listed))


def _wire(sent: Message) -> bytes:
    return sent.SerializeToString()


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands every call to the replay, in raw bytes; reflection as the stream that it is."""

    def __init__(self, replay: GrpcReplay) -> None:
        self._replay = replay

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = details.method

        async def unary(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return await self._replay.answer(path, request, context)

        async def stream(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            async for request in requests:
                yield await self._replay.answer(path, request, context)

        if path.startswith(f"/{REFLECTION}/"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


# --- anything else ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve_raw(path: Path, talk: Talk, user: User = SELF) -> AsyncIterator[None]:
    """Serve at `path` with `talk` for every connection; what is still talking when the block ends is cancelled."""
    talking: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            talking.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(one, sock=user.binds(path))
    try:
        yield
    finally:
        server.close()
        for task in tuple(talking):
            task.cancel()
        while talking:
            await asyncio.wait(tuple(talking))
        await server.wait_closed()
