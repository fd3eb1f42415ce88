"""Unary gRPC calls over one HTTP/2 connection to a Unix socket, each answer bounded in bytes, frames and time.

A gRPC library is made for servers that are trusted: its threads read whatever a server sends, write to standard error
and may never end. Here a server that floods, trickles or lies costs what `MOST_BYTES` and its neighbours say, and the
event loop has its turn after every 16 KiB. Header fields are decoded by `hpack`; the frames are few and read here.

Our requests are small, so they are sent at once: nothing waits for the server's window.

Frames: RFC 9113, 4.1 and 6. Messages and status: gRPC over HTTP/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError

from gateway_sidecar.domain.discovery import (
    FRAME_HEADER_BYTES,
    LARGEST_FRAME_BYTES,
    Failure,
    NoAnswer,
    Protocol,
    protocol_of,
)
from gateway_sidecar.domain.model import Access
from gateway_sidecar.engines.unix_socket import UnixConnection, connect

MOST_BYTES = 1024 * 1024
"""From the server, on one connection. A real SGLang's GetServerInfo, the longest, has 20 KiB."""
MOST_STEPS = 4000
"""Frames and receptions on one connection. Identification takes twelve calls of three or four frames each."""
MOST_HEADER_BYTES = 64 * 1024
"""Compressed header fields on one connection: pure Python decodes 16 KiB in 10 ms or so."""
MOST_HEADER_BLOCK_BYTES = 16 * 1024
"""Of one answer, compressed and not; gRPC's own limit."""

_FEW_BLOCKS, _FEW_BYTES = 32, 512
"""Of header fields, which are remembered. More than an identification takes; to decode them anew takes 0.3 ms."""

_RECEIVED_AT_ONCE = 16 * 1024  # A frame: what was received is bounded before more is.
_MESSAGE_HEADER_BYTES = 5  # gRPC: one byte says whether the message is compressed, four how long it is.

_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20  # RFC 9113, 6
_TOLD = frozenset((b":status", b"grpc-status", b"grpc-message"))

_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
_BY_HTTP_STATUS = {
    b"400": "INTERNAL",
    b"401": "UNAUTHENTICATED",
    b"403": "PERMISSION_DENIED",
    b"404": "UNIMPLEMENTED",
    **dict.fromkeys((b"429", b"502", b"503", b"504"), "UNAVAILABLE"),
}
"""gRPC's own table for answers without a grpc-status: what stands before the engine may not speak gRPC."""
_BY_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


class _Kind:
    """Frames, as far as they are read or sent."""

    DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, *range(3, 10)


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended: gRPC's name for it, the message of one that succeeded, and the server's own words."""

    code: str
    message: bytes = b""
    detail: str = ""


class Broken(Exception):
    """The connection cannot be read on."""

    def __init__(self, silence: NoAnswer) -> None:
        super().__init__(silence)
        self.silence = silence


def _malformed(what: str) -> Broken:
    return Broken(NoAnswer(Failure.MALFORMED, f"HTTP/2: {what}"))


def _too_large(what: str) -> Broken:
    return Broken(NoAnswer(Failure.TOO_LARGE, what))


@dataclass(slots=True)
class _Stream:
    """One call: what was said of it so far, and the reply once it has ended."""

    told: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    reply: Reply | None = None


class _HeaderFields:
    """Reads one connection's blocks of header fields in the order they come. Raises HPACKError.

    What a block tells depends on the blocks before it and on nothing else, and engines of one kind answer in the same
    bytes again and again: those are looked up. An identification takes 505 us of CPU in place of 607, a question for
    health 159 in place of 174.
    """

    def __init__(self) -> None:
        self._blocks: tuple[bytes, ...] = ()
        self._decoder: Decoder | None = None

    def read(self, block: bytes) -> Mapping[bytes, bytes]:
        """What the next block tells."""
        if self._decoder is None:
            self._blocks += (block,)
            if len(self._blocks) <= _FEW_BLOCKS and sum(map(len, self._blocks)) <= _FEW_BYTES:
                return _told_by(self._blocks)
            self._decoder = Decoder(MOST_HEADER_BLOCK_BYTES)
            for earlier in self._blocks[:-1]:
                self._decoder.decode(earlier, raw=True)
        return _told(self._decoder, block)


@lru_cache(maxsize=256)
def _told_by(blocks: tuple[bytes, ...]) -> Mapping[bytes, bytes]:
    """What the last of a connection's first blocks tells."""
    decoder = Decoder(MOST_HEADER_BLOCK_BYTES)
    for earlier in blocks[:-1]:
        decoder.decode(earlier, raw=True)
    return _told(decoder, blocks[-1])


def _told(decoder: Decoder, block: bytes) -> dict[bytes, bytes]:
    return {bytes(name): bytes(value) for name, value in decoder.decode(block, raw=True) if name in _TOLD}


