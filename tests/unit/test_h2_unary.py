"""gRPC calls without a socket: a reply comes out whole or not at all, and every flood ends at a bound."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.discovery import Failure
from gateway_sidecar.engines.h2_unary import (
    MOST_BYTES,
    MOST_HEADER_BLOCK_BYTES,
    MOST_HEADER_BYTES,
    MOST_STEPS,
    Broken,
    Calls,
    Reply,
    request_of,
)

PATH = "/grpc.health.v1.Health/Check"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, *range(3, 10)
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
SERVING = b"\x08\x01"


def frame(kind: int, flags: int = 0, payload: bytes = b"", stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def fields(**told: str) -> bytes:
    named = [(name.replace("__", ":").replace("_", "-"), value) for name, value in told.items()]
    return bytes(Encoder().encode(named))


def message(content: bytes) -> bytes:
    return bytes(1) + len(content).to_bytes(4) + content


OPENING = (
    frame(SETTINGS, 0, b"\0\x04\0\x40\0\0", 0) + frame(SETTINGS, ACK, b"", 0) + frame(WINDOW_UPDATE, 0, bytes(4), 0)
)
HEAD = frame(HEADERS, END_HEADERS, fields(__status="200", content_type="application/grpc"))
TRAILERS = frame(HEADERS, END_HEADERS | END_STREAM, fields(grpc_status="0"))
ANSWER = OPENING + HEAD + frame(DATA, 0, message(SERVING)) + TRAILERS


def asked(*paths: str) -> tuple[Calls, list[int]]:
    calls = Calls(None)
    return calls, calls.begin([(path, b"") for path in paths or (PATH,)])[1]


def reply_to(received: bytes) -> Reply | None:
    calls, (stream,) = asked()
    calls.feed(received)
    return calls.reply(stream)


def ending(**told: str) -> Reply | None:
    """The reply of a call that ends with these fields alone."""
    return reply_to(frame(HEADERS, END_HEADERS | END_STREAM, fields(**told)))


@given(st.lists(st.integers(0, len(ANSWER)), max_size=20))
def test_a_reply_is_there_when_it_is_whole_and_not_before(cuts: list[int]) -> None:
    """However the socket cuts an answer."""
    calls, (stream,) = asked()
    at = 0
    for cut in sorted({*cuts, len(ANSWER)}):
        assert calls.reply(stream) is None
        calls.feed(ANSWER[at:cut])
        at = cut
    assert calls.reply(stream) == Reply("OK", SERVING)


@given(st.binary(max_size=100))
def test_any_bytes_are_read(received: bytes) -> None:
    """Broken, or not yet; never another exception, and never a reply."""
    calls, (stream,) = asked()
    try:
        calls.feed(received)
    except Broken:
        return
    assert calls.reply(stream) is None


frames = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from((fields(grpc_status="0"), fields(__status="200"), message(SERVING), bytes(8))),
    ),
    st.integers(0, 5),
)


@given(st.lists(frames, max_size=10))
def test_any_frames_are_read(received: list[bytes]) -> None:
    """Of all kinds, on all streams, with all flags."""
    calls, _ = asked(PATH, PATH)
    with contextlib.suppress(Broken):
        for each in received:
            calls.feed(each)


def test_calls_at_the_same_time_get_their_own_replies() -> None:
    """In whatever order the server sends them."""
    calls, (first, second) = asked("/a", "/b")
    calls.feed(OPENING + HEAD + HEAD.replace(b"\0\0\0\x01", b"\0\0\0\x03"))
    calls.feed(frame(DATA, 0, message(b"b"), 3) + frame(DATA, 0, message(b"a"), 1))
    calls.feed(frame(HEADERS, END_HEADERS | END_STREAM, fields(grpc_status="0"), 3))
    assert (calls.reply(first), calls.reply(second)) == (None, Reply("OK", b"b"))
    calls.feed(TRAILERS)
    assert calls.reply(first) == Reply("OK", b"a")
    _, (third,) = calls.begin([(PATH, b"")])
    assert third == 5


LONE, TWICE = message(SERVING), message(SERVING) * 2
COMPRESSED = b"\x01" + LONE[1:]
NOT_ONE = Reply("INTERNAL", detail="OK without exactly one message")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HEAD + frame(DATA, PADDED, b"\x01" + LONE + b"\0") + TRAILERS, Reply("OK", SERVING)),
        (HEAD + frame(DATA, 0, LONE[:3]) + frame(DATA, 0, LONE[3:]) + TRAILERS, Reply("OK", SERVING)),
        (
            frame(HEADERS, END_HEADERS | 0x20, bytes(5) + b"\x88") + frame(DATA, 0, LONE) + TRAILERS,
            Reply("OK", SERVING),
        ),
        (HEAD + frame(DATA, 0, message(b"")) + TRAILERS, Reply("OK")),
        (HEAD + frame(DATA, 0, TWICE) + TRAILERS, NOT_ONE),
        (HEAD + TRAILERS, NOT_ONE),
        (HEAD + frame(DATA, 0, COMPRESSED) + TRAILERS, Reply("INTERNAL", detail="a compressed message, not asked for")),
        (HEAD + frame(DATA, END_STREAM, LONE), Reply("UNKNOWN", detail="no grpc-status, HTTP status 200")),
        (frame(RST_STREAM, 0, b"\0\0\0\x08"), Reply("CANCELLED", detail="the stream was reset, HTTP/2 error 8")),
        (frame(RST_STREAM, 0, b"\0\0\0\x07"), Reply("UNAVAILABLE", detail="the stream was reset, HTTP/2 error 7")),
    ],
)
def test_forms_of_an_answer(answer: bytes, expected: Reply) -> None:
    """Padded, in pieces, with a priority; compressed, twice, without an end; reset."""
    assert reply_to(OPENING + answer) == expected


def test_the_status_is_grpcs_and_its_message_is_decoded() -> None:
    """By number; without one by the HTTP status, after gRPC's own table."""
    assert ending(__status="200", grpc_status="12") == Reply("UNIMPLEMENTED")
    assert ending(__status="200", grpc_status="5", grpc_message="unknown service %27x%27 %C3%BC%") == Reply(
        "NOT_FOUND", detail="unknown service 'x' ü%"
    )
    for odd in ("17", "-1", "", "x", "9" * 5000, "²"):
        assert ending(__status="200", grpc_status=odd) == Reply("UNKNOWN")
    assert ending(__status="404") == Reply("UNIMPLEMENTED", detail="no grpc-status, HTTP status 404")
    assert ending(__status="401") == Reply("UNAUTHENTICATED", detail="no grpc-status, HTTP status 401")
    assert ending(__status="503") == Reply("UNAVAILABLE", detail="no grpc-status, HTTP status 503")


