"""Asking a gRPC engine what it is and whether it serves. Our own messages, the engines' paths and field numbers.

Connections are never shared between probes: gRPC's global pool knows addresses, not occupants.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import Message

from gateway_sidecar.domain.discovery import (
    Failure,
    NoAnswer,
    RpcAnswer,
    Serving,
    judge_grpc_health,
    read_standard_health,
    rpc_failure,
)
from gateway_sidecar.domain.model import EngineFacts, Foreign, Loading, ProbeResult, Unknown
from gateway_sidecar.engines import mlx, sglang, tokenspeed, trtllm, vllm
from gateway_sidecar.engines._pb import grpc_pb2
from gateway_sidecar.engines.dialect import STANDARD_HEALTH, GrpcDialect, HealthCheck, Rpc
from gateway_sidecar.engines.messages import decode

DIALECTS: tuple[GrpcDialect, ...] = (sglang.GRPC, vllm.GRPC, mlx.GRPC, trtllm.GRPC, tokenspeed.GRPC)

# A stream in its proto. One request, then one answer and the end: on the wire that is a unary call.
REFLECTION = Rpc(
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    grpc_pb2.ServerReflectionRequest,
    grpc_pb2.ServerReflectionResponse,
)

LARGEST_MESSAGE_BYTES = 4 * 1024 * 1024
_LONGEST_DETAIL = 160

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
)


def _connect_within(timeout_s: float) -> tuple[tuple[str, int], ...]:
    """How long gRPC holds on to a connection without an HTTP/2 greeting, its channel closed or not: else 20 s."""
    timeout_ms = max(int(timeout_s * 1000), 100)
    return ("grpc.initial_reconnect_backoff_ms", timeout_ms), ("grpc.min_reconnect_backoff_ms", timeout_ms)


def dialect_of(facts: EngineFacts) -> GrpcDialect | None:
    """The entry of an engine that was identified before; None for one that nobody here speaks gRPC with."""
    return next((dialect for dialect in DIALECTS if dialect.runtime_type is facts.runtime_type), None)


def health_of(facts: EngineFacts) -> HealthCheck:
    """What a known engine's health is asked by."""
    dialect = dialect_of(facts)
    return dialect.health if dialect else STANDARD_HEALTH


class GrpcConversation:
    """Calls to one server over one channel. Only cancellation is raised.

    `loading` is set as soon as the server says that it does not serve yet; it holds whatever else is asked.
    """

    def __init__(self, address: str, *, api_key: str | None, timeout_s: float) -> None:
        self.loading: Loading | None = None
        self._channel = grpc.aio.insecure_channel(
            f"unix:{quote(os.fsencode(address))}", options=(*_OPTIONS, *_connect_within(timeout_s))
        )
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key is not None else ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def identify(self) -> ProbeResult | NoAnswer:
        """Name the engine, read its facts, judge its health; NoAnswer where the transport does not come up."""
        listing, overall = await asyncio.gather(
            self._call(REFLECTION, grpc_pb2.ServerReflectionRequest(list_services="")), self._call(STANDARD_HEALTH.rpc)
        )
        if listing.code == "UNAVAILABLE":
            return NoAnswer(Failure.CLOSED, listing.detail)
        if read_standard_health(overall).ready is False:
            self.loading = Loading(read_standard_health(overall).reason)
        dialect = await self._dialect(listing)
        if not isinstance(dialect, GrpcDialect):
            return dialect
        facts = await self._facts(dialect)
        if not isinstance(facts, EngineFacts):
            return self.loading or facts
        return judge_grpc_health(facts, await self._serving(dialect, overall))

    async def check_health(self, facts: EngineFacts) -> ProbeResult:
        """Ask a known engine for its health alone."""
        overall = await self._call(STANDARD_HEALTH.rpc)
        dialect = dialect_of(facts)
        serving = await self._serving(dialect, overall) if dialect else read_standard_health(overall)
        return judge_grpc_health(facts, serving)

    async def _dialect(self, listing: RpcAnswer) -> GrpcDialect | Foreign | Unknown:
        """The one engine that reflection names or, where it names none, whose info call is answered.

        A server that answers to several names (a proxy that says OK to everything) is none of them.
        """
        if not listing.ok and listing.code != "UNIMPLEMENTED":
            return Unknown(rpc_failure("reflection", listing))
        names = _listed(listing)
        found = [dialect for dialect in DIALECTS if dialect.services & names]
        if not found:
            answers = await asyncio.gather(*(self._call(dialect.server_info) for dialect in DIALECTS))
            found = [dialect for dialect, answer in zip(DIALECTS, answers, strict=True) if answer.ok]
            if not found:
                return _no_engine(names, answers)
        if len(found) > 1:
            claimed = ", ".join(dialect.runtime_type for dialect in found)
            return Foreign(f"gRPC, but it answers as several engines: {claimed}")
        return found[0]

    async def _facts(self, dialect: GrpcDialect) -> EngineFacts | Unknown:
        server_info, model_info = await asyncio.gather(self._call(dialect.server_info), self._call(dialect.model_info))
        for asked, answer in (("GetServerInfo", server_info), ("GetModelInfo", model_info)):
            if not answer.ok:
                return Unknown(rpc_failure(f"{dialect.runtime_type}: {asked}", answer))
        return dialect.read(server_info.fields, model_info.fields)

    async def _serving(self, dialect: GrpcDialect, overall: RpcAnswer) -> Serving:
        """Health as a whole; else by the engine's name; else, without grpc.health.v1, by its own check."""
        if overall.code == "UNIMPLEMENTED":
            return dialect.health.read(await self._call(dialect.health.rpc))
        if overall.code == "NOT_FOUND":
            overall = await self._call(STANDARD_HEALTH.rpc, grpc_pb2.HealthCheckRequest(service=dialect.service))
        return read_standard_health(overall)

    async def _call(self, rpc: Rpc, request: Message | None = None) -> RpcAnswer:
        method = self._channel.unary_unary(rpc.path)
        wire = (request or rpc.request()).SerializeToString()
        try:
            answer = await method(wire, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return RpcAnswer(error.code().name, {}, (error.details() or "")[:_LONGEST_DETAIL])
        return decode(rpc.response, answer)


def _listed(listing: RpcAnswer) -> frozenset[str]:
    """The service names that reflection lists; none where there is no reflection."""
    response = listing.fields.get("list_services_response")
    services = response.get("service") if isinstance(response, dict) else None
    entries = services if isinstance(services, tuple) else ()
    return frozenset(str(entry.get("name")) for entry in entries if isinstance(entry, dict))


def _no_engine(names: frozenset[str], answers: list[RpcAnswer]) -> Foreign | Unknown:
    """Every engine's method is unknown to the server: that is no engine. Any other failure proves nothing."""
    for answer in answers:
        if answer.code != "UNIMPLEMENTED":
            return Unknown(rpc_failure("GetServerInfo", answer))
    offers = f"it offers {', '.join(sorted(names))}" if names else "it has no reflection"
    return Foreign(f"gRPC, but no engine that is known here; {offers}"[:300])
