"""Connections made by asyncssh, each in a process of its own (`asyncssh_process.py`) that is asked over its socket."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.tunnels.base import TunnelFault, check_files

_ANSWER_S = 10.0  # A choice: for a forward, which takes a round trip to the far side.
_MOST_READ = 64 * 1024  # The end of a log: what the process said last is in a line of it.


class AsyncSsh:
    """The backend for machines without `ssh` (an `SshBackend`)."""

    name = "asyncssh"
    log_suffix = ".log"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def command(self, connection: str, route: SshRoute) -> list[str]:
        """Writes the route down for the process, and returns its command line."""
        check_files(route.servers)
        path = self._directory / f"{connection}.conf"
        try:
            replace_file(path, json.dumps(asdict(route)))
        except OSError as error:
            raise TunnelFault(PathState.LOCAL_TROUBLE, f"cannot write {path}: {error.strerror}") from error
        (self._directory / f"{connection}.ctl").unlink(missing_ok=True)
        return [sys.executable, "-m", "gateway_sidecar.tunnels.asyncssh_process", connection]

    async def forward(self, connection: str, local: str, remote: str) -> None:
        """Asks the process for one more forward."""
        await self._ask(connection, {"do": "forward", "local": local, "remote": remote})

    async def cancel(self, connection: str, local: str, remote: str) -> None:
        """Asks the process to listen on this socket no more."""
        await self._ask(connection, {"do": "cancel", "local": local, "remote": remote})

    def objection(self, connection: str, route: SshRoute) -> PathStatus | None:
        """None: the process itself does not go on with a host that it could not enter."""
        return None

    def why_ended(self, connection: str, route: SshRoute) -> PathStatus:
        """What the process said last; that of its own and nothing else is JSON."""
        try:
            with (self._directory / f"{connection}.log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_READ))
                lines = file.read(_MOST_READ).decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        lines = [line for line in lines if line.strip()]
        for line in reversed(lines):
            try:
                said = json.loads(line)
                refusal = said["refusal"] and PathState(said["refusal"])
                reason = printable(str(said["reason"]))
                return PathStatus(PathState(said["state"]), reason, int(said["entered"]), refusal)
            except (ValueError, KeyError, TypeError):
                continue
        return PathStatus(PathState.FAILED, printable(lines[-1]) if lines else "the process ended without a message")

    async def _ask(self, connection: str, question: dict[str, str]) -> None:
        path = self._directory / f"{connection}.ctl"
        try:
            async with within(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    await reader.readline()  # Its greeting.
                    writer.write(json.dumps(question).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            raise TunnelFault(PathState.LOCAL_TROUBLE, f"{path} does not answer: {error!r}") from error
        if not answer.get("ok"):
            raise TunnelFault(PathState.LOCAL_TROUBLE, printable(str(answer.get("reason"))))