class Calls:
    """The client's side of one connection, without the socket: bytes in, bytes out, replies. Raises Broken."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._buffer = bytearray()
        self._fields = _HeaderFields()
        self._block: tuple[int, int, bytearray] | None = None
        self._bytes_left, self._steps_left, self._header_bytes_left = MOST_BYTES, MOST_STEPS, MOST_HEADER_BYTES
        self._leaving: Broken | None = None

    def begin(self, calls: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
        """What to send for some calls, each a path and a message, and the numbers of their streams."""
        if self._leaving is not None:
            raise self._leaving
        out = [_GREETING] if self._next_stream == 1 else []
        streams = []
        for path, message in calls:
            out.append(request_of(self._next_stream, path, message, self._api_key))
            self._streams[self._next_stream] = _Stream()
            streams.append(self._next_stream)
            self._next_stream += 2
        return b"".join(out), streams

    def reply(self, stream: int) -> Reply | None:
        """How the call on this stream ended; None while it goes on."""
        return self._streams[stream].reply

    def feed(self, received: bytes) -> bytes:
        """Read on; what has to be sent in answer."""
        self._bytes_left -= len(received)
        self._step()
        if self._bytes_left < 0:
            raise _too_large(f"more than {MOST_BYTES} bytes")
        buffer, position, out = self._buffer, 0, bytearray()
        buffer += received
        while len(buffer) >= position + FRAME_HEADER_BYTES:
            body = position + FRAME_HEADER_BYTES
            length = int.from_bytes(buffer[position : position + 3])
            if length > LARGEST_FRAME_BYTES:
                raise _malformed(f"a frame of {length} bytes")
            if len(buffer) < body + length:
                break
            self._step()
            stream = int.from_bytes(buffer[position + 5 : body]) & 0x7FFFFFFF
            out += self._on_frame(
                buffer[position + 3], buffer[position + 4], stream, bytes(buffer[body : body + length])
            )
            position = body + length
        del buffer[:position]
        return bytes(out)

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise _too_large(f"in more than {MOST_STEPS} pieces")

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> bytes:
        if (self._block is not None) != (kind == _Kind.CONTINUATION):
            raise _malformed("header fields that are cut")
        match kind:
            case _Kind.SETTINGS if not flags & _ACK:
                return _frame(_Kind.SETTINGS, _ACK, 0, b"")
            case _Kind.PING if not flags & _ACK and len(payload) == 8:
                return _frame(_Kind.PING, _ACK, 0, payload)
            case _Kind.GOAWAY:
                self._on_goaway(payload)
            case _Kind.RST_STREAM:
                self._on_reset(number, payload)
            case _Kind.DATA:
                stream = self._open_stream(number)
                stream.data += _unpadded(payload, flags)
                if flags & _END_STREAM:
                    stream.reply = _reply(stream)
            case _Kind.HEADERS:
                fields = _unpadded(payload, flags)
                self._on_block(number, flags, bytearray(fields[5:] if flags & _PRIORITY else fields))
            case _Kind.CONTINUATION:
                assert self._block is not None
                begun, begun_flags, block = self._block
                if number != begun:
                    raise _malformed("header fields of two streams at once")
                block += payload
                self._on_block(number, begun_flags | flags & _END_HEADERS, block)
            case _Kind.PUSH_PROMISE:
                raise _malformed("a push that nobody asked for")
        return b""

    def _open_stream(self, number: int) -> _Stream:
        stream = self._streams.get(number)
        if stream is None or stream.reply is not None:
            raise _malformed("an answer to nothing that was asked")
        return stream

    def _on_block(self, number: int, flags: int, block: bytearray) -> None:
        if len(block) > MOST_HEADER_BLOCK_BYTES:
            raise _too_large(f"more than {MOST_HEADER_BLOCK_BYTES} bytes of header fields")
        if not flags & _END_HEADERS:
            self._block = number, flags, block
            return
        self._block = None
        self._header_bytes_left -= len(block)
        if self._header_bytes_left < 0:
            raise _too_large(f"more than {MOST_HEADER_BYTES} bytes of header fields")
        stream = self._open_stream(number)
        try:
            told = self._fields.read(bytes(block))
        except HPACKError:
            raise _malformed("header fields that cannot be read") from None
        if told.get(b":status", b"").startswith(b"1"):
            return  # An interim answer: the real one follows.
        stream.told |= told
        if flags & _END_STREAM:
            stream.reply = _reply(stream)

    def _on_reset(self, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if stream is not None and stream.reply is None:
            error = int.from_bytes(payload[:4])
            stream.reply = Reply(_BY_RESET.get(error, "INTERNAL"), detail=f"the stream was reset, HTTP/2 error {error}")

    def _on_goaway(self, payload: bytes) -> None:
        """The server takes no further calls; of those under way it may yet answer the ones up to the last it names."""
        last, error = int.from_bytes(payload[:4]) & 0x7FFFFFFF, int.from_bytes(payload[4:8])
        why = f"the server says GOAWAY, HTTP/2 error {error} {_text(payload[8:200])}".rstrip()
        self._leaving = Broken(NoAnswer(Failure.CUT, why))
        if any(number > last and stream.reply is None for number, stream in self._streams.items()):
            raise self._leaving


class GrpcConnection:
    """One connection, opened by the first calls."""

    def __init__(self, address: str, access: Access) -> None:
        self._address = address
        self._tls = access.tls is True
        self._calls = Calls(access.api_key)
        self._connection: UnixConnection | None = None
        self._heard = False

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def call(self, *calls: tuple[str, bytes]) -> list[Reply]:
        """Make some calls at the same time, each a path and a message; their replies. Raises Broken."""
        out, streams = self._calls.begin(calls)
        if self._connection is None:
            connected = await connect(self._address, tls=self._tls, protocols=("h2",))
            if isinstance(connected, NoAnswer):
                raise Broken(connected)
            self._connection = connected
        connection = self._connection
        await connection.send(out)
        while True:
            replies = [reply for stream in streams if (reply := self._calls.reply(stream)) is not None]
            if len(replies) == len(streams):
                return replies
            received = await (connection.receive(_RECEIVED_AT_ONCE) if self._heard else self._first(connection))
            if not received:
                raise Broken(NoAnswer(Failure.CUT))
            out = self._calls.feed(received)
            if out:
                await connection.send(out)

    async def _first(self, connection: UnixConnection) -> bytes:
        """The first bytes of all, once they are enough to tell whether this is HTTP/2."""
        received = b""
        while (protocol := protocol_of(received)) is None:
            more = await connection.receive(_RECEIVED_AT_ONCE)
            if not more:
                raise Broken(NoAnswer(Failure.CUT if received else Failure.CLOSED))
            received += more
        if protocol is not Protocol.HTTP2:
            raise Broken(NoAnswer(Failure.OTHER_PROTOCOL, repr(received[:20])))
        self._heard = True
        return received


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _malformed("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def _reply(stream: _Stream) -> Reply:
    status = stream.told.get(b"grpc-status")
    if status is None:
        http = stream.told.get(b":status", b"")
        return Reply(_BY_HTTP_STATUS.get(http, "UNKNOWN"), detail=f"no grpc-status, HTTP status {_text(http[:3])}")
    code = _CODES[int(status)] if status.isdigit() and len(status) < 3 and int(status) < len(_CODES) else "UNKNOWN"
    if code != "OK":
        return Reply(code, detail=_text(unquote_to_bytes(stream.told.get(b"grpc-message", b""))))
    data = bytes(stream.data)
    if len(data) < _MESSAGE_HEADER_BYTES or int.from_bytes(data[1:5]) != len(data) - _MESSAGE_HEADER_BYTES:
        return Reply("INTERNAL", detail="OK without exactly one message")
    if data[0] != 0:
        return Reply("INTERNAL", detail="a compressed message, not asked for")
    return Reply("OK", data[_MESSAGE_HEADER_BYTES:])


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def request_of(stream: int, path: str, message: bytes, api_key: str | None) -> bytes:
    """One call on the wire: header fields and the message, which ends it."""
    body = bytes(1) + len(message).to_bytes(4) + message
    headers = _headers_of(path, api_key)
    first, *rest = [headers[at : at + LARGEST_FRAME_BYTES] for at in range(0, len(headers), LARGEST_FRAME_BYTES)]
    parts = [_frame(_Kind.HEADERS, 0 if rest else _END_HEADERS, stream, first)]
    for number, part in enumerate(rest, 1):
        parts.append(_frame(_Kind.CONTINUATION, _END_HEADERS if number == len(rest) else 0, stream, part))
    return b"".join((*parts, _frame(_Kind.DATA, _END_STREAM, stream, body)))


@lru_cache(maxsize=64)
def _headers_of(path: str, api_key: str | None) -> bytes:
    """Few differ: one for each method and key. Never indexed, so that no state goes with them."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    if api_key is not None:
        fields["authorization"] = f"Bearer {api_key}"
    return Encoder().encode([NeverIndexedHeaderTuple(*each) for each in fields.items()], huffman=False)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _setting(number: int, value: int) -> bytes:
    return number.to_bytes(2) + value.to_bytes(4)


_GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(
        _Kind.SETTINGS,
        0,
        0,
        _setting(2, 0)  # no pushes
        + _setting(4, MOST_BYTES)  # the window of each stream: no answer waits for ours to be opened
        + _setting(6, MOST_HEADER_BLOCK_BYTES),
    )
    + _frame(_Kind.WINDOW_UPDATE, 0, 0, (MOST_BYTES - 65535).to_bytes(4))
)
"""What a client opens with."""
