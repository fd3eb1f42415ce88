"""The engines' edge: what a server behind a Unix socket answers to the probe and to the reader of its metrics."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hpack import Encoder

from gateway_sidecar.domain.discovery import LONGEST_NAME
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, ProbeResult, Ready
from gateway_sidecar.domain.printable import LONGEST
from gateway_sidecar.engines.engine_metrics import EngineMetrics
from gateway_sidecar.engines.probe import EngineProbe
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.supervision.own_thread import OwnThread
from tests.contract.engine_replay import FIXTURES, SGLANG, VLLM, message
from tests.fuzz.frame import Edge, Trial
from tests.fuzz.mutation import EVIL_TEXTS, mutated
from tests.fuzz.servers import Line, Talk, serving

_PATIENCE_S = 0.4
_HTTP = EngineFacts("vllm", ConnectionMode.HTTP, model="m")
_GRPC = EngineFacts("vllm", ConnectionMode.GRPC, model="m")
_TRTLLM = EngineFacts("trtllm", ConnectionMode.GRPC, model="m")
_MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def _open(directory: Path) -> AsyncIterator[Trial]:
    probe, metrics, reader = EngineProbe(), EngineMetrics(), OwnThread("metrics pages")
    path = directory / "r1.sock"

    async def trial(source: random.Random) -> str:
        kind, talk = source.choice(_TALKS)
        with serving(path, talk, str(source.random())):
            if kind == "metrics":
                return f"{kind}: {await _read_metrics(metrics, reader, path, source)}"
            seen = await probe.identify(
                str(path), timeout_s=_PATIENCE_S, access=Access(api_key=source.choice((None, "key")))
            )
            known = source.choice((_HTTP, _GRPC, _TRTLLM))
            again = await probe.check_health(str(path), known, timeout_s=_PATIENCE_S)
        assert kind.startswith("changed") or not isinstance(seen, Ready), f"rubbish was taken for {seen}"
        _judge(seen)
        _judge(again)
        return f"{kind}: {type(seen).__name__}"

    try:
        yield trial
    finally:
        reader.end()


def _judge(result: ProbeResult) -> None:
    if isinstance(result, Ready):
        facts = result.facts
        for name in (facts.model, facts.version, facts.kv_connector, facts.kv_role, facts.kv_engine_id):
            assert name is None or (name.isprintable() and len(name) <= LONGEST_NAME), repr(name)
        return
    assert result.reason.isprintable(), repr(result.reason)
    assert len(result.reason) <= LONGEST * 10


async def _read_metrics(metrics: EngineMetrics, reader: OwnThread, path: Path, source: random.Random) -> str:
    facts = EngineFacts(source.choice(("vllm", "sglang", "trtllm")), ConnectionMode.HTTP)
    try:
        page = await metrics.page(str(path), facts, Access(), timeout_s=_PATIENCE_S * 5)
    except MetricsError as error:
        return "MetricsError" if str(error).isprintable() else f"forged {str(error)!r}"
    reading = await reader.run(partial(metrics.read, page, facts), patience_s=10)
    return "read" if reading.ttft or reading.itl else "nothing in it"


# --- HTTP/1 -----------------------------------------------------------------------------------------------------


def _recorded(name: str) -> dict[str, bytes]:
    told = json.loads((FIXTURES / f"{name}.json").read_text())
    return {path: _http(answer["status"], json.dumps(answer["body"]).encode()) for path, answer in told.items()}


def _http(status: int, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Told\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


_HTTP_ENGINES = [_recorded(name) for name in ("sglang-http", "vllm-http", "mlx_lm-http")]
_NOT_FOUND = _http(404, b"{}")


def _changed_http(line: Line) -> None:
    """A recorded engine, each answer changed a little, sent in odd pieces."""
    engine = line.random.choice(_HTTP_ENGINES)
    heard = b""
    while True:
        more = line.hear()
        if not more:
            return
        heard += more
        while b"\r\n\r\n" in heard:
            head, _, heard = heard.partition(b"\r\n\r\n")
            words = head.split()
            path = words[1].decode("latin-1").partition("?")[0] if len(words) > 1 else ""
            _in_pieces(line, mutated(line.random, engine.get(path, _NOT_FOUND)))


def _in_pieces(line: Line, whole: bytes) -> None:
    size = line.random.choice((1, 7, 1000, 65536)) if len(whole) < 5000 else 65536
    for at in range(0, len(whole), size):
        line.say(whole[at : at + size])


def _strange_http(line: Line) -> None:
    """What no engine would answer, and a parser might choke on."""
    line.hear()
    source = line.random
    size = source.choice((1000, 100_000, _MIB, 4 * _MIB))
    match source.randrange(8):
        case 0:
            line.say(_http(200, _strange_json(source, size)))
        case 1:
            line.say(b"HTTP/1.1 200 OK\r\n")
            line.say_again(
                source.choice((b"a:\r\n", b"X: y\r\n", b"x" * 100, b"Content-Length: 1\r\n", b" \r\n")), size
            )
        case 2:
            chunk = source.choice(
                (b"1\r\n[\r\n", b"1;" + b"e" * 50 + b"\r\n[\r\n", b"8000\r\n" + b"[" * 0x8000 + b"\r\n")
            )
            line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            line.say_again(chunk, size)
            line.say(b"0\r\n\r\n")
        case 3:
            line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n")
            line.say_again(source.choice((b"a:\r\n", b"X: " + b"y" * 1000 + b"\r\n", b"z")), size)
        case 4:
            line.say_again(source.choice((b"HTTP/1.1 100 Continue\r\n\r\n", _http(200, b"{}"), b"\r\n", b"\0")), size)
        case 5:
            line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (10 * size))
            line.say_again(source.choice((b"[", b"{", b'"', b" ", b"\xff", b"1,")), size)
        case 6:
            line.say(source.randbytes(source.randrange(1, 3000)))
        case 7:
            line.say(*(bytes((byte,)) for byte in _http(200, b'{"object": "list", "data": []}' + b" " * 2000)))
    if source.random() < 0.3:
        line.hold()


def _strange_json(source: random.Random, size: int) -> bytes:
    part, end = source.choice(
        (
            (b"[", b""),
            (b'{"a":', b""),
            (b"{},", b"{}]"),
            (b'{"":0},', b"{}]"),
            (b"1,", b"1]"),
            (b"9" * 4000 + b",", b"1]"),
            (b"0." + b"1" * 4000 + b"e-300,", b"1]"),
            (b'"\\u00e9\\ud800",', b"1]"),
            ("\U0001f600".encode(), b""),
            (b'{"id":"m","owned_by":"vllm"},', b'{"id":"m"}]'),
            (b'{"id":"' + source.choice(EVIL_TEXTS).encode() + b'"},', b"{}]"),
        )
    )
    opening = source.choice((b"[", b'{"object":"list","data":[', b'"', b""))
    return opening + part * (size // len(part)) + end + source.choice((b"}", b"", b'"'))


# --- HTTP/2 and gRPC --------------------------------------------------------------------------------------------

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_OPENING = b"\0\0\0\x04\0\0\0\0\0"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind & 255, flags & 255)) + stream.to_bytes(4) + payload


def _random_frame(source: random.Random) -> bytes:
    kind = source.choice((*range(11), _HEADERS, _DATA, 77))
    payload = source.choice(
        (
            b"",
            bytes(8),
            source.randbytes(source.randrange(200)),
            b"\x88",
            b"\x20" * source.randrange(16000),
            b"\xbe" * source.randrange(16000),
            b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * source.randrange(12000),
            b"\x00\x01a\xff" + b"\xff" * source.randrange(16000),
            b"\0\x04\0\x40\0\0" * source.randrange(200),
            bytes(source.randrange(16384)),
        )
    )
    flags = source.choice((0, 1, 4, 5, 8, 0x2D, source.randrange(256)))
    frame = _frame(kind, flags, source.choice((0, 1, 1, 3, 3, 5, 7, 2**31 - 1)), payload)
    return frame if source.random() < 0.95 else mutated(source, frame)


def _strange_frames(line: Line) -> None:
    """Any frames in any order, some of them without end."""
    if line.hear()[:1] == b"G" and line.random.random() < 0.7:
        line.say(_OPENING)
        return
    line.say(_OPENING)
    for _ in range(line.random.randrange(1, 30)):
        frame = _random_frame(line.random)
        if line.random.random() < 0.1:
            line.say_again(frame, line.random.choice((10_000, 100_000, 3 * _MIB)))
        else:
            line.say(frame)
    if line.random.random() < 0.3:
        line.hold()


def _wires(service: str, name: str) -> dict[str, bytes]:
    told = json.loads((FIXTURES / f"{name}.json").read_text())
    wires = {
        f"/{service}/{method}": message(service, f"{method}Response", told[method]["json"])
        for method in ("GetServerInfo", "GetModelInfo", "HealthCheck")
    }
    wires["/grpc.health.v1.Health/Check"] = health_pb2.HealthCheckResponse(status=1)
    wires[_REFLECTION] = _listing([service])
    return {path: wire.SerializeToString() for path, wire in wires.items()}


def _listing(names: list[str]) -> Message:
    sent: Message
    services = [reflection_pb2.ServiceResponse(name=name) for name in names]
    listed = reflection_pb2.ListServiceResponse(service=services)
    sent = reflection_pb2.ServerReflectionResponse(list_services_response=listed)
    return sent


_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_GRPC_ENGINES = [_wires(VLLM, "vllm-grpc"), _wires(SGLANG, "sglang-grpc")]


def _changed_grpc(line: Line) -> None:
    """A recorded engine over gRPC; messages, states and words are changed, and now and then the frames."""
    engine = line.random.choice(_GRPC_ENGINES)
    heard = line.hear()
    if heard[:1] == b"G":
        line.say(_OPENING)
        return
    line.say(_OPENING)
    heard = heard[24:]
    while True:
        while len(heard) >= 9 and len(heard) >= 9 + int.from_bytes(heard[:3]):
            length, kind, stream = int.from_bytes(heard[:3]), heard[3], int.from_bytes(heard[5:9])
            payload, heard = heard[9 : 9 + length], heard[9 + length :]
            if kind == _HEADERS:
                path = next((path for path in engine if path.encode() in payload), "")
                _in_pieces(line, _grpc_answer(line.random, stream, engine.get(path)))
        more = line.hear()
        if not more:
            return
        heard += more


def _grpc_answer(source: random.Random, stream: int, wire: bytes | None) -> bytes:
    head = _frame(_HEADERS, 4, stream, Encoder().encode([(":status", "200"), ("content-type", "application/grpc")]))
    code = "12" if wire is None else source.choice(("0",) * 50 + ("1", "2", "5", "12", "13", "14", "16", "99", "x"))
    told = [("grpc-status", code)]
    if code != "0" or source.random() < 0.1:
        told.append(("grpc-message", source.choice(EVIL_TEXTS)))
    trailers = _frame(_HEADERS, 5, stream, Encoder().encode([*told], huffman=source.random() < 0.5))
    if wire is None:
        return head + trailers
    match source.randrange(24):
        case 0:
            wire = mutated(source, wire)
        case 1:
            wire = _listing([source.choice(EVIL_TEXTS).replace("\\ud800", "") for _ in range(20)]).SerializeToString()
        case 2:
            wire = b"\x32" + _length(count := source.choice((100, 20_000, 200_000))) + b"\x0a\0" * (count // 2)
        case 3:
            wire = source.choice((b"\x0a", b"\x12", b"\x32", b"\x3a")) * source.choice((10, 10_000, 200_000))
    body = bytes(1) + len(wire).to_bytes(4) + wire
    size = source.choice((1, 100, 16384)) if len(body) < 2000 else 16384
    data = b"".join(_frame(_DATA, 0, stream, body[at : at + size]) for at in range(0, len(body), size))
    answer = head + data + trailers
    return answer if source.random() < 0.95 else mutated(source, answer)


def _length(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


# --- metrics ----------------------------------------------------------------------------------------------------

_NAMES = (
    b"vllm:time_to_first_token_seconds",
    b"sglang:inter_token_latency_seconds",
    b"trtllm_time_to_first_token_seconds",
    b"vllm:inter_token_latency_seconds",
)


def _metrics(line: Line) -> None:
    line.hear()
    source = line.random
    name = source.choice(_NAMES)
    good = b'# TYPE %s histogram\n%s_bucket{model="m",le="0.1"} 3\n%s_bucket{model="m",le="+Inf"} 4\n' % (
        name,
        name,
        name,
    )
    part = source.choice(
        (
            good,
            name + b"_bucket",
            name + b"_bucket 1\n",
            name + b'_bucket{le="',
            name + b'_bucket{le="' + b"x" * 10000,
            name + b"_bucket{" + b'a="b",' * 1000 + b"} 1\n",
            name + b'_bucket{le="' + b'\\"' * 7000 + b'"} 1\n',
            b"x" * 100_000,
            b"\n",
            b"\\",
            b'"',
            b"{",
            b'a="',
            source.randbytes(1000),
        )
    )
    size = source.choice((len(part), 100_000, _MIB, 7 * _MIB, 9 * _MIB))
    page = mutated(source, good) + (b"" if source.random() < 0.3 else name + b'_bucket{le="')
    repeated = size // len(part) * len(part)
    line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(page) + repeated + len(good)))
    line.say(page)
    sent = 0
    whole = part * max(1, 65536 // len(part))
    while sent < repeated:
        piece = whole[: repeated - sent]
        line.say(piece)
        sent += len(piece)
    line.say(good)
    line.hold()


_TALKS: tuple[tuple[str, Talk], ...] = (
    ("changed HTTP", _changed_http),
    ("strange HTTP", _strange_http),
    ("strange frames", _strange_frames),
    ("changed gRPC", _changed_grpc),
    ("metrics", _metrics),
)

EDGE = Edge("engines", _open)