def test_an_interim_answer_is_none() -> None:
    """The real one follows."""
    assert reply_to(frame(HEADERS, END_HEADERS, fields(__status="103")) + HEAD) is None


def test_settings_and_pings_are_acknowledged() -> None:
    """A server may wait for it."""
    calls, _ = asked()
    assert calls.feed(frame(SETTINGS, 0, b"", 0) + frame(PING, 0, b"12345678", 0)) == (
        frame(SETTINGS, ACK, b"", 0) + frame(PING, ACK, b"12345678", 0)
    )
    assert calls.feed(frame(SETTINGS, ACK, b"", 0) + frame(PING, ACK, b"12345678", 0)) == b""


def test_goaway_ends_what_the_server_will_not_answer() -> None:
    """The calls up to the last that it names may be answered yet; nothing new may be asked."""
    calls, (first,) = asked()
    calls.feed(
        OPENING + frame(GOAWAY, 0, b"\0\0\0\x01" + bytes(4), 0) + HEAD + frame(DATA, 0, message(SERVING)) + TRAILERS
    )
    assert calls.reply(first) == Reply("OK", SERVING)
    with pytest.raises(Broken):
        calls.begin([(PATH, b"")])
    with pytest.raises(Broken) as caught:
        reply_to(frame(GOAWAY, 0, bytes(4) + b"\0\0\0\x0btoo_many_pings", 0))
    assert str(caught.value.silence).endswith("the server says GOAWAY, HTTP/2 error 11 too_many_pings")


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x00\x40\x01\0\0\0\0\0\x01",  # a frame of 16 KiB and a byte
        frame(PUSH_PROMISE, END_HEADERS, b"\0\0\0\x02\x88"),
        frame(HEADERS, 0, b"\x88") + frame(PING, 0, bytes(8), 0),
        frame(CONTINUATION, END_HEADERS, b"\x88"),
        frame(HEADERS, 0, b"\x88") + frame(CONTINUATION, END_HEADERS, b"", 3),
        frame(HEADERS, END_HEADERS, b"\xff"),
        frame(HEADERS, END_HEADERS, b"\x88", 7),
        frame(DATA, 0, b"", 7),
        frame(DATA, PADDED, b"\x05"),
        frame(DATA, PADDED, b""),
        HEAD + TRAILERS + frame(DATA, 0, b""),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(wrong: bytes) -> None:
    """The state of header compression may be lost then, and with it every answer that follows."""
    with pytest.raises(Broken) as caught:
        reply_to(OPENING + wrong)
    assert caught.value.silence.failure is Failure.MALFORMED


