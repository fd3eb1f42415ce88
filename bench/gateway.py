"""Ours: the real daemon with its nginx and its SMG, on ports and in a directory of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from bench import processes
from bench.bare import Workers
from bench.place import BASE
from bench.ports import free_ports
from bench.wire import Connection
from tests.system.gateway import Gateway, Status, service_of


class Ours:
    """One gateway that runs, with the service `chat`; the instruments that all figures use."""

    def __init__(self, gateway: Gateway, workers: Workers) -> None:
        self.gateway = gateway
        self.directory = gateway.directory
        self.workers = workers

    def socket(self, replica: str) -> Path:
        """The path where the daemon looks for a replica."""
        return self.gateway.socket(replica)

    def client(self) -> Connection:
        """A connection to the service address."""
        return Connection("127.0.0.1", self.gateway.ports["chat"])

    def troubles(self) -> list[str]:
        """The daemon's last 100 log lines that are more than information."""
        return [line for line in self.gateway.log().splitlines() if '"level": "info"' not in line][-100:]

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self.gateway.process is not None
        return self.gateway.process.pid

    async def nginx_pids(self) -> list[int]:
        """The master's and its workers'."""
        master = int((await self.gateway.status())["nginx"]["pid"])
        return [master, *processes.children(master)]

    async def reloads(self) -> int:
        """How often nginx was reloaded so far."""
        return int((await self.gateway.status())["nginx"]["reloads"])

    async def until(self, condition: Callable[[dict[str, dict[str, Any]]], bool], *, within_s: float = 60.0) -> None:
        """Returns when the condition holds for the status's replicas (id -> row). Asks every 30 ms, not to disturb.

        Raises TimeoutError.
        """
        rows: dict[str, dict[str, Any]] = {}
        try:
            async with asyncio.timeout(within_s):
                while True:
                    rows = replicas_of(await self.gateway.status())
                    if condition(rows):
                        return
                    await asyncio.sleep(0.03)
        except TimeoutError:
            shown = {name: (row["state"], row["reason"]) for name, row in rows.items()}
            raise TimeoutError(f"not within {within_s:g} s: {shown}") from None

    async def until_serving(self, *replicas: str, within_s: float = 60.0) -> None:
        """Returns when the status shows just these replicas, all serving. Raises TimeoutError."""
        wanted = dict.fromkeys(replicas, "serving")
        await self.until(lambda rows: {n: row["state"] for n, row in rows.items()} == wanted, within_s=within_s)

    async def router_pid(self) -> int | None:
        """The router's, while one runs."""
        pid: int | None = service_of(await self.gateway.status())["router"]["pid"]
        return pid

    async def other_router(self, old_pid: int, *, within_s: float = 30.0) -> Workers:
        """The workers of the router that comes after this one, as soon as the daemon has written it down.

        Raises TimeoutError. The caller closes them.
        """
        async with asyncio.timeout(within_s):
            while True:
                record = await _router_record(self.gateway)
                if record["identity"] is not None and record["identity"]["pid"] != old_pid:
                    return Workers(int(record["ports"]["api"]), str(record["key"]))
                await asyncio.sleep(0.005)

    async def drain(self, replica: str) -> None:
        """Returns when it is safe to stop the replica's engine. Raises RuntimeError if it is not."""
        url = f"http://daemon/v1/services/chat/replicas/{replica}/drain"
        async with self.gateway.session.post(url, timeout=aiohttp.ClientTimeout(total=60)) as response:
            if response.status != 200:
                raise RuntimeError(f"drain of {replica}: {response.status} {await response.text()}")


def replicas_of(status: Status) -> dict[str, dict[str, Any]]:
    """Replica id -> its row of the status."""
    return {row["id"]: row for row in service_of(status)["replicas"]}


@asynccontextmanager
async def running_gateway(
    *,
    bridges: int = 400,
    nginx_workers: int | str = "auto",
    settle_s: float | None = None,
    hold: Mapping[str, object] | None = None,
    router: str = "smg",
    command: str | None = None,
    engine: str = "auto",
    module: str = "gateway_sidecar",
) -> AsyncIterator[Ours]:
    """A gateway with the default settings but for the ports, which waits `settle_s` after a worker is taken out.

    hold: its settings. router, command: its kind and its program; `workers` is for SMG alone. engine:
        what replicas are. module: what is run in the daemon's place.
    """
    first = free_ports(bridges)
    gateway = Gateway(
        base=BASE,
        log={"format": "json", "level": "info"},
        nginx={"workers": nginx_workers},
        bridges={"ports": f"{first}-{first + bridges - 1}"},
    )
    gateway.module = module
    if settle_s is not None:
        gateway.settings["services"][0]["drain"] = {"settle_s": settle_s}
    if hold is not None:
        gateway.settings["services"][0]["hold"] = dict(hold)
    try:
        of_kind = {"type": router, **({"command": command} if command else {})}
        gateway.settings["services"][0] |= {"router": of_kind, "engine": engine}
        await gateway.start()
        if router != "smg":
            yield Ours(gateway, Workers(0, ""))
            return
        record = await _router_record(gateway)
        workers = Workers(int(record["ports"]["api"]), str(record["key"]))
        try:
            yield Ours(gateway, workers)
        finally:
            workers.close()
    finally:
        await gateway.close()


async def _router_record(gateway: Gateway) -> dict[str, Any]:
    """What the daemon wrote down of its router: ports and key."""
    path = gateway.directory / "run" / "processes.json"
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError, KeyError, IndexError):
                record: dict[str, Any] = json.loads(path.read_text())["routers"]["chat"][0]
                return record
            await asyncio.sleep(0.02)
