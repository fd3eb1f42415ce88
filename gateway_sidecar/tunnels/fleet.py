"""All tunnels of a daemon: the connections that they need, and those that an earlier daemon left.

A connection's process is known by its log: it leads a session of its own and writes to a file of ours, whose name is
made of the whole route. So nothing needs to be written down to find it again, and none is taken for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, Tunnel
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import Identity, Process, writers_below
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.tunnels.asyncssh_backend import AsyncSsh
from gateway_sidecar.tunnels.base import SshBackend, TunnelFault, connection_name, socket_name
from gateway_sidecar.tunnels.connection import SshConnection
from gateway_sidecar.tunnels.logins import Logins
from gateway_sidecar.tunnels.openssh import OpenSsh

_CHOICE_HOLDS_S = 5.0  # A choice: all routes share one search for ssh, and one that is installed now is found soon.


class Missing:
    """Stands for a backend that this machine does not have (an `SshBackend`)."""

    name = "missing"
    log_suffix = ".log"

    def __init__(self, cure: str) -> None:
        self.cure = cure
        self._fault = TunnelFault(PathState.NOT_INSTALLED, cure)

    def command(self, connection: str, route: SshRoute) -> list[str]:
        """Nothing to start."""
        raise self._fault

    async def forward(self, connection: str, local: str, remote: str) -> None:
        """Nothing to ask."""
        raise self._fault

    async def cancel(self, connection: str, local: str, remote: str) -> None:
        """Nothing to ask."""
        raise self._fault

    def objection(self, connection: str, route: SshRoute) -> PathStatus | None:
        """Nothing ran."""
        return None

    def why_ended(self, connection: str, route: SshRoute) -> PathStatus:
        """Nothing ran."""
        return self._fault.status


def choose_backend(wanted: str, directory: Path) -> SshBackend:
    """The backend that a route asks for, or the stand-in that says what to install."""
    program = which("ssh") if wanted != "asyncssh" else None
    if program is not None:
        return OpenSsh(Path(program), directory)
    if wanted != "openssh" and find_spec("asyncssh") is not None:
        return AsyncSsh(directory)
    cures = {"openssh": "install openssh-client", "asyncssh": "install gateway-sidecar[ssh]"}
    return Missing(cures.get(wanted, "install openssh-client, or gateway-sidecar[ssh]"))


class TunnelFleet:
    """Keeps a connection for each route that a wanted tunnel takes, and the tunnels' sockets in `directory`."""

    def __init__(self, directory: Path, tasks: Tasks) -> None:
        self.directory = directory
        self.changed = asyncio.Event()
        """Set whenever a tunnel came up or went down."""
        self._background = tasks
        self._connections: dict[str, SshConnection] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()
        self._tidy = False
        self._earlier: dict[str, list[Identity]] = {}
        self._by_tunnel: dict[Tunnel, tuple[SshConnection, str]] = {}
        self._backends: dict[str, tuple[float, SshBackend]] = {}
        self._logins = Logins()
        self._logger = get_logger()

    @property
    def connections(self) -> Collection[SshConnection]:
        """The connections that are kept."""
        return self._connections.values()

    def socket_of(self, tunnel: Tunnel) -> Path:
        """Where the tunnel's socket is, or will be."""
        return self.directory / socket_name(tunnel)

    def status(self, tunnel: Tunnel) -> PathStatus:
        """How the tunnel is."""
        found = self._by_tunnel.get(tunnel)
        return found[0].status_of(found[1]) if found else PathStatus(PathState.CONNECTING)

    def prepare(self) -> None:
        """Makes the directory and looks for connections that an earlier daemon left. Raises OSError. Blocks."""
        make_directory(self.directory, 0o700)
        found = writers_below(self.directory)
        self._earlier = {name.removesuffix(".log"): identities for name, identities in found.items()}

    def request(self, tunnels: Collection[Tunnel], *, complete: bool) -> None:
        """Keeps these tunnels and no others.

        Unless `complete`, what an earlier daemon left may still be somebody's, and stays.
        """
        by_connection: dict[str, dict[str, str]] = {}
        routes: dict[str, tuple[SshRoute, SshBackend]] = {}
        places: dict[Tunnel, tuple[str, str]] = {}
        owners: dict[str, list[str]] = {}
        for tunnel in tunnels:
            backend = self._backend(tunnel.route.backend)
            name, local = connection_name(tunnel.route, backend.name), socket_name(tunnel)
            routes[name] = tunnel.route, backend
            by_connection.setdefault(name, {})[local] = tunnel.remote
            places[tunnel] = name, local
            owners.setdefault(name, []).append(tunnel.owner)
        self._logins.keep(route for route, _ in routes.values())
        for name in self._connections.keys() - by_connection.keys():
            self._drop(name)
        for name, wanted in by_connection.items():
            if name in self._leaving:
                continue  # Wanted again before its end: the next look begins it anew.
            connection = self._connections.get(name) or self._begin(name, *routes[name])
            connection.request(wanted, sorted(owners[name]))
        self._by_tunnel = {
            t: (self._connections[name], local) for t, (name, local) in places.items() if name in self._connections
        }
        if complete and not self._tidy:
            self._tidy = True
            self._remove_leftovers({local for wanted in by_connection.values() for local in wanted})
            self._spawn(self._end_earlier())

    async def end(self) -> None:
        """Ends every connection."""
        for name in list(self._connections):
            self._drop(name)
        await self._end_earlier()
        await asyncio.gather(*self._ending)
        for left in self.directory.glob("*"):
            left.unlink(missing_ok=True)

    async def detach(self) -> None:
        """Leaves every connection to the next daemon."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._ending, return_exceptions=True)
        for connection in self._connections.values():
            connection.detach()

    def _backend(self, wanted: str) -> SshBackend:
        chosen_at, backend = self._backends.get(wanted, (0.0, None))
        if backend is None or time.monotonic() - chosen_at > _CHOICE_HOLDS_S:
            backend = choose_backend(wanted, self.directory)
            self._backends[wanted] = time.monotonic(), backend
        return backend

    def _begin(self, name: str, route: SshRoute, backend: SshBackend) -> SshConnection:
        earlier = self._earlier.pop(name, [])
        connection = SshConnection(
            route,
            backend,
            self.directory,
            self._logins,
            adopted=earlier[0] if earlier else None,
            on_change=self.changed.set,
        )
        self._connections[name] = connection
        self._tasks[name] = self._background.run_forever(connection.run)
        return connection

    def _drop(self, name: str) -> None:
        self._leaving.add(name)
        self._spawn(self._end_connection(self._connections.pop(name), self._tasks.pop(name)))

    async def _end_connection(self, connection: SshConnection, task: asyncio.Task[None]) -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        try:
            await connection.end()
        finally:
            self._leaving.discard(connection.name)
        self._logger.info("tunnel.ended", tunnel_to=str(connection.route.target))

    async def _end_earlier(self) -> None:
        """Ends connections of an earlier daemon that no replica needs."""
        earlier, self._earlier = self._earlier, {}
        for name, identities in earlier.items():
            for identity in identities:
                process = Process.adopt(identity)
                if process is not None:
                    self._logger.warning("tunnel.leftover_stopped", pid=process.pid)
                    await process.stop(grace_s=3)
            for path in self.directory.glob(f"{name}.*"):
                path.unlink(missing_ok=True)

    def _remove_leftovers(self, wanted: Collection[str]) -> None:
        """Files that an earlier daemon's connections left: a socket nobody wants must not be found there."""
        kept = {*self._connections, *self._leaving, *self._earlier}
        for path in self.directory.iterdir():
            if path.name not in wanted and path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._background.spawn(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