def endless(part: bytes, start: bytes = b"", size: int = 16384) -> Iterator[bytes]:
    """Pieces of `size` bytes at the most, as they are received."""
    yield start
    whole = part * max(1, size // len(part))
    while True:
        for at in range(0, len(whole), size):
            yield whole[at : at + size]


HUGE_FIELD = b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000
PIECES, BYTES = f"in more than {MOST_STEPS} pieces", f"more than {MOST_BYTES} bytes"
BLOCK, FIELDS = f"more than {MOST_HEADER_BLOCK_BYTES} bytes of header", f"more than {MOST_HEADER_BYTES} bytes of header"
UNREADABLE = "header fields that cannot be read"

FLOODS: dict[str, tuple[Any, ...]] = {
    "PING": (PIECES, frame(PING, 0, bytes(8), 0)),
    "PING acknowledged": (PIECES, frame(PING, ACK, bytes(8), 0)),
    "SETTINGS": (PIECES, frame(SETTINGS, 0, b"\0\x04\0\x40\0\0" * 10, 0)),
    "WINDOW_UPDATE": (PIECES, frame(WINDOW_UPDATE, 0, b"\0\0\0\x01", 0)),
    "unknown frames": (PIECES, frame(77, 0, b"", 0)),
    "empty DATA": (PIECES, frame(DATA), HEAD),
    "DATA": (BYTES, frame(DATA, 0, bytes(16384)), HEAD),
    "DATA of one byte": (PIECES, frame(DATA, 0, b"\0"), HEAD),
    "RST_STREAM of others": (PIECES, frame(RST_STREAM, 0, bytes(4), 9)),
    "GOAWAY that ends nothing": (PIECES, frame(GOAWAY, 0, b"\0\0\0\x01" + bytes(4), 0)),
    "empty CONTINUATION": (PIECES, frame(CONTINUATION), frame(HEADERS)),
    "CONTINUATION": (BLOCK, frame(CONTINUATION, 0, b"\x88" * 1000), frame(HEADERS)),
    "interim answers": (PIECES, frame(HEADERS, END_HEADERS, fields(__status="100"))),
    "interim answers that are large": (UNREADABLE, frame(HEADERS, END_HEADERS, b"\x08\x03100" + HUGE_FIELD * 2)),
    "table sizes": (FIELDS, frame(HEADERS, END_HEADERS, b"\x20" * 16000)),
    "HPACK bomb": (UNREADABLE, frame(HEADERS, END_HEADERS, HUGE_FIELD + b"\xbe" * 12000)),
    "one byte at a time": (PIECES, frame(77, 0, bytes(16384), 0), b"", 1),
}
"""By which bound each ends, and what is said again and again; what is said first; how much is received at once."""


@pytest.mark.parametrize("name", FLOODS)
def test_every_flood_ends_at_a_bound_and_costs_little(name: str) -> None:
    """Little: for each piece that the event loop waits for, and all together. CPU time, so that others do not count.

    The least of five times: garbage that is collected, and a neighbour of the CPU, only add.
    """
    for _ in range(5):
        costs = costs_of_flood(name)
        if max(costs) < 0.05 and sum(costs) < 0.5:
            return
    pytest.fail(f"at most {max(costs)} s in one go, {sum(costs)} s together")


def costs_of_flood(name: str) -> list[float]:
    """CPU seconds for each piece."""
    bound, *flood = FLOODS[name]
    calls, (stream,) = asked()
    costs: list[float] = []
    received = 0
    broken: Broken | None = None
    for piece in endless(*flood):
        began = time.thread_time()
        try:
            calls.feed(piece)
        except Broken as end:
            broken = end
            break
        finally:
            costs.append(time.thread_time() - began)
            received += len(piece)
    assert broken is not None
    assert bound in str(broken.silence)
    assert received <= MOST_BYTES + 16384
    assert calls.reply(stream) is None
    return costs


def test_the_bounds_leave_room_for_an_identification() -> None:
    """Twelve calls, each answered in four frames with 500 bytes of header fields, or in 20 KiB."""
    assert MOST_STEPS > 12 * 4 * 10
    assert MOST_HEADER_BYTES > 12 * 500 * 2
    assert MOST_BYTES > 12 * 20 * 1024


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20000))
def test_a_key_of_any_length_is_sent_whole(key: str) -> None:
    """In one frame or more, and never indexed."""
    sent, block = request_of(1, PATH, b"", key), b""
    while sent[3] != DATA:
        length = int.from_bytes(sent[:3])
        block += sent[9 : 9 + length]
        sent = sent[9 + length :]
    assert {
        bytes(name).decode(): bytes(value).decode() for name, value in Decoder(1 << 20).decode(block, raw=True)
    } == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {key}",
    }
    assert sent == frame(DATA, END_STREAM, bytes(5))


def test_header_fields_are_the_same_whether_they_are_looked_up_or_decoded() -> None:
    """What a block tells depends on those before it: the encoder's table says `grpc-status: 7` in a byte by then."""

    def codes() -> list[str]:
        encoder = Encoder()
        calls, streams = asked(*[PATH] * 40)  # More than are remembered: the rest is decoded.
        received = OPENING
        for number, stream in enumerate(streams):
            told = [(":status", "200"), ("grpc-status", str(number % 8))]
            received += frame(HEADERS, END_HEADERS | END_STREAM, bytes(encoder.encode(told)), stream)
        calls.feed(received)
        return [reply.code for stream in streams if (reply := calls.reply(stream)) is not None]

    first = codes()
    assert first[1:8] == ["CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
                          "ALREADY_EXISTS", "PERMISSION_DENIED"]  # fmt: skip
    assert len(first) == 40
    assert first == codes()
