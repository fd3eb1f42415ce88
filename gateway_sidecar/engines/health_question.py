"""A question for health that was sent without waiting, and whose answer is looked for later.

Most engines are well, and there may be a thousand. Such a question takes five system calls and no task. It tells only
whether an engine says that it is well and, if asked, that its names are those that are known: what anything else means,
`EngineProbe.check_health` finds when it asks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial

import httptools

from gateway_sidecar.domain.discovery import HttpAnswer, ModelList, judge_http_health, read_models, read_standard_health
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Ready
from gateway_sidecar.engines.dialect import STANDARD_HEALTH
from gateway_sidecar.engines.h2_unary import Broken, Calls
from gateway_sidecar.engines.http_probe import HEALTH
from gateway_sidecar.engines.messages import decode
from gateway_sidecar.engines.unix_http import request_for
from gateway_sidecar.engines.unix_socket import connect_at_once
from gateway_sidecar.kinds import ENGINES

_LONGEST_BYTES = 4096
"""Of an answer that is read here. SGLang over gRPC, the longest, has 300."""
_MOST_LOOKS = 10
"""At an answer that has begun: a second. A server may wait for what is not said here."""
_FIRST_STREAM = b"\0\0\0\1"
_STANDARD = [(STANDARD_HEALTH.rpc.path, STANDARD_HEALTH.rpc.request().SerializeToString())]


class HealthQuestion:
    """One question under way. Whoever has it closes it."""

    def __init__(self, sock: socket.socket, reads: Callable[[bytes], bool | None]) -> None:
        self._sock = sock
        self._received = b""
        self._looks_left = _MOST_LOOKS
        self._reads = reads

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


def ask(address: str, facts: EngineFacts, api_key: str | None, models: str | None = None) -> HealthQuestion | None:
    """Asks at once; None where that cannot be done. models: the page of an HTTP engine that tells its names."""
    reads: Callable[[bytes], bool | None]
    if facts.connection_mode is ConnectionMode.GRPC:
        dialect = ENGINES[facts.runtime_type].grpc
        if dialect is not None and dialect.health is not STANDARD_HEALTH:
            return None
        request, reads = _grpc_request(api_key), _is_well_over_grpc
    else:
        listing = b"" if models is None else request_for(models, api_key, last=False)
        request = listing + request_for(HEALTH, api_key, last=True)
        reads = partial(_is_well_over_http, facts, lists=models is not None)
    sock = connect_at_once(address)
    if sock is None:
        return None
    with suppress(OSError):
        if sock.send(request) == len(request):
            return HealthQuestion(sock, reads)
    sock.close()
    return None


@lru_cache(maxsize=64)
def _grpc_request(api_key: str | None) -> bytes:
    return Calls(api_key).begin(_STANDARD)[0]


class _Responses:
    """What httptools finds in the bytes of some responses, one after the other."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.answers: list[HttpAnswer] = []
        self._body = bytearray()

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self.answers.append(HttpAnswer(self.parser.get_status_code(), bytes(self._body)))
        self._body.clear()


def _is_well_over_http(facts: EngineFacts, received: bytes, *, lists: bool) -> bool | None:
    responses = _Responses()
    try:
        responses.parser.feed_data(received)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return False
    if len(responses.answers) < 1 + lists:
        return None
    *listings, health = responses.answers
    if len(listings) > lists or not isinstance(judge_http_health(facts, health), Ready):
        return False
    return all(_has_same_names(facts, read_models(listing)) for listing in listings)


def _has_same_names(facts: EngineFacts, models: object) -> bool:
    return isinstance(models, ModelList) and facts.listing(facts.model, models.ids).names == facts.names


def _is_well_over_grpc(received: bytes) -> bool | None:
    """The connection's own frames, of which a PING is another each time, say nothing of this."""
    said, begin = b"", 0
    while (end := begin + 9 + int.from_bytes(received[begin : begin + 3])) <= len(received):
        if received[begin + 5 : begin + 9] == _FIRST_STREAM:
            said += received[begin:end]
        begin = end
    return _is_well_by(said)


@lru_cache(maxsize=256)
def _is_well_by(frames: bytes) -> bool | None:
    """Engines of one kind answer in the same frames."""
    calls = Calls(None)
    _, (stream,) = calls.begin(_STANDARD)
    try:
        calls.feed(frames)
    except Broken:
        return False
    reply = calls.reply(stream)
    if reply is None:
        return None
    if reply.code != "OK":
        return False
    return read_standard_health(decode(STANDARD_HEALTH.rpc.response, reply.message)).ready is True
