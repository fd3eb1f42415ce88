"""One unary gRPC call with an empty request, as a few fixed bytes on a bare socket: the cheap health check.

A gRPC channel costs ten times as much, and a daemon asks each replica for its health again and again. Only the plain
case is read here, an uncompressed answer in a DATA frame; whatever else comes (an error status, padding, GOAWAY) is
left to the library, which then asks again.

Frames: RFC 9113, 4.1. Header encoding: RFC 7541, literals without indexing. Messages: gRPC over HTTP/2.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache

from gateway_sidecar.domain.discovery import Failure, NoAnswer, Protocol, protocol_of
from gateway_sidecar.engines.unix_socket import connect, receive, send

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _END_HEADERS = 0x1, 0x4
_EMPTY_MESSAGE = bytes(5)  # not compressed, 0 bytes long
_FRAME_HEADER_BYTES = 9
_LARGEST_ANSWER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Unclear:
    """An answer that this module does not read."""


async def greet(address: str) -> NoAnswer | None:
    """Open HTTP/2 and see whether the server does as well: None where it does.

    Cheap, and gone at once when cancelled: gRPC clings to a server that accepts and says nothing for 20 s.
    """
    connected = await connect(address)
    if isinstance(connected, NoAnswer):
        return connected
    with connected:
        await send(connected, _PREFACE + _frame(_SETTINGS, 0, 0, b""))
        received = b""
        while (protocol := protocol_of(received)) is None:
            chunk = await receive(connected)
            if not chunk:
                return NoAnswer(Failure.CUT if received else Failure.CLOSED)
            received += chunk
    return None if protocol is Protocol.HTTP2 else NoAnswer(Failure.OTHER_PROTOCOL, repr(received[:20]))


async def call(address: str, path: str, api_key: str | None) -> bytes | NoAnswer | Unclear:
    """Call a method; the answer's message, why there is none, or that the library must be asked."""
    connected = await connect(address)
    if isinstance(connected, NoAnswer):
        return connected
    with connected:
        await send(connected, request_of(path, api_key))
        return await _answer(connected)


async def _answer(sock: socket.socket) -> bytes | NoAnswer | Unclear:
    received = b""
    while len(received) < _LARGEST_ANSWER_BYTES:
        chunk = await receive(sock)
        if not chunk:
            return Unclear() if received else NoAnswer(Failure.CLOSED)
        received += chunk
        if protocol_of(received) in (Protocol.HTTP1, Protocol.OTHER):
            return NoAnswer(Failure.OTHER_PROTOCOL, repr(received[:20]))
        found = first_message(received)
        if found is not None:
            return found
    return Unclear()


def first_message(received: bytes) -> bytes | Unclear | None:
    """The first message on our stream; None while it is not complete."""
    position = 0
    while len(received) >= position + _FRAME_HEADER_BYTES:
        body = position + _FRAME_HEADER_BYTES
        end = body + int.from_bytes(received[position : position + 3])
        kind, flags = received[position + 3], received[position + 4]
        if len(received) < end:
            return None
        if kind == _DATA:
            return _uncompressed(received[body:end], flags)
        if (kind == _HEADERS and flags & _END_STREAM) or kind not in (_HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE):
            return Unclear()
        position = end
    return None


def _uncompressed(payload: bytes, flags: int) -> bytes | Unclear:
    plain = flags & ~_END_STREAM == 0 and len(payload) >= len(_EMPTY_MESSAGE) and payload[0] == 0
    whole = plain and int.from_bytes(payload[1:5]) == len(payload) - len(_EMPTY_MESSAGE)
    return payload[len(_EMPTY_MESSAGE) :] if whole else Unclear()


@lru_cache(maxsize=64)
def request_of(path: str, api_key: str | None) -> bytes:
    """Everything a client says in such a call. Few differ: one for each method and key."""
    headers = (
        b"\x83\x86"  # :method POST, :scheme http
        + (b"\x04" + _string(path))  # :path
        + (b"\x01" + _string("localhost"))  # :authority
        + (b"\x0f\x10" + _string("application/grpc"))  # content-type
        + (b"\x00" + _string("te") + _string("trailers"))
    )
    if api_key is not None:
        headers += b"\x1f\x08" + _string(f"Bearer {api_key}")  # authorization, never indexed
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, _EMPTY_MESSAGE)
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _string(text: str) -> bytes:
    """A header string, not Huffman-coded, its length as a 7-bit prefix integer (RFC 7541, 5.1)."""
    encoded = text.encode()
    if len(encoded) < 127:
        return bytes((len(encoded),)) + encoded
    rest, length = len(encoded) - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + encoded
