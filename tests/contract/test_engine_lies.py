"""The probe against sockets that refuse, hang and lie: a verdict in time, never Ready, and nothing left over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from smg_grpc_proto.generated import sglang_scheduler_pb2

from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Unknown,
)
from gateway_sidecar.engines.probe import LARGEST_ANSWERS_BYTES, EngineProbe
from tests.contract import engine_replay as replay
from tests.contract.engine_replay import GrpcReplay, HttpReplay, Talk, serve_raw

SHORT_S = 0.4
"""The deadline where a test has to wait for it."""
AMPLE_S = 60.0
"""The deadline where an answer must come long before it."""

HTTP_FACTS = EngineFacts("vllm", ConnectionMode.HTTP, model="m")
GRPC_FACTS = EngineFacts("vllm", ConnectionMode.GRPC, model="m")


@pytest.fixture
def probe() -> EngineProbe:
    return EngineProbe()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r1.sock"


async def ask_all(probe: EngineProbe, path: Path, timeout_s: float) -> list[ProbeResult]:
    """First sight, and the repeated question over either protocol."""
    return [
        await probe.identify(str(path), timeout_s=timeout_s),
        await probe.check_health(str(path), HTTP_FACTS, timeout_s=timeout_s),
        await probe.check_health(str(path), GRPC_FACTS, timeout_s=timeout_s),
    ]


# --- nobody there -----------------------------------------------------------------------------------------------


async def test_no_socket_is_unknown(probe: EngineProbe, path: Path) -> None:
    """A socket that is not there says nothing about the engine: that it is gone is for the source to say."""
    assert await ask_all(probe, path, AMPLE_S) == [Unknown("no such socket")] * 3
    path.parent.joinpath("file").touch()
    assert await ask_all(probe, path.parent / "file" / "x", AMPLE_S) == [Unknown("no such socket")] * 3


async def test_a_refused_connection_is_an_engine_that_does_not_listen_yet(probe: EngineProbe, path: Path) -> None:
    """vLLM shows its socket file twenty seconds before it listens."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert await ask_all(probe, path, AMPLE_S) == [Loading("connection refused", refused=True)] * 3


async def test_a_plain_file_is_foreign(probe: EngineProbe, path: Path) -> None:
    """The kernel refuses a connection to a plain file as well, but no engine will ever listen there."""
    path.touch()
    assert await ask_all(probe, path, AMPLE_S) == [Foreign("not a socket")] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not connect")
async def test_a_forbidden_socket_is_unknown_and_the_reason_names_the_cure(probe: EngineProbe, path: Path) -> None:
    """Permissions are ours to repair, not the engine's."""
    async with HttpReplay.of("vllm-http").serve(path):
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            seen = await ask_all(probe, path, AMPLE_S)
        finally:
            os.seteuid(0)
    for result in seen:
        assert isinstance(result, Unknown)
        assert "permission denied" in result.reason
        assert "x on every directory" in result.reason


async def test_a_full_queue_of_connections_is_busy_and_not_closed(probe: EngineProbe, path: Path) -> None:
    """Busy is not dead: an engine that hangs long enough has a full backlog, and then connect() fails at once."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen(0)
        error = 0
        while error == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            error = client.connect_ex(str(path))
        assert error == errno.EAGAIN
        seen = await ask_all(probe, path, SHORT_S)
        assert all(isinstance(result, Unknown) for result in seen)
        assert isinstance(seen[0], Unknown)
        assert "queue of waiting connections is full" in seen[0].reason


# --- somebody strange -------------------------------------------------------------------------------------------


def say(*parts: bytes, wait: bool = True) -> Talk:
    """Says something at once, whatever it is asked, and closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if wait:
            await reader.read(1)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return talk


def say_and_hold(*parts: bytes) -> Talk:
    """Says something at once, and then nothing more until the other side goes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(*parts)(reader, writer)
        while await reader.read(65536):
            pass

    return talk


async def turn_away_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Opens with HTTP/2 for an HTTP/1 request, and says nothing to HTTP/2's own preface."""
    if await reader.read(1) == b"G":
        writer.write(SETTINGS)
    while await reader.read(65536):
        pass


