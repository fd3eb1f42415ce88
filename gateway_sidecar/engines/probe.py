"""The probe: asks what is behind a Unix socket what it is, and whether it is ready.

It returns a verdict within the deadline. It raises only cancellation, leaves no connection or task over, and remembers
nothing from one probe to the next, since an address may then lead to another occupant. Words of the engine in a verdict
are safe to show (`printable`).

HTTP is asked first, since the first bytes of the answer show the protocol. Where they are not HTTP/1, or HTTP decides
nothing, gRPC is asked next. After `HEDGE_S` of silence both are asked at the same time, and the first that gets through
decides.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway_sidecar.domain.discovery import (
    Failure,
    NoAnswer,
    Protocol,
    decisive,
    judge,
    unanswered,
)
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Foreign, ProbeResult, Ready, Unknown
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.engines import health_question, http_probe
from gateway_sidecar.engines.grpc_probe import GrpcConversation
from gateway_sidecar.engines.health_question import HealthQuestion
from gateway_sidecar.engines.unix_http import UnixHttp
from gateway_sidecar.engines.unix_socket import LONGEST_ADDRESS_BYTES, connect, tls_over
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import cancelled
from gateway_sidecar.supervision.process import peer_of

HEDGE_S = 0.05
"""A server that has shown no byte for so long is asked over gRPC as well."""

LARGEST_ANSWERS_BYTES = 4 * 1024 * 1024
"""All HTTP answers of one probe together. A real SGLang's `/server_info` has 20 KiB per data-parallel rank."""

_PLAIN = Access()
_HEADER_SAFE = re.compile(r"[!-~]+")


class EngineProbe:
    """Probes engines behind Unix sockets. Stateless: any number of probes may be under way.

    is_own: whether what listens at an address, with this process id, is a part of the gateway and no engine. Nothing
        is said to it.
    """

    def __init__(self, is_own: Callable[[str, int], bool] = lambda _address, _pid: False) -> None:
        self._is_own = is_own

    async def identify(self, address: str, *, timeout_s: float, access: Access = _PLAIN) -> ProbeResult:
        """Ask an occupant at first sight what it is and whether it is ready.

        `address` is a path to connect to, at most 107 bytes. SGLang over HTTP needs a second and more for its
        health, so `timeout_s` below 3 makes it look silent.
        """
        unusable = _unusable(address, access.api_key)
        if unusable is not None:
            return unusable
        if access.dynamo is not None:
            return await _look(address, access.dynamo, timeout_s)
        sight = _FirstSight(address, access, timeout_s, self._is_own)
        try:
            async with within(timeout_s):
                return _fit_to_show(await sight.verdict())
        except TimeoutError:
            return _fit_to_show(sight.overdue())

    def ask_health(
        self, address: str, facts: EngineFacts, *, access: Access = _PLAIN, relist: bool = False
    ) -> HealthQuestion | None:
        """Ask whether it is well without waiting for anything; None where `check_health` has to do it.

        relist: whether an HTTP engine has the same names, too.
        """
        if facts.connection_mode is ConnectionMode.TCP:
            return None
        is_usual = facts.health == (http_probe.HEALTH,) and access.tls is not True and access.expect is None
        if not is_usual or _unusable(address, access.api_key):
            return None
        models = access.at(http_probe.MODELS) if relist and access.engine is None else None
        return health_question.ask(address, facts, access.api_key, models)

    async def check_health(
        self, address: str, facts: EngineFacts, *, timeout_s: float, access: Access = _PLAIN, relist: bool = True
    ) -> ProbeResult:
        """Ask an occupant that was identified before whether it serves and, with `relist`, which names it has.

        Loading with `facts` is the engine's own answer; Loading without `facts` is a socket without an answer.
        """
        unusable = _unusable(address, access.api_key)
        if unusable is not None:
            return unusable
        if facts.connection_mode is ConnectionMode.TCP:
            return await _look(address, access.dynamo or "", timeout_s)
        try:
            async with within(timeout_s):
                if facts.connection_mode is ConnectionMode.GRPC:
                    return _fit_to_show(await _grpc_health(address, facts, access))
                return _fit_to_show(await _http_health(address, facts, access, relist=relist))
        except TimeoutError:
            return Unknown(f"no answer about its health within {timeout_s:g} s")


def _unusable(address: str, api_key: str | None) -> Unknown | None:
    try:
        encoded = os.fsencode(address)
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or b"\0" in encoded:
        return Unknown("the address is no path")
    if len(encoded) > LONGEST_ADDRESS_BYTES:
        return Unknown(f"the address is longer than {LONGEST_ADDRESS_BYTES} bytes; pass a shorter path to it")
    if api_key is not None and not _HEADER_SAFE.fullmatch(api_key):
        return Unknown("the api_key has characters that a header cannot carry; use printable ASCII without spaces")
    return None


def _fit_to_show(result: ProbeResult) -> ProbeResult:
    """The engine's edge: from here on a reason may be logged, printed and put into a table."""
    return result if isinstance(result, Ready) else replace(result, reason=printable(result.reason))


