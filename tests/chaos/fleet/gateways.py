"""A gateway of the fleet: a machine of its own with the real daemon, and keepalived as the guide has it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.fleet.network import Network, address_of
from tests.chaos.fleet.parts import SERVICE_PORT
from tests.chaos.history import Row
from tests.keepalived import keepalived
from tests.system.gateway import Gateway, Status, with_children

SERVICE = "chat"
LEASE_S, READ_S, STORE_TIMEOUT_S = 5, 2.0, 1.0
_BRIDGES, _ROUTERS, _METRICS = "24001-24120", "23001-23010", 9464
_LEAVE = {"quiet_s": 4.0, "balancer_s": 12.0, "timeout_s": 60.0}
_HEALTH = {"interval_s": 1.0, "timeout_s": 3.0, "failures": 3}
_POLICIES = ("cache_aware", "round_robin")
_TRIES_S = 100.0


class FleetGateway:
    """One of the fleet. It may be lost, and come back with what its disk has."""

    def __init__(self, base: Path, network: Network, number: int, endpoints: Sequence[str]) -> None:
        self.name = f"gw-{number}"
        self.url = f"http://{address_of(self.name)}:{SERVICE_PORT}"
        self._network = network
        self._priority = 100 - 10 * number
        self._keepalived: Process | None = None
        self._reloads = 0
        self._calls: aiohttp.ClientSession | None = None
        self.gateway = Gateway(services=(SERVICE,), base=base)
        self.gateway.namespace = network[self.name]
        self.gateway.ports[SERVICE] = SERVICE_PORT
        etcd = {"endpoints": list(endpoints), "timeout_s": STORE_TIMEOUT_S}
        self.gateway.configure(
            metrics={"listen": f"127.0.0.1:{_METRICS}"},
            bridges={"ports": _BRIDGES},
            router_ports=_ROUTERS,
            leave=_LEAVE,
            store={"gateway": self.name, "lease_s": LEASE_S, "read_every_s": READ_S, "etcd": etcd},
            services=[self._service()],
        )

    def _service(self) -> dict[str, Any]:
        ssh = {"user": "root", "port": 2222, "keepalive_s": 1, "connect_timeout_s": 3}
        return {
            "name": SERVICE,
            "listen": f"0.0.0.0:{SERVICE_PORT}",
            "replicas": {"ssh_defaults": ssh},
            "router": {"policy": _POLICIES[self._reloads % 2]},
            "health": _HEALTH,
            "drain": {"timeout_s": 30.0},
            "frontend": {"auth": {"store": True}},
        }

    # -- life

    async def start(self) -> None:
        """Starts the daemon, and keepalived if it does not run. Raises AssertionError if the daemon does not begin."""
        await self.gateway.start()
        if self._keepalived is None:
            space, directory = self._network[self.name], self.gateway.directory
            self._keepalived = await keepalived(directory, space, SERVICE_PORT, self._priority)

    async def lose(self) -> None:
        """All its processes are killed."""
        await self.gateway.lose()
        await self._kill_keepalived()

    async def left(self) -> int:
        """The daemon's exit code, once it has ended by itself. Keepalived goes on."""
        assert self.gateway.process is not None
        return await self.gateway.process.wait()

    def signal_all(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT of all its processes: a machine that pauses."""
        assert self.gateway.process is not None
        programs = [] if self._keepalived is None else list(with_children(self._keepalived.pid))
        for pid in (self.gateway.process.pid, *self.gateway.everything_else(), *programs):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def close(self) -> None:
        """Ends all of it; its files stay."""
        if self._calls is not None:
            await self._calls.close()
        if self.gateway.process is not None and self.gateway.process.returncode is None:
            self.signal_all(signal.SIGCONT)
        await self._kill_keepalived()
        await self.gateway.close(keep_files=True)

    async def _kill_keepalived(self) -> None:
        if self._keepalived is not None and self._keepalived.returncode is None:
            for pid in list(with_children(self._keepalived.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self._keepalived.wait()
        self._keepalived = None

    def reconfigure(self) -> None:
        """Writes another configuration, for a reload: the router's policy differs."""
        self._reloads += 1
        self.gateway.configure(services=[self._service()])

    # -- asking it

    async def call(self, method: str, path: str, body: object = None, **query: str) -> tuple[int | None, Any]:
        """One request of the admin API. No code if the daemon does not answer."""
        if self._calls is None:
            connector = aiohttp.UnixConnector(str(self.gateway.directory / "run" / "admin.sock"), force_close=True)
            self._calls = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_TRIES_S))
        try:
            url = f"http://daemon/v1/{path}"
            async with self._calls.request(method, url, json=body, params=query) as response:
                return response.status, json.loads(await response.text() or "null")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return None, repr(error)

    async def status(self, within_s: float = 3.0) -> Status | None:
        """What it says of itself; None if it does not within that time."""
        try:
            async with asyncio.timeout(within_s):
                code, status = await self.call("GET", "status")
        except TimeoutError:
            return None
        return status if code == 200 else None

    async def processes(self) -> tuple[int | None, int | None]:
        """nginx's and the router's processes, where they are up."""
        status = await self.status()
        if status is None:
            return None, None
        router = status["services"][0]["router"]
        nginx = status["nginx"]["pid"] if status["nginx"]["state"] == "up" else None
        return nginx, router["pid"] if router["state"] == "up" else None


def rows_of(status: Mapping[str, Any]) -> tuple[Row, ...]:
    """The replicas of a status."""
    return tuple(
        Row(
            SERVICE, row["id"], row["state"], int(row["bridge"].rpartition(":")[2]) if row["bridge"] else None,
            row["worker_id"], row["reason"],
        )
        for row in status["services"][0]["replicas"]
    )  # fmt: skip
