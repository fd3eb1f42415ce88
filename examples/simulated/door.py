"""The engine's socket: bound, listening after a while, and what becomes of each accepted connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from examples.simulated import sockets
from examples.simulated.core import EngineCore

BACKLOG = 1024


class Front(Protocol):
    """A protocol server that is handed connections one by one."""

    async def start(self) -> None:
        """Get ready for connections."""

    def connection(self) -> asyncio.BaseProtocol:
        """What serves one accepted connection."""

    def drop_connections(self) -> None:
        """Close every open connection at once, whatever it is doing."""

    async def stop(self) -> None:
        """Close what is left open, and end."""


class ClosedAtOnce(asyncio.Protocol):
    """Serves a connection by closing it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Door:
    """Owns the socket file and the listener."""

    def __init__(self, core: EngineCore, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        self._core = core
        self._connect = connect
        self._path = core.spec.socket
        self._sock = sockets.bind(self._path)
        self._identity = sockets.identity_of(self._path)
        self._listener: asyncio.Server | None = None

    async def listen(self) -> None:
        """Accept connections from now on.

        `loop.create_server` and not `create_unix_server`: newer Pythons make the latter unlink the path on
        close.
        """
        loop = asyncio.get_running_loop()
        self._core.load()
        self._listener = await loop.create_server(self._accept, sock=self._sock, backlog=BACKLOG)

    def close(self, *, unlink: bool) -> None:
        """Accept no more; connections that are open stay open. The file goes if it is still this engine's."""
        if self._listener is None:
            self._sock.close()
        else:
            self._listener.close()
        if unlink:
            sockets.unlink_if_same(self._path, self._identity)

    def _accept(self) -> asyncio.BaseProtocol:
        self._core.ledger.connected()
        return ClosedAtOnce() if self._core.behaviour.accept_close else self._connect()
