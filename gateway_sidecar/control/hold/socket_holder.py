"""A process that keeps the hold's socket open while no daemon does.

It does nothing: it has inherited the listening socket, and so the kernel goes on taking connections there when the
daemon is gone. They stand in the socket's queue until the next daemon has a socket of its own and ends this process;
nginx is refused then, and asks at the new socket, which has the old one's name.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from gateway_sidecar.errors import ProcessError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import open_to_append
from gateway_sidecar.supervision.process import Process, writers_of
from gateway_sidecar.telemetry.logs import get_logger

_COMMAND = ("sleep", "infinity")
_GRACE_S = 1.0  # It is `sleep`, which ends at once: for a machine under load.


class SocketHolder:
    """Holds the socket that `listening` returns. `mark` is the file that its output goes to, by which the next daemon
    finds it; nothing is ever written there."""

    def __init__(self, mark: Path, listening: Callable[[], socket.socket]) -> None:
        self._mark = mark
        self._listening = listening
        self._held: socket.socket | None = None
        self._process: Process | None = None
        self.took_over = False
        """Whether an earlier daemon's socket was held when this one began to be."""
        self._logger = get_logger()

    async def begin(self) -> None:
        """Holds the socket. Without a holder the daemon serves all the same."""
        try:
            await self.repair()
        except (OSError, ProcessError) as error:
            self._logger.error("hold.socket_not_held", reason=str(error))

    async def repair(self) -> bool:
        """Holds the socket, should nobody hold that very one; whether that was needed. Raises OSError, ProcessError."""
        if self._process is not None and self._process.running and self._held is self._listening():
            return False
        listening = self._listening()
        make_directory(self._mark.parent)
        output = open_to_append(self._mark)
        process = await Process.spawn(_COMMAND, log_fd=output, keep_fds=(listening.fileno(),))
        if self._process is not None:
            await self._process.stop(grace_s=_GRACE_S)
        self._process, self._held = process, listening
        await self._end_others(process)
        return True

    async def end(self) -> None:
        """Nobody holds the socket any more: it closes with the daemon's own."""
        if self._process is not None:
            await self._process.stop(grace_s=_GRACE_S)

    def detach(self) -> None:
        """Leaves it holding the socket for the next daemon."""
        if self._process is not None:
            self._process.detach()

    async def _end_others(self, but: Process) -> None:
        """Ends those of earlier daemons: who waits at a socket of theirs is sent to ours."""
        for identity in await asyncio.to_thread(writers_of, self._mark):
            earlier = Process.adopt(identity) if identity != but.identity else None
            if earlier is not None:
                self.took_over = True
                await earlier.stop(grace_s=_GRACE_S)
