"""Figures: several gateways that share a real etcd.

put    From a PUT at one gateway to the first 200 through another; the engine listens already. Both have an SMG. One
       client asks the other gateway again and again.
floor  What etcd alone takes from a put to its watcher, and a bare SMG from being given the worker to its first 200.
join   From the start of a fourth gateway's daemon, which knows nothing, until 200 replicas serve there.
rest   What three gateways ask of etcd while nothing changes, by etcd's own counters.

The last two have no router. What fails, and how soon a key does not count any more: `gateways_failing.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import aiohttp

from bench.bare import BareNginx, BareSmg, worker_body
from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind, settings
from bench.gateways import Site, put, until_serving
from bench.gateways_failing import away_row, killed_row, revoked_row
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection
from gateway_sidecar.domain.metrics_text import samples
from tests.etcd import Etcd
from tests.system.gateway import Gateway

T = TypeVar("T")
NAME = "several-gateways"
_P50_OVER_FLOOR_S = 0.060
_JOINED_S = 10.0
_REQUESTS_S, _BYTES_S = 20.0, 100_000.0
_AT_ONCE = 8
_KEY = "YmVuY2g="
_COUNTERS = (
    "grpc_server_handled_total", "grpc_server_msg_received_total",
    "etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total",
)  # fmt: skip


async def _counters(etcd: Etcd) -> dict[str, float]:
    """etcd's own, summed over their labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{etcd.endpoint}/metrics") as answer:
        found = dict.fromkeys(_COUNTERS, 0.0)
        for name, _, value in samples(await answer.read(), _COUNTERS):
            found[name] += value
        return found


async def _delete(gateway: Gateway, replica: str) -> None:
    async with gateway.session.delete(f"http://daemon/v1/services/chat/replicas/{replica}") as answer:
        await answer.read()


