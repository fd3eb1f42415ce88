"""Connecting to a Unix socket, sending and receiving, with failures as values. Cancelled, all of it ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat

from gateway_sidecar.domain.discovery import Failure, NoAnswer

LONGEST_ADDRESS_BYTES = 107
"""`sun_path` holds 108 with its closing zero."""

_CHUNK_BYTES = 65536
_CONNECT_RETRY_S = 0.02

_BY_ERRNO = {
    errno.ENOENT: NoAnswer(Failure.ABSENT),
    errno.ENOTDIR: NoAnswer(Failure.ABSENT),
    errno.EACCES: NoAnswer(
        Failure.DENIED,
        "the daemon's user needs w on the socket and x on every directory above it",
    ),
    errno.ECONNRESET: NoAnswer(Failure.CLOSED),
}


async def connect(address: str) -> socket.socket | NoAnswer:
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
    return sock


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


async def send(sock: socket.socket, data: bytes) -> None:
    """Send everything. A server that closed early may have answered before it did: what counts is what it sent."""
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, most: int = _CHUNK_BYTES) -> bytes:
    """Receive what there is; b"" is the end, and a reset is one: the server closed with our request unread.

    Others have their turn in the event loop after each piece, also where the next one is there already.
    """
    try:
        received = sock.recv(most)
    except BlockingIOError:
        try:
            return await asyncio.get_running_loop().sock_recv(sock, most)
        except OSError:
            return b""
    except OSError:
        return b""
    await asyncio.sleep(0)
    return received
