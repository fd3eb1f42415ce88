"""Figure: 100 ready sockets at once -> all serving.

The same 100 simulated SGLang engines, in a process of their own, serve both; floor and ours alternate.

floor  From the first of 100 POSTs, all sent at once, to the instant at which a bare SMG lists 100 workers as ready. The
       engines are reached over a plain nginx stream proxy with a port for each.
ours   From the first of 100 sockets' coming into view to the instant at which the daemon's SMG lists 100 workers as
       ready (asked in the same way as the floor) and the daemon says that all of them are serving.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from bench.bare import BareNginx, BareSmg, worker_body
from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, rounded_ms
from bench.staged import hide, show, stage

NAME = "hundred-at-once"
_REPLICAS = 100
_MOST_RATIO = 1.5
_KINDS = (EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC)


async def _floor(smg: BareSmg, ports: range, kind: EngineKind) -> float:
    """100 POSTs at once until all are ready; seconds."""
    headers = {"Authorization": f"Bearer {smg.key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(port: int) -> str:
            body = worker_body(port, kind, MODEL)
            async with session.post(f"{smg.ports.url}/workers", json=body) as answer:
                return str((await answer.json())["worker_id"])

        began = time.monotonic()
        workers = await asyncio.gather(*map(post, ports))
        await smg.workers.until_ready(len(ports))
        took_s = time.monotonic() - began
    for worker in workers:
        await smg.workers.delete(worker)
    await smg.workers.until_ready(0)
    return took_s


async def _ours(ours: Ours, sockets: list[Path], round_name: str) -> tuple[float, float]:
    """100 sockets at once until SMG lists all as ready, and until the daemon says so; seconds."""
    names = [f"{round_name}-{number}" for number in range(len(sockets))]
    began = time.monotonic()
    show(sockets, map(ours.socket, names))
    await ours.workers.until_ready(len(sockets))
    listed_s = time.monotonic() - began
    await ours.until_serving(*names)
    took_s = time.monotonic() - began
    hide(map(ours.socket, names))
    await ours.until_serving()
    return listed_s, took_s


async def run(scale: Scale) -> list[Row]:
    """5 rounds of each kind; 2 with `--quick`."""
    return [await _measured(kind, scale.pick(5, 2)) for kind in _KINDS]


async def _measured(kind: EngineKind, rounds: int) -> Row:
    floors, listed, times = [], [], []
    with scratch_directory() as directory:
        # Ports of its own for each round, as the daemon's replicas have: no connection is there from the round before.
        first = free_ports(rounds * _REPLICAS)
        ports = [range(start, start + _REPLICAS) for start in range(first, first + rounds * _REPLICAS, _REPLICAS)]
        async with EngineHost(directory / "engines.log") as engines:
            sockets = await stage(engines, directory / "staged", [kind] * _REPLICAS)
            async with (
                BareSmg(directory) as smg,
                BareNginx(directory, {port: path for each in ports for port, path in zip(each, sockets, strict=True)}),
                running_gateway(settle_s=0) as ours,
            ):
                for number in range(rounds):
                    floors.append(await _floor(smg, ports[number], kind))
                    listed_s, took_s = await _ours(ours, sockets, f"round{number}")
                    listed.append(listed_s)
                    times.append(took_s)
    ratio = median(times) / median(floors)
    return Row(
        NAME,
        str(kind),
        f"<= {_MOST_RATIO:g} x floor",
        in_ms(median(floors)),
        in_ms(median(times)),
        f"{ratio:.2f} x",
        ratio <= _MOST_RATIO,
        {"rounds": rounds, "ratio": round(ratio, 3), "floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times),
         "ours_ready_in_smg_ms": rounded_ms(listed)},
    )  # fmt: skip