async def _look(address: str, directory: str, timeout_s: float) -> ProbeResult:
    """An engine that is asked nothing: what it writes into a directory says what it is, and whether it is well."""
    look = next(engine.look for engine in ENGINES if engine.look is not None)
    try:
        async with within(timeout_s):
            found = await look(address, Path(directory))
    except TimeoutError:
        return Unknown(f"no connection, or no look into {directory}, within {timeout_s:g} s")
    return _fit_to_show(unanswered(found) if isinstance(found, NoAnswer) else found)


async def _http_health(address: str, facts: EngineFacts, access: Access, *, relist: bool) -> ProbeResult:
    connected = await connect(address, tls=access.tls is True)
    if isinstance(connected, NoAnswer):
        return unanswered(connected)
    http = UnixHttp(address, connected, access, budget_bytes=LARGEST_ANSWERS_BYTES)
    try:
        return await http_probe.check_health(http, facts, access, relist=relist)
    finally:
        http.close()


async def _grpc_health(address: str, facts: EngineFacts, access: Access) -> ProbeResult:
    conversation = GrpcConversation(address, access)
    try:
        return await conversation.check_health(facts)
    finally:
        conversation.close()


async def _speaks_tls(address: str) -> bool:
    """Whether a server shakes hands over TLS."""
    wire = await connect(address, tls=True)
    if isinstance(wire, NoAnswer):
        return False
    wire.close()
    return True


Outcome = ProbeResult | NoAnswer


class _FirstSight:
    """One identification under way; what was learnt so far is still there when the deadline strikes."""

    def __init__(self, address: str, access: Access, timeout_s: float, is_own: Callable[[str, int], bool]) -> None:
        self._address = address
        self._access = access
        self._timeout_s = timeout_s
        self._is_own = is_own
        self._http: UnixHttp | None = None
        self._grpc: GrpcConversation | None = None
        self._as_http: Outcome | None = None

    async def verdict(self) -> ProbeResult:
        """Connect, ask, judge."""
        connected = await connect(self._address)
        if isinstance(connected, NoAnswer):
            return unanswered(connected)
        if self._is_own(self._address, peer_of(connected.sock)):
            connected.close()
            return Foreign("it is one of the gateway's own sockets, not an engine's; remove it from the replicas")
        connection = await tls_over(connected) if self._access.tls else connected
        if isinstance(connection, NoAnswer):
            return unanswered(connection)
        self._http = UnixHttp(self._address, connection, self._access, budget_bytes=LARGEST_ANSWERS_BYTES)
        try:
            begun = await self._http.begin(http_probe.first_page(self._access), HEDGE_S)
            if self._access.engine is not None:
                found = judge((await self._ask_http(self._http),), self._http.protocol)
            elif begun:
                found = await self._in_turn(self._http)
            else:
                found = await self._at_once(self._http)
            if self._access.tls is None and self._may_be_tls() and await _speaks_tls(self._address):
                return Foreign("it speaks TLS only; set `health: {tls: true}`")
            return found
        finally:
            self._http.close()

    def overdue(self) -> ProbeResult:
        """Judge what is known by now, when the time is up."""
        if self._http is None:
            return unanswered(NoAnswer(Failure.CROWDED, f"for {self._timeout_s:g} s"))
        if isinstance(self._as_http, Foreign):
            return self._as_http
        if self._grpc is not None and self._grpc.loading is not None:
            return self._grpc.loading
        match self._http.protocol:
            case Protocol.HTTP1:
                asked = self._http.asked
            case Protocol.HTTP2:
                asked = "gRPC"
            case _:
                asked = "HTTP or gRPC"
        begun = asked in http_probe.IDENTIFYING
        return Unknown(f"no answer to {asked} within {self._timeout_s:g} s" + begun * "; asked again", begun=begun)

    async def _in_turn(self, http: UnixHttp) -> ProbeResult:
        """Ask gRPC where HTTP decides nothing: its first bytes are there, so it is told at once if they are others'."""
        as_http = await self._ask_http(http)
        if decisive(as_http):
            return judge((as_http,), http.protocol)
        as_grpc = await self._ask_grpc()
        return judge((as_grpc,) if decisive(as_grpc) else (as_http, as_grpc), http.protocol)

    async def _at_once(self, http: UnixHttp) -> ProbeResult:
        """Ask both a server that is silent."""
        both = [asyncio.create_task(self._ask_http(http)), asyncio.create_task(self._ask_grpc())]
        try:
            for first in asyncio.as_completed(both):
                result = await first
                if decisive(result):
                    return judge((result,), http.protocol)
            return judge([task.result() for task in both], http.protocol)
        finally:
            await cancelled(*both)

    def _may_be_tls(self) -> bool:
        """Whether it took a plain request as a TLS server does, which ends the connection or sends an alert."""
        told = self._as_http
        return isinstance(told, NoAnswer) and told.failure in (Failure.CLOSED, Failure.OTHER_PROTOCOL)

    async def _ask_http(self, http: UnixHttp) -> Outcome:
        self._as_http = await http_probe.identify(http, self._access)
        return self._as_http

    async def _ask_grpc(self) -> Outcome:
        self._grpc = GrpcConversation(self._address, self._access)
        try:
            return await self._grpc.identify()
        finally:
            self._grpc.close()
