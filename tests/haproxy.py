"""A real HAProxy in front of gateways, as the guide has it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

_CONFIG = """
global
    maxconn 2000
    stats socket {stats} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout check 20s
    retries 0
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 300ms fall 2 rise 2
{servers}
"""


class Haproxy:
    """It runs. `retries 0`: it hides no failure of a gateway's."""

    def __init__(self, port: int, stats: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._stats = stats

    async def states(self) -> dict[str, str]:
        """Gateway -> `UP` or `DOWN`, as it says itself."""
        reader, writer = await asyncio.open_unix_connection(str(self._stats))
        writer.write(b"show stat\n")
        rows = [line.split(",") for line in (await reader.read()).decode().splitlines()]
        writer.close()
        return {row[1]: row[17] for row in rows if len(row) > 17 and row[0] == "gateways" and row[1] != "BACKEND"}

    async def until(self, gateway: str, state: str) -> None:
        async with asyncio.timeout(60):
            while True:
                with suppress(OSError):
                    if (await self.states()).get(gateway, "").startswith(state):
                        return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def haproxy(directory: Path, port: int, gateways: Mapping[str, int]) -> AsyncIterator[Haproxy]:
    """In front of these: name -> port of its service."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("haproxy is not installed; `make test` installs it")
    servers = "\n".join(f"    server {name} 127.0.0.1:{at}" for name, at in gateways.items())
    config, stats = directory / "haproxy.cfg", directory / "haproxy.sock"
    config.write_text(_CONFIG.format(port=port, servers=servers, stats=stats))
    process = await asyncio.create_subprocess_exec(program, "-db", "-f", str(config))
    running = Haproxy(port, stats)
    try:
        for name in gateways:
            await running.until(name, "UP")
        yield running
    finally:
        process.kill()
        await process.wait()
