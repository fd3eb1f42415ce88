"""Asking a gRPC engine what it is and whether it serves. Our own messages, the engines' paths and field numbers."""

from __future__ import annotations

from google.protobuf.message import Message

from gateway_sidecar.domain.discovery import (
    NoAnswer,
    RpcAnswer,
    Serving,
    judge_grpc_health,
    read_standard_health,
    rpc_failure,
    unanswered,
)
from gateway_sidecar.domain.model import Access, EngineFacts, Foreign, Loading, ProbeResult, Unknown
from gateway_sidecar.engines._pb import grpc_pb2
from gateway_sidecar.engines.dialect import STANDARD_HEALTH, GrpcDialect, Rpc
from gateway_sidecar.engines.h2_unary import Broken, GrpcConnection
from gateway_sidecar.engines.messages import decode
from gateway_sidecar.kinds import ENGINES

# A stream in its proto. One request, then one answer and the end: on the wire that is a unary call.
REFLECTION = Rpc(
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    grpc_pb2.ServerReflectionRequest,
    grpc_pb2.ServerReflectionResponse,
)

_LOADS = ("num_running_reqs", "num_used_tokens", "gen_throughput")


class GrpcConversation:
    """Questions to one server over one connection. Only cancellation is raised.

    `loading` is set as soon as the server says that it does not serve yet, and stays set.
    """

    def __init__(self, address: str, access: Access) -> None:
        self.loading: Loading | None = None
        self._connection = GrpcConnection(address, access)
        self._answered = False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def identify(self) -> ProbeResult | NoAnswer:
        """Name the engine, read its facts, judge its health; NoAnswer where the first questions got none."""
        try:
            return await self._identify()
        except Broken as broken:
            return unanswered(broken.silence, "gRPC") if self._answered else broken.silence

    async def check_health(self, facts: EngineFacts) -> ProbeResult:
        """Ask a known engine for its health alone."""
        dialect = ENGINES[facts.runtime_type].grpc
        try:
            if dialect is not None and dialect.health is not STANDARD_HEALTH:
                serving = await self._own_health(dialect)
            else:
                (overall,) = await self._ask((STANDARD_HEALTH.rpc, None))
                serving = await self._serving(dialect, overall) if dialect else read_standard_health(overall)
        except Broken as broken:
            return unanswered(broken.silence, "gRPC health")
        return judge_grpc_health(facts, serving)

    async def loads(self, rpc: Rpc) -> tuple[float, ...] | None:
        """What each of its ranks does: requests that run, tokens that they hold or make. None if it does not say."""
        try:
            (answer,) = await self._ask((rpc, None))
        except Broken:
            return None
        ranks = answer.fields.get("loads")
        if not answer.ok or not isinstance(ranks, tuple):
            return None
        return tuple(float(str(rank.get(name, 0))) for rank in ranks for name in _LOADS)

    async def _identify(self) -> ProbeResult:
        listing, overall = await self._ask(
            (REFLECTION, grpc_pb2.ServerReflectionRequest(list_services="")), (STANDARD_HEALTH.rpc, None)
        )
        self._answered = True
        if read_standard_health(overall).ready is False:
            self.loading = Loading(read_standard_health(overall).reason)
        dialect = await self._dialect(listing)
        if not isinstance(dialect, GrpcDialect):
            return dialect
        facts = await self._facts(dialect)
        if not isinstance(facts, EngineFacts):
            return self.loading or facts
        return judge_grpc_health(facts, await self._serving(dialect, overall))

    async def _dialect(self, listing: RpcAnswer) -> GrpcDialect | Foreign | Unknown:
        """The one engine that reflection names or, where it names none, whose info call is answered.

        A server that answers to several names (a proxy that says OK to everything) is none of them.
        """
        if not listing.ok and listing.code != "UNIMPLEMENTED":
            return Unknown(rpc_failure("reflection", listing))
        names = _listed(listing)
        known = [engine.grpc for engine in ENGINES if engine.grpc is not None]
        found = [dialect for dialect in known if dialect.services & names]
        if not found:
            answers = await self._ask(*((dialect.server_info, None) for dialect in known))
            found = [dialect for dialect, answer in zip(known, answers, strict=True) if answer.ok]
            if not found:
                return _no_engine(names, answers)
        if len(found) > 1:
            claimed = ", ".join(dialect.service for dialect in found)
            return Foreign(f"gRPC, but it answers as several engines: {claimed}")
        return found[0]

    async def _facts(self, dialect: GrpcDialect) -> EngineFacts | Unknown:
        server_info, model_info = await self._ask((dialect.server_info, None), (dialect.model_info, None))
        for asked, answer in (("GetServerInfo", server_info), ("GetModelInfo", model_info)):
            if not answer.ok:
                return Unknown(rpc_failure(f"{dialect.service}: {asked}", answer))
        return dialect.read(server_info.fields, model_info.fields)

    async def _serving(self, dialect: GrpcDialect, overall: RpcAnswer) -> Serving:
        """Health as a whole; else by the engine's name; else, without grpc.health.v1, by its own check."""
        if overall.code == "UNIMPLEMENTED":
            return await self._own_health(dialect)
        if overall.code == "NOT_FOUND":
            (overall,) = await self._ask((STANDARD_HEALTH.rpc, grpc_pb2.HealthCheckRequest(service=dialect.service)))
        return read_standard_health(overall)

    async def _own_health(self, dialect: GrpcDialect) -> Serving:
        (answer,) = await self._ask((dialect.health.rpc, None))
        return dialect.health.read(answer)

    async def _ask(self, *questions: tuple[Rpc, Message | None]) -> list[RpcAnswer]:
        """Ask several things at the same time. Raises Broken where not all of them are answered."""
        replies = await self._connection.call(
            *((rpc.path, (request or rpc.request()).SerializeToString()) for rpc, request in questions)
        )
        return [
            decode(rpc.response, reply.message) if reply.code == "OK" else RpcAnswer(reply.code, {}, reply.detail)
            for (rpc, _), reply in zip(questions, replies, strict=True)
        ]


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
    return Foreign(f"gRPC, but not a known engine; {offers}")