async def _watched(etcd: Etcd) -> float:
    """What etcd alone takes from a put until its watcher has it; seconds."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{etcd.endpoint}/v3/watch", json={"create_request": {"key": _KEY}}) as watch,
    ):
        await watch.content.readline()
        began = time.monotonic()
        putting = asyncio.create_task(
            session.post(f"{etcd.endpoint}/v3/kv/put", json={"key": _KEY, "value": _KEY}).__aenter__()
        )
        event = json.loads(await watch.content.readline())
        took_s = time.monotonic() - began
        (await putting).release()
        if not event["result"]["events"]:
            raise RuntimeError(f"etcd's watch says nothing of the put: {event}")
        return took_s


async def _put_row(directory: Path, etcd: Etcd, engines: EngineHost, runs: int) -> Row:
    socket = directory / "engine.sock"
    await engines.start(settings(socket, EngineKind.SGLANG_HTTP, name="engine", model=MODEL))
    site, first = Site(etcd, 400, "smg"), free_ports(runs)
    floors, times = [], []
    async with (
        site.gateway() as near,
        site.gateway() as far,
        BareSmg(directory) as smg,
        BareNginx(directory, dict.fromkeys(range(first, first + runs), socket)),
    ):
        for number in range(runs):
            store_s = await _watched(etcd)
            async with Connection("127.0.0.1", smg.ports.api) as client:
                answered, began = asyncio.create_task(first_200(client)), time.monotonic()
                worker = await smg.workers.add(worker_body(first + number, EngineKind.SGLANG_HTTP, MODEL))
                floors.append(store_s + await answered - began)
            await smg.workers.delete(worker)
            await smg.workers.until_ready(0)
            async with Connection("127.0.0.1", far.ports["chat"]) as client:
                answered, began = asyncio.create_task(first_200(client)), time.monotonic()
                await put(near, f"r{number}", socket)
                times.append(await answered - began)
            await _delete(near, f"r{number}")
            for gateway in (near, far):
                await until_serving(gateway, 0)
    p50, floor_p50 = median(times), median(floors)
    return Row(
        NAME,
        "a PUT at one gateway, until the first 200 through another",
        f"p50 floor + {in_ms(_P50_OVER_FLOOR_S)}",
        f"p50 {in_ms(floor_p50)}",
        f"p50 {in_ms(p50)}, p95 {in_ms(percentile(times, 95))}",
        f"floor {(p50 - floor_p50) * 1000:+.1f} ms",
        p50 - floor_p50 <= _P50_OVER_FLOOR_S,
        {"floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times)},
    )


async def _crowd_rows(directory: Path, etcd: Etcd, engines: EngineHost, replicas: int, rest_s: float) -> list[Row]:
    site, few = Site(etcd, 2 * replicas + 400, "none"), min(200, replicas)
    names = [f"r{number}" for number in range(replicas)]
    sockets = {name: directory / f"{name}.sock" for name in names}
    await engines.start(*(settings(sockets[name], EngineKind.SGLANG_HTTP, name=name, model=MODEL) for name in names))
    slots = asyncio.Semaphore(_AT_ONCE)

    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(site.gateway()) for _ in range(3)]

        async def put_one(name: str) -> None:
            async with slots:
                await put(gateways[0], name, sockets[name])

        await asyncio.gather(*map(put_one, names[:few]))
        for gateway in gateways:
            await until_serving(gateway, few)
        began = time.monotonic()
        async with site.gateway() as fourth:
            await until_serving(fourth, few)
            joined_s = time.monotonic() - began
        await asyncio.gather(*map(put_one, names[few:]))
        for gateway in gateways:
            await until_serving(gateway, replicas)
        await asyncio.sleep(5)  # What each gateway sees is told every two seconds; then nothing is new.
        before, began = await _counters(etcd), time.monotonic()
        await asyncio.sleep(rest_s)
        after, took_s = await _counters(etcd), time.monotonic() - began
    a_second = {name: (after[name] - before[name]) / took_s for name in _COUNTERS}
    handled, messages, received, sent = a_second.values()
    return [
        Row(
            NAME, f"a fourth gateway joins, until {few} replicas serve there", f"< {_JOINED_S:g} s", "-",
            f"{joined_s:.1f} s", f"{joined_s:.1f} s", joined_s < _JOINED_S, {"joined_s": round(joined_s, 2)},
        ),
        Row(
            NAME, f"etcd at rest, 3 gateways, {replicas} replicas",
            f"< {_REQUESTS_S:g} requests/s, {_BYTES_S / 1000:g} KB/s", "-",
            f"{messages:.1f} requests/s, {received / 1000:.1f} KB/s in, {sent / 1000:.1f} KB/s out",
            f"{messages:.1f} requests/s",
            messages < _REQUESTS_S and received + sent < _BYTES_S,
            {"a_second": {name: round(value, 2) for name, value in a_second.items()}, "handled": round(handled, 2)},
        ),
    ]  # fmt: skip


async def run(scale: Scale) -> list[Row]:
    """30 PUTs, 1,000 replicas, 30 s of rest, 200 revocations, etcd away for 10 minutes, 6 kills; 6, 300, 10 s, 20, 30 s
    and 1 with `--quick`.
    """
    replicas, rest_s, away_s = scale.pick(1000, 300), scale.pick(30, 10), scale.pick(600, 30)
    return [
        await _with_etcd(lambda at, etcd, engines: _put_row(at, etcd, engines, scale.pick(30, 6))),
        *await _with_etcd(lambda at, etcd, engines: _crowd_rows(at, etcd, engines, replicas, rest_s)),
        await _with_etcd(lambda at, etcd, engines: revoked_row(at, etcd, engines, scale.pick(200, 20))),
        await killed_row(scale.pick(6, 1)),
        await _with_etcd(lambda at, etcd, engines: away_row(at, etcd, engines, away_s)),
    ]


async def _with_etcd(measure: Callable[[Path, Etcd, EngineHost], Awaitable[T]]) -> T:
    """With an etcd of its own, and engines."""
    etcd = Etcd()
    try:
        etcd.start()
        with scratch_directory() as directory:
            async with EngineHost(directory / "engines.log") as engines:
                return await measure(directory, etcd, engines)
    finally:
        etcd.close()
