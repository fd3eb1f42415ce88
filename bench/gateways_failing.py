"""Rows of `several-gateways`: keys that are revoked, a store that is away, a gateway that is killed.

revoked  From the moment before a revocation begins at one of three gateways, as `key revoke --store` makes it, but in a
         process that runs already, until a request with that key gets 401 at all three, each asked every 2 ms over a
         kept connection. The gateways take turns. A limit is used up, so that nginx answers by itself before, too: 429.
away     etcd is killed and stays so. Clients of each gateway chat all the time; a daemon is restarted in the middle.
killed   Of three gateways behind HAProxy one loses its power under load, as the demo with `FLEET=3` shows it. Streams
         that it had begun to answer are cut; nothing else may fail.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from contextlib import AsyncExitStack, redirect_stdout
from pathlib import Path

import aiohttp

from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind, settings
from bench.gateways import Site, put, until_serving
from bench.report import Row, in_ms, percentile, rounded_ms
from bench.wire import Connection
from examples.demo.chat import Load
from examples.demo.fleet import FleetShow
from gateway_sidecar.api.client import Client
from gateway_sidecar.commands.stored_keys import StoreOfKeys
from gateway_sidecar.frontend.edit_keys import add_key
from tests.etcd import Etcd
from tests.system.gateway import Gateway

NAME = "several-gateways"
_GATEWAYS = 3
_REVOKED_P99_S = 0.200
_BETWEEN_S = 0.002
_LATE_S = 60.0
_CLIENTS = 2
_TOKEN_S = 0.03


async def revoked_row(directory: Path, etcd: Etcd, engines: EngineHost, revocations: int) -> Row:
    """How soon a key that is revoked at one gateway is refused at all."""
    socket = directory / "engine.sock"
    await engines.start(settings(socket, EngineKind.SGLANG_HTTP, name="engine", model=MODEL))
    frontend = {"auth": {"store": True}, "limits": [{"per": "key", "rps": 1 / 60}]}
    site = Site(etcd, 400, "none", frontend=frontend)
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(site.gateway()) for _ in range(_GATEWAYS)]
        await put(gateways[0], "r1", socket)
        for gateway in gateways:
            await until_serving(gateway, 1)
        names = [f"user{number}" for number in range(revocations)]
        times = [
            await _revoked_s(gateways, gateway, name)
            for name, gateway in zip(names, itertools.cycle(gateways), strict=False)
        ]
    p50, p99, worst = percentile(times, 50), percentile(times, 99), max(times)
    return Row(
        NAME, f"a key is revoked at one of {_GATEWAYS} gateways, until it is refused at all",
        f"p99 < {in_ms(_REVOKED_P99_S)}", "-", f"p50 {in_ms(p50)}, p99 {in_ms(p99)}, at most {in_ms(worst)}",
        f"p99 {in_ms(p99)}", p99 < _REVOKED_P99_S, {"ours_ms": rounded_ms(times)},
    )  # fmt: skip


async def _revoked_s(gateways: list[Gateway], at: Gateway, name: str) -> float:
    client = Client(at.directory / "run" / "admin.sock")
    secret = await asyncio.to_thread(lambda: add_key(StoreOfKeys(client), name))
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(Connection("127.0.0.1", it.ports["chat"], key=secret)) for it in gateways
        ]
        await asyncio.gather(*(_until_status(it, 429) for it in connections))
        refused = asyncio.gather(*(_until_status(it, 401) for it in connections))
        await asyncio.sleep(_BETWEEN_S)
        began = time.monotonic()
        await asyncio.to_thread(lambda: StoreOfKeys(client).revoke(name))
        return max(await refused) - began


async def _until_status(connection: Connection, status: int) -> float:
    """The instant of the first answer with it. Raises TimeoutError."""
    async with asyncio.timeout(_LATE_S):
        while (await connection.ask("GET", "/v1/models")).status != status:
            await asyncio.sleep(_BETWEEN_S)
        return time.monotonic()


async def away_row(directory: Path, etcd: Etcd, engines: EngineHost, away_s: float) -> Row:
    """What clients notice of a store that is away for so long."""
    sockets = {f"r{number}": directory / f"r{number}.sock" for number in range(1, 4)}
    await engines.start(
        *(
            settings(socket, EngineKind.SGLANG_HTTP, name=name, model=MODEL, token_interval_s=_TOKEN_S)
            for name, socket in sockets.items()
        )
    )
    site = Site(etcd, 400, "smg")
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(site.gateway()) for _ in range(_GATEWAYS)]
        for name, socket in sockets.items():
            await put(gateways[0], name, socket)
        for gateway in gateways:
            await until_serving(gateway, len(sockets))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with AsyncExitStack() as clients:
            loads = [
                await clients.enter_async_context(Load(session, it.url(), MODEL, clients=_CLIENTS, without_stream=1))
                for it in gateways
            ]
            for load in loads:
                await load.more(_CLIENTS)
            etcd.kill()
            await asyncio.sleep(away_s / 2)
            await gateways[1].terminate()
            await gateways[1].start()
            await until_serving(gateways[1], len(sockets))
            await asyncio.sleep(away_s / 2)
            etcd.start()
            for gateway in gateways:
                await gateway.until(lambda status: status["store"]["state"] == "up", within_s=_LATE_S)
            for load in loads:
                await load.more(_CLIENTS)
        for gateway in gateways:
            await until_serving(gateway, len(sockets))
    failed, answered = [it for load in loads for it in load.failures], sum(load.answered for load in loads)
    return Row(
        NAME, f"etcd is away for {away_s:g} s under load, and a daemon is restarted meanwhile: failed chats", "0", "-",
        f"{len(failed)} of {answered + len(failed)}", str(len(failed)), not failed,
        {"answered": answered, "failures": [str(it) for it in failed[:20]]},
    )  # fmt: skip


async def killed_row(kills: int) -> Row:
    """What clients of a load balancer that retries notice of gateways that lose their power."""
    show, outcomes = FleetShow(_GATEWAYS), []
    try:
        with redirect_stdout(io.StringIO()):
            names = await show.begin()
            for number in range(kills):
                name = names[number % len(names)]
                outcomes.append(await show.kill(name))
                await show.bring_back(name)
    finally:
        await show.close()
        show.remove()
    failed = [failure for it in outcomes for failure in it.failed]
    cut, answered = sum(len(it.cut) for it in outcomes), sum(it.answered for it in outcomes)
    case = f"one of {_GATEWAYS} gateways behind HAProxy loses its power, {kills} times: failed, but for begun streams"
    return Row(
        NAME, case, "0", "-", f"{len(failed)} of {answered + cut + len(failed)} chats; {cut} streams were cut",
        str(len(failed)), not failed, {"answered": answered, "cut": cut, "failures": [str(it) for it in failed[:20]]},
    )  # fmt: skip
