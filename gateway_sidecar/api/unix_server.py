"""An HTTP server on a Unix socket, bound again if its file is removed. Open connections stay open."""

from __future__ import annotations

import socket
from pathlib import Path

from gateway_sidecar.api.bounded_server import BoundedServer

_MODE = 0o660  # The daemon's user and group may use it; others may not.
_FRESH = "new.sock"
"""A socket's name until it is open. No longer than the others: a socket's path may have 107 bytes."""


class UnixServer:
    """Listens on `path`, mode 0660, from `open` to `close`."""

    def __init__(self, server: BoundedServer, path: Path, *, backlog: int = 128) -> None:
        self._server = server
        self._path = path
        self._backlog = backlog
        self._socket: socket.socket | None = None
        self._bound: tuple[int, int] | None = None

    @property
    def socket(self) -> socket.socket:
        """What it listens on now."""
        assert self._socket is not None
        return self._socket

    async def open(self) -> None:
        """Begins to listen. Raises OSError."""
        await self._bind()

    async def repair(self) -> bool:
        """Listens there again if the socket is gone, or another; whether that was needed. Raises OSError."""
        if self._bound == self._found():
            return False
        await self._bind()
        return True

    async def close(self) -> None:
        """Ends all connections."""
        await self._server.close()

    async def _bind(self) -> None:
        fresh = self._path.with_name(_FRESH)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fresh.unlink(missing_ok=True)
            listener.bind(str(fresh))
            listener.listen(self._backlog)
            fresh.chmod(_MODE)
            fresh.replace(self._path)  # In one step: whoever comes meets an open socket, this one or the one before.
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"cannot listen on {self._path}: {error.strerror}") from error
        self._bound = self._found()
        self._socket = listener
        await self._server.listen(listener)

    def _found(self) -> tuple[int, int] | None:
        try:
            there = self._path.stat()
        except OSError:
            return None
        return there.st_dev, there.st_ino
