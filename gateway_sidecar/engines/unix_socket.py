"""Connecting to a Unix socket, with TLS or without, sending and receiving, with failures as values.

Cancelled, all of it ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import ssl
import stat
from collections.abc import Callable

from gateway_sidecar.domain.discovery import Failure, NoAnswer

LONGEST_ADDRESS_BYTES = 107
"""`sun_path` holds 108 with its closing zero."""

_CHUNK_BYTES = 65536  # Other tasks run in between; a page of metrics is read in a few.
_CONNECT_RETRY_S = 0.02
"""A choice: a queue that is full empties when the engine accepts again, and the time-out bounds the tries."""

_BY_ERRNO = {
    errno.ENOENT: NoAnswer(Failure.ABSENT),
    errno.ENOTDIR: NoAnswer(Failure.ABSENT),
    errno.EACCES: NoAnswer(
        Failure.DENIED,
        "the daemon's user needs w on the socket and x on every directory above it",
    ),
    errno.ECONNRESET: NoAnswer(Failure.CLOSED),
}


class UnixConnection:
    """A connection to a Unix socket; who opened it closes it.

    The event loop watches it from the first wait on: to watch it anew for each answer costs more than to read that.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._readable: asyncio.Future[None] | None = None
        self._is_watched = False

    def close(self) -> None:
        """Close it."""
        if self._is_watched:
            asyncio.get_running_loop().remove_reader(self.sock)
            self._is_watched = False
        self.sock.close()

    async def send(self, data: bytes) -> None:
        """Send everything. A server that closed early may have answered before it did: what counts is what it sent."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, most: int = _CHUNK_BYTES) -> bytes:
        """Receive what there is; b"" is the end, and a reset is one: the server closed with our request unread.

        Others have their turn in the event loop before each piece, also where the next one is there already.
        """
        while True:
            try:
                received = self.sock.recv(most)
            except BlockingIOError:
                await self._wait()
                continue
            except OSError:
                return b""
            if self._readable is None:
                await asyncio.sleep(0)
            self._readable = None
            return received

    async def is_readable(self, within_s: float) -> bool:
        """Whether something comes, be it the end, within so many seconds."""
        return bool((await asyncio.wait({self._wait()}, timeout=within_s))[0])

    def _wait(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        self._readable = loop.create_future()
        if not self._is_watched:
            self._is_watched = True
            loop.add_reader(self.sock, self._on_readable)
        return self._readable

    def _on_readable(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)
            return
        asyncio.get_running_loop().remove_reader(self.sock)  # Nobody waits for it now.
        self._is_watched = False


class TlsConnection(UnixConnection):
    """The same with TLS. No certificate is checked: the socket's place is trusted."""

    def __init__(self, sock: socket.socket, protocols: tuple[str, ...] = ()) -> None:
        super().__init__(sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _tls_context(protocols).wrap_bio(self._in, self._out)

    async def greet(self) -> NoAnswer | None:
        """Shake hands, or tell why not."""
        try:
            await self._until(self._tls.do_handshake)
        except ssl.SSLEOFError:
            return NoAnswer(Failure.CLOSED)
        except ssl.SSLError as error:
            return NoAnswer(Failure.NO_TLS, (error.reason or str(error)).replace("_", " ").lower())
        return None

    async def send(self, data: bytes) -> None:
        """Send everything, as without TLS."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.write(data)
        await super().send(self._out.read())

    async def receive(self, most: int = _CHUNK_BYTES) -> bytes:
        """Receive what there is, as without TLS."""
        try:
            return await self._until(lambda: self._tls.read(most)) or b""
        except ssl.SSLError:
            return b""

    async def _until(self, step: Callable[[], bytes | None]) -> bytes | None:
        """What comes of a step that may have to wait for the other side. Raises ssl.SSLError."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await super().send(self._out.read())
                received = await super().receive()
                self._in.write(received) if received else self._in.write_eof()
            finally:
                await super().send(self._out.read())


@functools.cache
def _tls_context(protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols(protocols)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def tls_over(connection: UnixConnection, protocols: tuple[str, ...] = ()) -> UnixConnection | NoAnswer:
    """Shake hands over a connection that was just opened, or close it and tell why not."""
    secured = TlsConnection(connection.sock, protocols)
    try:
        trouble = await secured.greet()
    except asyncio.CancelledError:
        secured.close()
        raise
    if trouble is None:
        return secured
    secured.close()
    return trouble


async def connect(address: str, *, tls: bool = False, protocols: tuple[str, ...] = ()) -> UnixConnection | NoAnswer:
    """Connect, with TLS or without, or tell why not. Over TLS `protocols` are offered (ALPN)."""
    connection = await _connect(address)
    return connection if isinstance(connection, NoAnswer) or not tls else await tls_over(connection, protocols)


async def _connect(address: str) -> UnixConnection | NoAnswer:
    """Connect, or tell why not.

    A full queue of waiting connections is not a refusal: a busy or hung engine looks like that, and it is asked
    again until the caller's deadline. asyncio's own connect would take it for success.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as failed:  # no descriptor left: our trouble, and no evidence about the engine
        return NoAnswer(Failure.UNREACHABLE, os.strerror(failed.errno or 0))
    try:
        while (error := sock.connect_ex(address)) == errno.EAGAIN:
            await asyncio.sleep(_CONNECT_RETRY_S)
    except asyncio.CancelledError:
        sock.close()
        raise
    if error:
        sock.close()
        return _connect_failure(error, address)
    return UnixConnection(sock)


def connect_at_once(address: str) -> socket.socket | None:
    """Connect without waiting; None where that does not work, for whatever reason."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError:
        return None
    if sock.connect_ex(address):
        sock.close()
        return None
    return sock


def _connect_failure(error: int, address: str) -> NoAnswer:
    if error == errno.ECONNREFUSED:
        return NoAnswer(Failure.REFUSED if _is_socket(address) else Failure.NOT_A_SOCKET)
    return _BY_ERRNO.get(error, NoAnswer(Failure.UNREACHABLE, os.strerror(error)))


def _is_socket(address: str) -> bool:
    """Connecting to a plain file is refused too. A file that went meanwhile was most likely a socket."""
    try:
        return stat.S_ISSOCK(os.stat(address).st_mode)  # noqa: PTH116
    except OSError:
        return True
