"""Figures: several gateways that share a real etcd.

put    From a PUT at one gateway to the first 200 through another; the engine listens already. Both have an SMG. One
       client asks the other gateway again and again.
floor  What etcd alone takes from a put to its watcher, and a bare SMG from being given the worker to its first 200.
join   From the start of a fourth gateway's daemon, which knows nothing, until 200 replicas serve there.
rest   What three gateways ask of etcd while nothing changes, by etcd's own counters.

The last two have no router, and all gateways the same bridge ports on addresses of their own, as on machines of theirs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from bench.bare import BareNginx, BareSmg, worker_body
from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind, settings
from bench.place import BASE, scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection
from gateway_sidecar.domain.metrics_text import samples
from tests.etcd import Etcd
from tests.system.gateway import Gateway, states_of

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


class _Site:
    """An etcd, and gateways that share it."""

    def __init__(self, etcd: Etcd, bridges: int, router: str) -> None:
        self._etcd = etcd
        first = free_ports(bridges)
        self._bridges = f"{first}-{first + bridges - 1}"
        self._router = router
        self._started = 0

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        """One more that runs."""
        self._started += 1
        hosts = {"host": f"127.0.{self._started}.1", "grpc_host": f"127.0.{self._started}.2"}
        gateway = Gateway(
            base=BASE,
            log={"format": "json", "level": "info"},
            bridges={"ports": self._bridges, "nginx_workers": 1, **hosts},
            store={"gateway": f"gw-{self._started}", "etcd": {"endpoints": [self._etcd.endpoint]}},
        )
        gateway.settings["services"][0] |= {"replicas": {}, "router": {"type": self._router}}
        try:
            await gateway.start()
            yield gateway
        finally:
            await gateway.close()

    async def counters(self) -> dict[str, float]:
        """etcd's own, summed over their labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._etcd.endpoint}/metrics") as answer:
            found = dict.fromkeys(_COUNTERS, 0.0)
            for name, _, value in samples(await answer.read(), _COUNTERS):
                found[name] += value
            return found


async def _put(gateway: Gateway, replica: str, socket: Path) -> None:
    url = f"http://daemon/v1/services/chat/replicas/{replica}"
    async with gateway.session.put(url, json={"socket": str(socket)}) as answer:
        if answer.status != 201:
            raise RuntimeError(f"PUT of {replica}: {answer.status} {await answer.text()}")


async def _delete(gateway: Gateway, replica: str) -> None:
    async with gateway.session.delete(f"http://daemon/v1/services/chat/replicas/{replica}") as answer:
        await answer.read()


async def _until_serving(gateway: Gateway, replicas: int, *, within_s: float = 120.0) -> None:
    await gateway.until(lambda status: list(states_of(status).values()) == ["serving"] * replicas, within_s=within_s)


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
    site, first = _Site(etcd, 400, "smg"), free_ports(runs)
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
                await _put(near, f"r{number}", socket)
                times.append(await answered - began)
            await _delete(near, f"r{number}")
            for gateway in (near, far):
                await _until_serving(gateway, 0)
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
    site, few = _Site(etcd, 2 * replicas + 400, "none"), min(200, replicas)
    names = [f"r{number}" for number in range(replicas)]
    sockets = {name: directory / f"{name}.sock" for name in names}
    await engines.start(*(settings(sockets[name], EngineKind.SGLANG_HTTP, name=name, model=MODEL) for name in names))
    slots = asyncio.Semaphore(_AT_ONCE)

    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(site.gateway()) for _ in range(3)]

        async def put(name: str) -> None:
            async with slots:
                await _put(gateways[0], name, sockets[name])

        await asyncio.gather(*map(put, names[:few]))
        for gateway in gateways:
            await _until_serving(gateway, few)
        began = time.monotonic()
        async with site.gateway() as fourth:
            await _until_serving(fourth, few)
            joined_s = time.monotonic() - began
        await asyncio.gather(*map(put, names[few:]))
        for gateway in gateways:
            await _until_serving(gateway, replicas)
        await asyncio.sleep(5)  # What each gateway sees is told every two seconds; then nothing is new.
        before, began = await site.counters(), time.monotonic()
        await asyncio.sleep(rest_s)
        after, took_s = await site.counters(), time.monotonic() - began
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
    """30 PUTs, 1,000 replicas, 30 s of rest; 6, 300 and 10 with `--quick`."""
    etcd = Etcd()
    try:
        etcd.start()
        with scratch_directory() as directory:
            async with EngineHost(directory / "engines.log") as engines:
                row = await _put_row(directory, etcd, engines, scale.pick(30, 6))
        etcd.close()
        etcd = Etcd()
        etcd.start()
        with scratch_directory() as directory:
            async with EngineHost(directory / "engines.log") as engines:
                crowd = await _crowd_rows(directory, etcd, engines, scale.pick(1000, 300), scale.pick(30, 10))
        return [row, *crowd]
    finally:
        etcd.close()
