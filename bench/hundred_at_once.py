"""Figure: 100, 400 and 1,000 ready sockets at once -> all serving, and the daemon's CPU for each of them.

The same simulated engines, in a process of their own, serve both; floor and ours alternate. With 1,000 only the CPU is
judged, against that of 100 in the same run: a crowd's replica may not cost much more than one of a few.

floor  From the first of 100 POSTs, all sent at once, to the instant at which a bare SMG lists 100 workers as ready. The
       engines are reached over a plain nginx stream proxy with a port for each.
ours   From the first of 100 sockets' coming into view to the instant at which the daemon's SMG lists 100 workers as
       ready (asked in the same way as the floor) and the daemon says that all of them are serving.
CPU    Of the daemon alone, from the first socket's coming into view until all are serving, `status` answered every
       30 ms included.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench import processes
from bench.bare import BareNginx, BareSmg, worker_body
from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, rounded_ms
from bench.staged import hide, show, stage

NAME = "hundred-at-once"
_FEW, _SOME, _MANY = 100, 400, 1000
_MOST_RATIO = {_FEW: 1.5, _SOME: 1.2}
_MOST_CPU_MS = {EngineKind.SGLANG_HTTP: 1.2, EngineKind.VLLM_GRPC: 2.5}
"""Of the daemon, for each of 100 replicas."""
_MOST_GROWTH = 1.3
"""From 100 replicas to 1,000, for each of them."""


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


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds until SMG lists all as ready, seconds until the daemon says so, and its CPU for each in ms."""

    listed_s: float
    took_s: float
    cpu_ms: float


async def _ours(ours: Ours, sockets: list[Path], round_name: str) -> _Round:
    names = [f"{round_name}-{number}" for number in range(len(sockets))]
    used_s, began = processes.cpu_s(ours.pid), time.monotonic()
    show(sockets, map(ours.socket, names))
    await ours.workers.until_ready(len(sockets), within_s=180)
    listed_s = time.monotonic() - began
    await ours.until_serving(*names, within_s=180)
    took_s = time.monotonic() - began
    cpu_ms = 1000 * (processes.cpu_s(ours.pid) - used_s) / len(sockets)
    hide(map(ours.socket, names))
    await ours.until_serving(within_s=180)
    return _Round(listed_s, took_s, cpu_ms)


async def run(scale: Scale) -> list[Row]:
    """5 rounds of 100, 2 of 400 and one of 1,000 of each kind; with `--quick` 2 of 100."""
    rows: list[Row] = []
    for kind, most_cpu_ms in _MOST_CPU_MS.items():
        timed, few_ms = await _against_floor(kind, _FEW, scale.pick(5, 2))
        rows += [timed, _cpu_row(kind, _FEW, few_ms, most_cpu_ms)]
        if not scale.quick:
            timed, _ = await _against_floor(kind, _SOME, 2)
            rows += [timed, _cpu_row(kind, _MANY, await _crowd(kind, _MANY), _MOST_GROWTH * few_ms)]
    return rows


def _cpu_row(kind: EngineKind, replicas: int, cpu_ms: float, most_ms: float) -> Row:
    numbers = {"replicas": replicas, "cpu_ms_each": round(cpu_ms, 3), "most_ms": round(most_ms, 3)}
    return Row(
        NAME, f"{kind}, {replicas}: CPU of the daemon each", f"<= {most_ms:.2f} ms", "-",
        f"{cpu_ms:.2f} ms", f"{cpu_ms:.2f} ms", cpu_ms <= most_ms, numbers,
    )  # fmt: skip


async def _crowd(kind: EngineKind, replicas: int) -> float:
    """The daemon's CPU for each of a crowd, in ms."""
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway(bridges=replicas + 100) as ours:
            sockets = await stage(engines, directory / "staged", [kind] * replicas)
            return (await _ours(ours, sockets, "crowd")).cpu_ms


async def _against_floor(kind: EngineKind, replicas: int, rounds: int) -> tuple[Row, float]:
    """How the time compares, and the daemon's CPU for each replica in ms."""
    floors: list[float] = []
    measured: list[_Round] = []
    with scratch_directory() as directory:
        # Ports of its own for each round, as the daemon's replicas have: no connection is there from the round before.
        first = free_ports(rounds * replicas)
        ports = [range(start, start + replicas) for start in range(first, first + rounds * replicas, replicas)]
        async with EngineHost(directory / "engines.log") as engines:
            sockets = await stage(engines, directory / "staged", [kind] * replicas)
            async with (
                BareSmg(directory) as smg,
                BareNginx(directory, {port: path for each in ports for port, path in zip(each, sockets, strict=True)}),
                running_gateway(bridges=max(400, rounds * replicas), settle_s=0) as ours,
            ):
                for number in range(rounds):
                    floors.append(await _floor(smg, ports[number], kind))
                    measured.append(await _ours(ours, sockets, f"round{number}"))
    times, cpu_ms = [it.took_s for it in measured], median([it.cpu_ms for it in measured])
    ratio, most = median(times) / median(floors), _MOST_RATIO[replicas]
    row = Row(
        NAME,
        f"{kind}, {replicas}",
        f"<= {most:g} x floor",
        in_ms(median(floors)),
        in_ms(median(times)),
        f"{ratio:.2f} x",
        ratio <= most,
        {"rounds": rounds, "ratio": round(ratio, 3), "floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times),
         "ours_ready_in_smg_ms": rounded_ms([it.listed_s for it in measured]),
         "cpu_ms_each": [round(it.cpu_ms, 3) for it in measured]},
    )  # fmt: skip
    return row, cpu_ms