def repeat(start: bytes, part: bytes) -> Talk:
    """Says something without end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(start)(reader, writer)
        while True:
            writer.write(part)
            await writer.drain()

    return talk


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The right answer, one byte at a time, never done in time."""
    for byte in http_ok(b'{"object": "list", "data": []}'):
        await say(bytes((byte,)), wait=False)(reader, writer)
        await asyncio.sleep(0.05)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes with the request unread, which the other side sees as a reset."""


def http_ok(body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


def models(**entry: object) -> bytes:
    return json.dumps({"object": "list", "data": [entry]}).encode()


SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
MIB = 1024 * 1024


def frame(kind: int, flags: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


TABLE_BOMB = frame(1, 4, b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 12000, 1)
SWALLOWED = "no gRPC call gets through"


@dataclass(frozen=True)
class Lie:
    """What a server does, the verdict at first sight, and whether that takes until the deadline."""

    talk: Talk
    verdict: type[ProbeResult]
    hangs: bool = False
    reason: str = ""


LIES: dict[str, Lie] = {
    "accept and close": Lie(say(wait=False), Loading, reason="closed without an answer"),
    "accept, read and close": Lie(say(), Loading, reason="closed without an answer"),
    "reset": Lie(reset, Loading, reason="closed without an answer"),
    "silence": Lie(say_and_hold(), Unknown, hangs=True, reason="no answer to HTTP or gRPC within 0.4 s"),
    "SSH": Lie(say_and_hold(b"SSH-2.0-OpenSSH_9.2\r\n"), Foreign, reason="SSH-2.0"),
    "Redis": Lie(say(b"-ERR unknown command\r\n"), Foreign, reason="-ERR"),
    "binary noise": Lie(say(bytes(range(255, 0, -1))), Foreign, reason="speaks another protocol"),
    "one byte": Lie(say(b"H"), Unknown),
    "zeros": Lie(repeat(b"", bytes(4096)), Foreign, reason="speaks another protocol"),
    "web page": Lie(say(http_ok(b"<!DOCTYPE html><html>Welcome</html>")), Foreign, reason="no OpenAI model list"),
    "redirect": Lie(say(b"HTTP/1.1 302 Found\r\nLocation: /v1/models\r\nContent-Length: 0\r\n\r\n"), Foreign),
    "upgrade": Lie(say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), Unknown),
    "200 to everything, nothing in it": Lie(say(http_ok(b"")), Foreign),
    "200 and ok to everything": Lie(say(http_ok(b'{"status":"ok"}')), Foreign),
    "an error page": Lie(say(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"), Unknown),
    "too many requests": Lie(say(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"), Unknown),
    "unavailable": Lie(say(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"), Loading),
    "bad status line": Lie(say(b"HTTP/9.9 -1 ?\r\n\r\n"), Unknown, reason="malformed HTTP"),
    "negative length": Lie(say(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"), Unknown, reason="malformed"),
    "cut in the headers": Lie(say(b"HTTP/1.1 200 OK\r\nContent-Le"), Unknown, reason="in the middle"),
    "cut in the body": Lie(say(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), Unknown, reason="in the middle"),
    "cut in a chunk": Lie(
        say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"), Unknown, reason="in the middle"
    ),
    "slow drip": Lie(drip, Unknown, hangs=True, reason="no answer to"),
    "endless body": Lie(
        repeat(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB), b"[" * 65536), Foreign, reason="too large"
    ),
    "endless chunks": Lie(
        repeat(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b"[" * 0x8000 + b"\r\n"),
        Foreign,
        reason="too large",
    ),
    "endless chunks of one byte": Lie(
        repeat(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n" * 1000), Foreign, reason="pieces"
    ),
    "endless headers": Lie(repeat(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), Unknown, reason="malformed HTTP"),
    "a header without an end": Lie(
        repeat(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536), Unknown, reason="headers without an end"
    ),
    "endless fields behind the body": Lie(
        repeat(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n", b"X: y\r\n" * 1000),
        Unknown,
        reason="headers without an end",
    ),
    "endless 100 Continue": Lie(repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), Foreign, reason="pieces"),
    "compressed": Lie(say(http_ok(b"\x1f\x8b\x08\0\0", b"Content-Encoding: gzip\r\n")), Foreign),
    "deep JSON": Lie(say(http_ok(b"[" * MIB)), Foreign, reason="no OpenAI model list"),
    "JSON of another kind": Lie(say(http_ok(b'[{"object": "list"}]')), Foreign),
    "an endless number": Lie(say(http_ok(b'{"object": "list", "data": %s}' % (b"9" * 10000))), Foreign),
    "no UTF-8": Lie(say(http_ok(b'{"object": "list", "data": ["\xff"]}')), Foreign),
    "model without a name": Lie(say(http_ok(models(id="", owned_by="vllm"))), Foreign),
    "model with a number for a name": Lie(say(http_ok(models(id=7, owned_by="vllm"))), Foreign),
    "model with an endless name": Lie(say(http_ok(models(id="m" * 5000, owned_by="vllm"))), Foreign),
    "model with a line break": Lie(say(http_ok(models(id="m\nlevel=error", owned_by="vllm"))), Foreign),
    "model with half a character": Lie(say(http_ok(models(id="\ud800", owned_by="vllm"))), Foreign),
    "vLLM in every answer, even of its health": Lie(say(http_ok(b"<p>vllm</p>")), Foreign),
    "HTTP/2 and then nothing": Lie(say_and_hold(SETTINGS), Unknown, hangs=True, reason="no answer to gRPC"),
    "HTTP/2 for HTTP/1 alone": Lie(turn_away_http2, Unknown, hangs=True, reason="no answer to gRPC"),
    "HTTP/2 and then the end": Lie(say(SETTINGS), Unknown, reason="no gRPC call gets through"),
    "HTTP/2 with a frame of 16 MiB": Lie(
        say_and_hold(SETTINGS, b"\xff\xff\xff\0\0\0\0\0\x01"), Unknown, reason="a frame of"
    ),
    "HTTP/2: endless PING": Lie(repeat(SETTINGS, frame(6, 0, bytes(8)) * 4000), Unknown, reason=SWALLOWED),
    "HTTP/2: endless SETTINGS": Lie(repeat(SETTINGS, SETTINGS * 4000), Unknown, reason=SWALLOWED),
    "HTTP/2: endless CONTINUATION": Lie(
        repeat(SETTINGS + frame(1, 0, b"\x88", 1), frame(9, 0, b"\x88" * 1000, 1) * 60), Unknown, reason=SWALLOWED
    ),
    "HTTP/2: endless DATA": Lie(
        repeat(SETTINGS + frame(1, 4, b"\x88", 1), frame(0, 0, bytes(16384), 1) * 4), Unknown, reason="more than"
    ),
    "HTTP/2: a header bomb": Lie(say_and_hold(SETTINGS, TABLE_BOMB), Unknown, reason="cannot be read"),
    "HTTP/2: GOAWAY alone": Lie(say_and_hold(frame(7, 0, bytes(8))), Unknown, reason="GOAWAY"),
    "HTTP/2: GOAWAY in turn": Lie(say_and_hold(SETTINGS, frame(7, 0, bytes(8))), Unknown, reason="GOAWAY"),
    "HTTP/2: 1.7 MB of PING, then nothing": Lie(
        say_and_hold(SETTINGS, frame(6, 0, bytes(8)) * 100_000), Unknown, reason="pieces"
    ),
    "HTTP/2 with a wrong frame first": Lie(say_and_hold(b"\0\0\x04\0\x01\0\0\0\x01\0\0\0\0"), Foreign),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_no_lie_is_taken_for_an_engine(probe: EngineProbe, path: Path, lie: Lie) -> None:
    """A wrong identification is worse than a retry, and no answer may raise, or take longer than the deadline."""
    async with serve_raw(path, lie.talk):
        began = time.monotonic()
        seen = await probe.identify(str(path), timeout_s=SHORT_S if lie.hangs else AMPLE_S)
        assert time.monotonic() - began < AMPLE_S / 2
        while lie.hangs and isinstance(seen, Unknown) and lie.reason not in seen.reason:
            seen = await probe.identify(str(path), timeout_s=SHORT_S)  # We were held up until the deadline.
        assert isinstance(seen, lie.verdict)
        assert isinstance(seen, Loading | Foreign | Unknown)
        assert lie.reason in seen.reason
        await probe.check_health(str(path), HTTP_FACTS, timeout_s=SHORT_S)
        again = await probe.check_health(str(path), GRPC_FACTS, timeout_s=SHORT_S)
        assert not isinstance(again, Ready)


async def test_a_web_page_at_health_is_not_health(probe: EngineProbe, path: Path) -> None:
    """Another occupant behind the same socket, a web server that says 200 everywhere, must not pass for ours."""
    async with serve_raw(path, say(http_ok(b"<!DOCTYPE html><html>Welcome</html>"))):
        assert isinstance(await probe.check_health(str(path), HTTP_FACTS, timeout_s=AMPLE_S), Unknown)


async def test_redirects_are_not_followed(probe: EngineProbe, path: Path) -> None:
    """A redirect may lead anywhere; an engine does not send one."""
    server = HttpReplay({"/v1/models": (302, "")})
    async with server.serve(path):
        assert isinstance(await probe.identify(str(path), timeout_s=AMPLE_S), Foreign)
    assert [request.path for request in server.seen if request.method == "GET"] == ["/v1/models"]


async def test_the_limit_holds_for_all_answers_together(probe: EngineProbe, path: Path) -> None:
    """Each answer below the limit, and all of them above it, is as bad as one that is too large."""
    server = HttpReplay.of("sglang-http")
    padding = "x" * (LARGEST_ANSWERS_BYTES // 2)
    for asked in ("/v1/models", "/server_info"):
        status, body = server.answers[asked]
        server.answers[asked] = (status, body | {"padding": padding})
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=AMPLE_S)
    assert seen == Unknown("/server_info: answer too large")


async def test_an_answer_too_many_is_not_taken_for_the_next(probe: EngineProbe, path: Path) -> None:
    """Two answers to one question: the second must not become the answer to the next question."""
    info = b'{"model_path": "m", "disaggregation_mode": "decode"}'
    async with serve_raw(path, say(http_ok(models(id="m", owned_by="sglang")) + http_ok(info))):
        assert not isinstance(await probe.identify(str(path), timeout_s=AMPLE_S), Ready)


# --- an engine that tells nonsense ------------------------------------------------------------------------------


SGLANG_NONSENSE: dict[str, dict[str, object]] = {
    "no role that is known": {"disaggregation_mode": "prefil"},
    "a role that is no word": {"disaggregation_mode": ["prefill"]},
    "prefill without a port": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": None},
    "prefill at NaN": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": float("nan")},
    "prefill at infinity": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": float("inf")},
    "prefill at half a port": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 8998.5},
    "prefill at port -1": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": -1},
    "prefill at port 65536": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 65536},
    "prefill at true": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": True},
    "prefill at a text": {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": "8998"},
}


@pytest.mark.parametrize("nonsense", SGLANG_NONSENSE.values(), ids=SGLANG_NONSENSE)
async def test_sglang_with_a_role_that_cannot_be_read_is_unknown(
    probe: EngineProbe, tmp_path: Path, nonsense: dict[str, object]
) -> None:
    """A role that is told and not understood is never guessed: the wrong one sends requests into the void."""
    http = HttpReplay.of("sglang-http")
    status, body = http.answers["/server_info"]
    http.answers["/server_info"] = (status, body | nonsense)
    rpc = GrpcReplay.of("sglang-grpc", replay.SGLANG)
    info = rpc.answers["GetServerInfo"]
    assert isinstance(info, sglang_scheduler_pb2.GetServerInfoResponse)
    info.server_args.update(nonsense)
    async with http.serve(tmp_path / "http.sock"), rpc.serve(tmp_path / "grpc.sock"):
        for name in ("http", "grpc"):
            seen = await probe.identify(str(tmp_path / f"{name}.sock"), timeout_s=AMPLE_S)
            assert isinstance(seen, Unknown)


@pytest.mark.parametrize(
    "answer", [(200, "<html>"), (200, {}), (200, []), (404, ""), (500, ""), (503, ""), (401, "")], ids=str
)
async def test_sglang_that_does_not_tell_its_role_is_unknown(
    probe: EngineProbe, path: Path, answer: tuple[int, object]
) -> None:
    """The model list names the engine; without the role that is not enough."""
    server = HttpReplay.of("sglang-http")
    server.answers["/server_info"] = server.answers["/get_server_info"] = answer
    async with server.serve(path):
        assert isinstance(await probe.identify(str(path), timeout_s=AMPLE_S), Unknown)


@pytest.mark.parametrize("answer", [(500, ""), (503, ""), (403, "")], ids=str)
async def test_vllm_that_may_have_a_role_and_does_not_tell_it_is_unknown(
    probe: EngineProbe, path: Path, answer: tuple[int, object]
) -> None:
    """404 is a vLLM outside development mode; any other failure may hide a role."""
    server = HttpReplay.of("vllm-http")
    server.answers["/server_info"] = answer
    async with server.serve(path):
        assert isinstance(await probe.identify(str(path), timeout_s=AMPLE_S), Unknown)


def vllm(**changes: object) -> GrpcReplay:
    """The recorded vLLM over gRPC, changed."""
    return replace(GrpcReplay.of("vllm-grpc", replay.VLLM), **changes)  # type: ignore[arg-type]


def fails(*methods: str, code: grpc.StatusCode) -> dict[str, grpc.StatusCode]:
    return dict.fromkeys(methods, code)


INFO = ("GetServerInfo", "GetModelInfo")
HUGE = bytes(8 * MIB)

GRPC_LIES: dict[str, tuple[GrpcReplay, type[ProbeResult]]] = {
    "no protobuf": (vllm(answers=dict.fromkeys(INFO, b"\xff\xff\xff")), Unknown),
    "no UTF-8": (vllm(answers={"GetServerInfo": b"\x3a\x01\xff", "GetModelInfo": b""}), Unknown),
    "huge": (vllm(answers=dict.fromkeys(INFO, HUGE)), Unknown),
    "as much as may be received": (vllm(answers=dict.fromkeys(INFO, b"\x32" * 300_000)), Unknown),
    "a role that is not known": (
        vllm(answers={"GetServerInfo": b"\x3a\x06banana", "GetModelInfo": b""}),
        Unknown,
    ),
    "two engines": (vllm(listed=[replay.VLLM, replay.MLX]), Foreign),
    "another service": (vllm(service="x.Y", listed=["x.Y"]), Foreign),
    "another service, without reflection": (vllm(service="x.Y", listed=None), Foreign),
    "a name without the engine": (vllm(answers={}), Unknown),
    "no info yet": (vllm(failures=fails(*INFO, code=grpc.StatusCode.UNAVAILABLE)), Unknown),
    "cancels": (vllm(failures=fails(*INFO, code=grpc.StatusCode.CANCELLED)), Unknown),
    "cancels everything": (
        vllm(failures=fails(*INFO, "ServerReflectionInfo", "Check", code=grpc.StatusCode.CANCELLED)),
        Unknown,
    ),
    "fails in reflection": (
        vllm(failures=fails("ServerReflectionInfo", code=grpc.StatusCode.INTERNAL)),
        Unknown,
    ),
    "no health at all": (vllm(health=None), Unknown),
    "health of others": (vllm(health={"x.Y": 1}), Unknown),
    "health not known": (vllm(health={"": 0}), Unknown),
    "health out of range": (vllm(health={"": 77}), Unknown),
    "health says service unknown": (vllm(health={"": 3}), Unknown),
    "health fails": (vllm(failures=fails("Check", code=grpc.StatusCode.INTERNAL)), Unknown),
}


@pytest.mark.parametrize(("server", "verdict"), GRPC_LIES.values(), ids=GRPC_LIES)
async def test_no_grpc_lie_is_taken_for_an_engine(
    probe: EngineProbe, path: Path, server: GrpcReplay, verdict: type[ProbeResult]
) -> None:
    """Over gRPC too: named, understood and serving, or not Ready."""
    async with server.serve(path):
        seen = await probe.identify(str(path), timeout_s=AMPLE_S)
        assert isinstance(seen, verdict)
        await probe.check_health(str(path), GRPC_FACTS, timeout_s=AMPLE_S)


ESCAPES = "\x1b]0;x\x07\x1b[2J\n\u202e\u2028\x85\x9b31m"


async def test_what_a_grpc_server_says_can_be_shown(probe: EngineProbe, path: Path) -> None:
    """The words of an error and the names in reflection go into `reason`, the log and tables: no escape among them."""

    class Writes(GrpcReplay):
        async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if path.endswith("GetServerInfo"):
                await context.abort(grpc.StatusCode.INTERNAL, ESCAPES + "x" * 5000)
            return await super().answer(path, request, context)

    known = vllm()
    async with Writes(known.service, known.answers, known.health, known.listed).serve(path):
        seen = await probe.identify(str(path), timeout_s=AMPLE_S)
    assert isinstance(seen, Unknown)
    assert "GetServerInfo answers INTERNAL (\\x1b]0;x\\x07\\x1b[2J\\n\\u202e\\u2028\\x85\\x9b31mxxx" in seen.reason
    assert seen.reason.isprintable()
    assert len(seen.reason) < 400

    async with vllm(service="x.Y", listed=[ESCAPES, *map(str, range(500))]).serve(path):
        seen = await probe.identify(str(path), timeout_s=AMPLE_S)
    assert isinstance(seen, Foreign)
    assert seen.reason.isprintable()
    assert len(seen.reason) < 400


async def test_a_server_that_says_ok_to_every_call_is_foreign(probe: EngineProbe, path: Path) -> None:
    """An empty message is a valid answer of every method; who answers as all engines is none."""

    class SaysOk(GrpcReplay):
        async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return b""

    async with SaysOk("", {}).serve(path):
        seen = await probe.identify(str(path), timeout_s=AMPLE_S)
    assert isinstance(seen, Foreign)
    assert "several engines" in seen.reason


async def test_not_serving_is_loading_even_where_the_rest_hangs(probe: EngineProbe, path: Path) -> None:
    """What was learnt before the deadline is not lost with it."""

    class Stuck(GrpcReplay):
        async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            if path.endswith("Info") and not path.endswith("ReflectionInfo"):
                await asyncio.Event().wait()
            return await super().answer(path, request, context)

    known = vllm(health={"": 2})
    async with Stuck(known.service, known.answers, known.health, known.listed).serve(path):
        while isinstance(seen := await probe.identify(str(path), timeout_s=SHORT_S), Unknown):
            pass  # A busy machine may need as long for what it does answer.
        assert seen == Loading("grpc.health.v1 says NOT_SERVING")


# --- nothing left over ------------------------------------------------------------------------------------------


def open_files() -> int:
    """Descriptors of this process; the one that lists them is always among them."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def settled(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Whether it comes true: gRPC closes its sockets on threads of its own, a moment after the channel."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize("name", ["engine over HTTP", "engine over gRPC", *LIES])
