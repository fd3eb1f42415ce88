"""Figures: the router is killed (SIGKILL) with 64 workers.

The same 64 simulated SGLang engines, in a process of their own, serve both; floor and ours alternate.

floor   From the launch of a bare SMG, with the very options that the daemon gives it, through its first answer and 64
        POSTs, all sent at once, to the instant at which it lists 64 workers as ready. The engines are reached over a
        plain nginx stream proxy with a port for each.
ours    From the SIGKILL to the instant at which the daemon's next SMG lists 64 workers as ready, asked in the same way.
        Its detection of the death, its launch and all registrations are in it.
again   From the same SIGKILL to the first 200 through the service address; one client asks again and again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import aiohttp

from bench.bare import BareNginx, BareSmg, Workers, worker_body
from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind
from bench.fatal import kill
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.staged import show, stage
from bench.wire import ExchangeFailed

NAME = "router-kill"
_WORKERS = 64
_MOST_RATIO = 1.5
_AGAIN_S = 2.0
_KIND = EngineKind.SGLANG_HTTP


async def _floor(directory: Path, ports: range) -> float:
    """A bare SMG from its launch to 64 ready workers; seconds."""
    began = time.monotonic()
    async with BareSmg(directory) as smg:
        headers = {"Authorization": f"Bearer {smg.key}"}
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def post(port: int) -> None:
                body = worker_body(port, _KIND, MODEL)
                async with session.post(f"{smg.ports.url}/workers", json=body) as answer:
                    answer.raise_for_status()

            await asyncio.gather(*map(post, ports))
            await smg.workers.until_ready(len(ports))
        return time.monotonic() - began


async def _ours(ours: Ours) -> tuple[float, float]:
    """The router killed: seconds until the first 200, and until its successor lists 64 ready workers."""
    pid = await ours.router_pid()
    assert pid is not None
    async with ours.client() as client:
        killed = await kill(pid)
        answered = asyncio.create_task(first_200(client))
        workers = await ours.other_router(pid)
        try:
            await _until_listed(workers)
        finally:
            workers.close()
        ready_s = time.monotonic() - killed.at
        again_s = await answered - killed.at
    return again_s, ready_s


async def _until_listed(workers: Workers) -> None:
    """Returns when 64 are ready; a router that does not listen yet is asked again."""
    async with asyncio.timeout(30):
        while True:
            with suppress(ExchangeFailed):
                await workers.until_ready(_WORKERS)
                return
            await asyncio.sleep(0.02)


async def run(scale: Scale) -> list[Row]:
    """10 rounds; 3 with `--quick`."""
    rounds = scale.pick(10, 3)
    names = [f"r{number}" for number in range(_WORKERS)]
    floors, again, times = [], [], []
    with scratch_directory() as directory:
        first = free_ports(_WORKERS)
        async with EngineHost(directory / "engines.log") as engines:
            sockets = await stage(engines, directory / "staged", [_KIND] * _WORKERS)
            bridges = dict(zip(range(first, first + _WORKERS), sockets, strict=True))
            async with BareNginx(directory, bridges), running_gateway() as ours:
                show(sockets, map(ours.socket, names))
                await ours.until_serving(*names)
                for _ in range(rounds):
                    floors.append(await _floor(directory, range(first, first + _WORKERS)))
                    again_s, ready_s = await _ours(ours)
                    again.append(again_s)
                    times.append(ready_s)
                    await ours.until_serving(*names)
    ratio = median(times) / median(floors)
    return [
        Row(NAME, f"{_WORKERS} workers ready again", f"<= {_MOST_RATIO:g} x floor", in_ms(median(floors)),
            in_ms(median(times)), f"{ratio:.2f} x", ratio <= _MOST_RATIO,
            {"rounds": rounds, "ratio": round(ratio, 3), "floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times)}),
        Row(NAME, "serving again", f"p99 < {_AGAIN_S:g} s", "-",
            f"p50 {in_ms(median(again))}, p99 {in_ms(percentile(again, 99))}", f"p99 {in_ms(percentile(again, 99))}",
            percentile(again, 99) < _AGAIN_S, {"again_ms": rounded_ms(again)}),
    ]  # fmt: skip
