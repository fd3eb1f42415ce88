"""The probe: asks what is behind a Unix socket what it is, and whether it is ready.

It promises a verdict within the deadline and nothing else: no exception but cancellation, no connection, task or
channel left over, nothing remembered from one probe to the next (an address may lead to another occupant by then).

HTTP is asked first, since the first bytes of the answer show the protocol: most sockets need no gRPC channel, the
dearest part by far. gRPC joins the moment that they are not HTTP/1, or after `HEDGE_S` of silence; from then on both
are asked at the same time, and the first that gets through decides.
"""

from __future__ import annotations

import asyncio

from gateway_sidecar.domain.discovery import (
    Failure,
    NoAnswer,
    Protocol,
    decisive,
    judge_grpc_health,
    read_standard_health,
    settle,
    unanswered,
)
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Foreign, ProbeResult, Unknown
from gateway_sidecar.engines import h2_unary, http_probe
from gateway_sidecar.engines.grpc_probe import HEALTH, GrpcConversation, dialect_of
from gateway_sidecar.engines.messages import decode
from gateway_sidecar.engines.unix_http import LONGEST_ADDRESS_BYTES, UnixHttp, connect

HEDGE_S = 0.05
"""A server that has shown no byte for so long is asked over gRPC as well."""

LARGEST_ANSWERS_BYTES = 4 * 1024 * 1024
"""All HTTP answers of one probe together. A real SGLang's `/server_info` has 20 KiB per data-parallel rank."""


class EngineProbe:
    """Probes engines behind Unix sockets. Stateless: any number of probes may be under way."""

    async def identify(self, address: str, *, timeout_s: float, api_key: str | None = None) -> ProbeResult:
        """Ask an occupant at first sight what it is and whether it is ready.

        `address` is a path to connect to, at most 107 bytes. SGLang over HTTP needs a second and more for its
        health, so `timeout_s` below 3 makes it look silent.
        """
        unusable = _unusable(address, api_key)
        if unusable is not None:
            return unusable
        sight = _FirstSight(address, api_key)
        try:
            async with asyncio.timeout(timeout_s):
                return await sight.verdict()
        except TimeoutError:
            return sight.overdue(timeout_s)

    async def check_health(
        self, address: str, facts: EngineFacts, *, timeout_s: float, api_key: str | None = None
    ) -> ProbeResult:
        """Ask an occupant that was identified before whether it serves; the cheap repeat.

        Loading with `facts` is the engine's own word; Loading without is a socket that nobody answers at.
        """
        unusable = _unusable(address, api_key)
        if unusable is not None:
            return unusable
        ask = _grpc_health if facts.connection_mode is ConnectionMode.GRPC else _http_health
        try:
            async with asyncio.timeout(timeout_s):
                return await ask(address, facts, api_key)
        except TimeoutError:
            return Unknown(f"no answer about its health within {timeout_s:g} s")


def _unusable(address: str, api_key: str | None) -> Unknown | None:
    if len(address.encode(errors="surrogateescape")) > LONGEST_ADDRESS_BYTES:
        return Unknown(f"the address is longer than {LONGEST_ADDRESS_BYTES} bytes; pass a shorter path to it")
    if not address or "\0" in address:
        return Unknown("the address is no path")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        return Unknown("the api_key has characters that no header can carry; use printable ASCII")
    return None


async def _http_health(address: str, facts: EngineFacts, api_key: str | None) -> ProbeResult:
    connected = await connect(address)
    if isinstance(connected, NoAnswer):
        return unanswered(connected)
    http = UnixHttp(address, connected, api_key=api_key, budget_bytes=LARGEST_ANSWERS_BYTES)
    try:
        return await http_probe.check_health(http, facts)
    finally:
        http.close()


async def _grpc_health(address: str, facts: EngineFacts, api_key: str | None) -> ProbeResult:
    own = dialect_of(facts).own_health
    rpc, read = (own.rpc, own.read) if own else (HEALTH, read_standard_health)
    answer = await h2_unary.call(address, rpc.path, api_key)
    if isinstance(answer, NoAnswer):
        return unanswered(answer, "health")
    if isinstance(answer, bytes):
        return judge_grpc_health(facts, read(decode(rpc.response, answer)))
    async with GrpcConversation(address, api_key=api_key) as grpc:
        return await grpc.check_health(facts)


Outcome = ProbeResult | NoAnswer


class _FirstSight:
    """One identification under way; what was learnt so far is still there when the deadline strikes."""

    def __init__(self, address: str, api_key: str | None) -> None:
        self._address = address
        self._api_key = api_key
        self._http: UnixHttp | None = None
        self._grpc: GrpcConversation | None = None
        self._as_http: Outcome | None = None

    async def verdict(self) -> ProbeResult:
        """Connect, ask, judge."""
        connected = await connect(self._address)
        if isinstance(connected, NoAnswer):
            return unanswered(connected)
        self._http = UnixHttp(self._address, connected, api_key=self._api_key, budget_bytes=LARGEST_ANSWERS_BYTES)
        tasks = [asyncio.create_task(self._ask_http(self._http))]
        try:
            return await self._decide(self._http, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._http.close()

    def overdue(self, timeout_s: float) -> ProbeResult:
        """Judge what is known by now, when the time is up."""
        if self._http is None:
            return unanswered(NoAnswer(Failure.CROWDED, f"for {timeout_s:g} s"))
        if isinstance(self._as_http, Foreign):
            return self._as_http
        if self._grpc is not None and self._grpc.loading is not None:
            return self._grpc.loading
        shows = self._http.protocol.result() if self._http.protocol.done() else None
        asked = self._http.asked if shows is Protocol.HTTP1 else "gRPC" if shows else "HTTP or gRPC"
        return Unknown(f"no answer to {asked} within {timeout_s:g} s")

    async def _decide(self, http: UnixHttp, tasks: list[asyncio.Task[Outcome]]) -> ProbeResult:
        """Let HTTP go on alone where the first bytes are HTTP/1, or there are none; else ask gRPC as well."""
        (asking_http,) = tasks
        await asyncio.wait({http.protocol}, timeout=HEDGE_S)
        protocol = http.protocol.result() if http.protocol.done() else None
        if http.protocol.done() and protocol is not Protocol.HTTP2:
            alone = await asking_http
            if decisive(alone) or not await self._may_speak_grpc():
                return settle((alone,), protocol)
        asking_grpc = asyncio.create_task(self._ask_grpc())
        tasks.append(asking_grpc)
        for first in asyncio.as_completed(tuple(tasks)):
            result = await first
            if not isinstance(result, NoAnswer) and decisive(result):
                return result
        return settle((asking_http.result(), asking_grpc.result()), protocol)

    async def _may_speak_grpc(self) -> bool:
        """Find out with a few bytes whether a gRPC channel could get anywhere: most often it could not."""
        return not isinstance(await h2_unary.call(self._address, HEALTH.path, self._api_key), NoAnswer)

    async def _ask_http(self, http: UnixHttp) -> Outcome:
        self._as_http = await http_probe.identify(http)
        return self._as_http

    async def _ask_grpc(self) -> Outcome:
        async with GrpcConversation(self._address, api_key=self._api_key) as self._grpc:
            return await self._grpc.identify()
