"""The liveness connection: kept open to an engine, only to notice at once when the engine ends. The kernel closes it
when the listening process dies, so a dead engine is noticed without a question. It is only a hint: some servers close
idle connections, and the next probe finds them well. Nothing is asked over it. A gRPC server is greeted and
answered as HTTP/2 wants it, since it closes a connection that never becomes one.

An engine that serves one connection at a time cannot have it open for long: it waits *in line* with the requests, and
says at once that nothing will be sent, so the engine closes it when its turn comes. There is never more than one of
them, so it takes one place in the engine's queue and no other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import cast

from gateway_sidecar.engines.h2_unary import Broken, Calls

_MOST_BYTES = 64 * 1024
"""HTTP/2 servers greet whoever connects, and ping now and then."""


class _LivenessConnection(asyncio.Protocol):
    def __init__(self, on_close: Callable[[], None], http2: Calls | None) -> None:
        self._on_close = on_close
        self._http2 = http2
        self._transport: asyncio.Transport | None = None
        self._bytes_left = _MOST_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._http2 is not None:
            self._transport.write(self._http2.begin(())[0])

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._transport.abort()
        elif self._http2 is not None:
            try:
                self._transport.write(self._http2.feed(data))
            except Broken:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_close()


async def connect_liveness(
    address: str, on_close: Callable[[], None], *, grpc: bool = False, in_line: bool = False
) -> asyncio.Transport:
    """Connects; `on_close` is called once when either side ends the connection. Raises OSError.

    in_line: the engine may close it as soon as it has taken it.
    """
    loop = asyncio.get_running_loop()
    make = partial(_LivenessConnection, on_close, Calls(None) if grpc else None)
    transport, _ = await loop.create_unix_connection(make, address)
    if in_line:
        transport.write_eof()
    return transport


def is_refused(address: str) -> bool:
    """Whether the kernel says that no process listens at a Unix socket. Never blocks; about 30 us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as touch:
        try:
            touch.connect(address)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # Its backlog is full, or something else that does not prove death.
    return False