async def test_nothing_is_left_over(probe: EngineProbe, path: Path, name: str) -> None:
    """A probe repeated for half an hour must not eat descriptors, tasks or channels."""
    async with meeting(name, path):
        await ask_all(probe, path, SHORT_S)
        tasks, files = len(asyncio.all_tasks()), open_files()
        for _ in range(2 if name in LIES and LIES[name].hangs else 8):
            await ask_all(probe, path, 0.1)
        assert await settled(lambda: len(asyncio.all_tasks()) <= tasks and open_files() <= files)


async def test_a_cancelled_probe_leaves_nothing_over(probe: EngineProbe, path: Path) -> None:
    """The daemon may stop at any moment; cancellation is the one exception that comes out."""
    async with serve_raw(path, say_and_hold()):
        await ask_all(probe, path, 0.1)
        tasks, files = len(asyncio.all_tasks()), open_files()
        for pause_s in (0.0, 0.01, 0.1):
            asking = [
                asyncio.create_task(probe.identify(str(path), timeout_s=AMPLE_S)),
                asyncio.create_task(probe.check_health(str(path), HTTP_FACTS, timeout_s=AMPLE_S)),
                asyncio.create_task(probe.check_health(str(path), GRPC_FACTS, timeout_s=AMPLE_S)),
            ]
            await asyncio.wait(asking, timeout=pause_s)
            for task in asking:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert await settled(lambda: len(asyncio.all_tasks()) <= tasks and open_files() <= files)


def meeting(name: str, path: Path) -> contextlib.AbstractAsyncContextManager[object]:
    """Who is met behind the socket."""
    if name == "engine over HTTP":
        return HttpReplay.of("vllm-http").serve(path)
    if name == "engine over gRPC":
        return vllm().serve(path)
    return serve_raw(path, LIES[name].talk)
