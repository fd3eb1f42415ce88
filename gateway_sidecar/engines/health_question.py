"""A question for health that was sent without waiting, and whose answer is looked for later.

Most engines are well, and there may be a thousand. Such a question takes five system calls and no task; engines of one
kind answer in the same bytes, whose meaning is remembered. It tells only whether an engine says that it is well: what
anything else means, `EngineProbe.check_health` finds when it asks.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import lru_cache

import httptools

from gateway_sidecar.domain.discovery import judge_http_health, read_standard_health
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Ready
from gateway_sidecar.engines.dialect import STANDARD_HEALTH
from gateway_sidecar.engines.h2_unary import Broken, Calls
from gateway_sidecar.engines.http_probe import HEALTH
from gateway_sidecar.engines.messages import decode
from gateway_sidecar.engines.unix_http import BoundError, Response, request_for
from gateway_sidecar.engines.unix_socket import connect_at_once
from gateway_sidecar.kinds import ENGINES

_LONGEST_BYTES = 4096
"""Of an answer that is read here. SGLang over gRPC, the longest, has 300."""
_MOST_LOOKS = 10
"""At an answer that has begun: a second. A server may wait for what is not said here."""
_ANY = EngineFacts("", ConnectionMode.HTTP)
_STANDARD = [(STANDARD_HEALTH.rpc.path, STANDARD_HEALTH.rpc.request().SerializeToString())]


class HealthQuestion:
    """One question under way. Whoever has it closes it."""

    def __init__(self, sock: socket.socket, facts: EngineFacts) -> None:
        self._sock = sock
        self._received = b""
        self._looks_left = _MOST_LOOKS
        self._reads = _is_well_over_grpc if facts.connection_mode is ConnectionMode.GRPC else _is_well_over_http

    def is_well(self) -> bool | None:
        """Whether the engine has said that it is well; None while it has said nothing, or not all of it yet."""
        try:
            more = self._sock.recv(_LONGEST_BYTES)
        except BlockingIOError:
            if not self._received:
                return None
        except OSError:
            return False
        else:
            self._received += more
            if not more or len(self._received) >= _LONGEST_BYTES:
                return False
        self._looks_left -= 1
        said = self._reads(self._received)
        return False if said is None and self._looks_left <= 0 else said

    def close(self) -> None:
        """Closes its connection."""
        self._sock.close()


def ask(address: str, facts: EngineFacts, api_key: str | None) -> HealthQuestion | None:
    """Asks at once; None where that cannot be done."""
    if facts.connection_mode is ConnectionMode.GRPC:
        dialect = ENGINES[facts.runtime_type].grpc
        if dialect is not None and dialect.health is not STANDARD_HEALTH:
            return None
        request = _grpc_request(api_key)
    else:
        request = request_for(HEALTH, api_key, last=True)
    sock = connect_at_once(address)
    if sock is None:
        return None
    with suppress(OSError):
        if sock.send(request) == len(request):
            return HealthQuestion(sock, facts)
    sock.close()
    return None


@lru_cache(maxsize=64)
def _grpc_request(api_key: str | None) -> bytes:
    return Calls(api_key).begin(_STANDARD)[0]


@lru_cache(maxsize=256)
def _is_well_over_http(received: bytes) -> bool | None:
    response = Response()
    try:
        response.feed(received)
    except (BoundError, httptools.HttpParserError, httptools.HttpParserUpgrade):
        return False
    if not response.is_complete:
        return None
    return not response.has_more and isinstance(judge_http_health(_ANY, response.answer()), Ready)


@lru_cache(maxsize=256)
def _is_well_over_grpc(received: bytes) -> bool | None:
    calls = Calls(None)
    _, (stream,) = calls.begin(_STANDARD)
    try:
        calls.feed(received)
    except Broken:
        return False
    reply = calls.reply(stream)
    if reply is None:
        return None
    if reply.code != "OK":
        return False
    return read_standard_health(decode(STANDARD_HEALTH.rpc.response, reply.message)).ready is True
