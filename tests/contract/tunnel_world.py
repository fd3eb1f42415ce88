"""One daemon's tunnels and what is at their far end, for tests of the SSH engines."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_sidecar.domain.tunnels import BackendName, PathState, PathStatus, SshRoute, SshServer, Tunnel
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.tunnels.fleet import TunnelFleet
from tests.ssh_servers import Sshd


class World:
    """One daemon's tunnels, an engine far away that echoes a word of its own, and what tests ask of both."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fleet = self.new_fleet()
        self.servers: list[asyncio.Server] = []
        self.talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def new_fleet(self) -> TunnelFleet:
        fleet = TunnelFleet(self.directory, Tasks("-", Metrics()))
        fleet.prepare()
        return fleet

    async def listen(self, word: bytes, port: int = 0) -> int:
        """Something far away that says `word` to whoever connects and then everything back; its port."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self.talks[task] = writer
            writer.write(word)
            with suppress(ConnectionError):
                while data := await reader.read(4096):
                    writer.write(data)
            writer.transport.abort()

        server = await asyncio.start_server(talk, "127.0.0.1", port)
        self.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def until(self, tunnel: Tunnel, *wanted: PathState, within_s: float = 60.0) -> PathStatus:
        """The tunnel's status once it is one of these."""
        end = time.monotonic() + within_s
        while (status := self.fleet.status(tunnel)).state not in wanted:
            assert time.monotonic() < end, f"{wanted} not within {within_s} s: {status}"
            await asyncio.sleep(0.02)
        return status

    async def hear(self, tunnel: Tunnel, fleet: TunnelFleet | None = None) -> bytes:
        """What the far end says first; b"" if it cannot be reached."""
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_unix_connection((fleet or self.fleet).socket_of(tunnel))
                try:
                    return await reader.read(100)
                finally:
                    writer.close()
        except OSError:
            return b""

    async def close(self) -> None:
        """Ends all of it, and waits for the end of what was said far away."""
        await self.fleet.end()
        for server in self.servers:
            server.close()
        for writer in self.talks.values():
            writer.transport.abort()
        await asyncio.gather(*self.talks, return_exceptions=True)

    def request(self, *tunnels: Tunnel) -> None:
        self.fleet.request(tunnels, complete=True)


def route_to(sshd: Sshd, backend: BackendName, **changes: Any) -> SshRoute:
    """Takes a minute to find a path dead: a server that a busy machine holds up is alive."""
    server = SshServer(
        sshd.host, sshd.port, user="root", key_file=str(sshd.user_key), known_hosts=str(sshd.known_hosts)
    )
    return SshRoute((replace(server, **changes),), keepalive_s=20, connect_timeout_s=30, backend=backend)


def impatient(route: SshRoute) -> SshRoute:
    """Finds a dead path in three seconds."""
    return replace(route, keepalive_s=1, connect_timeout_s=3)
