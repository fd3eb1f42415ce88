"""The engine's socket: bound, listening after a while, and what becomes of each accepted connection."""

from __future__ import annotations

import asyncio
import ssl
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


class ListeningSocket:
    """Owns the socket file, and takes in who comes.

    Not an `asyncio.Server`: one that is closed just as somebody is accepted leaves that connection open.
    """

    def __init__(self, core: EngineCore, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        self._core = core
        self._connect = connect
        self._path = core.spec.socket
        self._sock = sockets.bind(self._path)
        self._sock.setblocking(False)
        self._identity = sockets.identity_of(self._path)
        self._is_listening = False
        self._tls: ssl.SSLContext | None = None
        if core.spec.certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(core.spec.certificate)
        self._coming: set[asyncio.Task[object]] = set()

    async def listen(self) -> None:
        """Accept connections from now on."""
        self._core.load()
        self._sock.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._sock, self._take_in)
        self._is_listening = True

    def close(self, *, unlink: bool) -> None:
        """Accept no more; connections that are open stay open. The file goes if it is still this engine's."""
        if self._is_listening:
            asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        if unlink:
            sockets.unlink_if_same(self._path, self._identity)

    def _take_in(self) -> None:
        for _ in range(BACKLOG):
            try:
                accepted, _ = self._sock.accept()
            except OSError:  # Nobody more, or one that has left already.
                return
            accepted.setblocking(False)
            task: asyncio.Task[object] = asyncio.create_task(
                asyncio.get_running_loop().connect_accepted_socket(self._accept, accepted, ssl=self._tls)
            )
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    def _accept(self) -> asyncio.BaseProtocol:
        if self._core.stopping:
            return ClosedAtOnce()
        self._core.ledger.connected()
        return ClosedAtOnce() if self._core.behaviour.accept_close else self._connect()
