"""Figure: socket unlinked -> worker draining in SMG.

From the instant before the unlink to the instant at which SMG, asked directly for that worker 1 ms after each answer,
no longer says ready. One at a time, out of a fleet of 40 simulated engines, half HTTP and half gRPC, which live on.

floor  From the instant before a DELETE to a bare SMG with as many workers, seen in the same way.
ours   The daemon sees the unlink and deregisters.

Out of a fleet of 1,000 it is the daemon that is judged: from the instant before the unlink to the first `status` that
says draining, or has it no more. `status` is asked 5 ms after each answer; its answers of 1 MB are part of the figure.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.bare import BareNginx, BareSmg, Workers, worker_body
from bench.chat import MODEL
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, replicas_of, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.staged import hide, show, stage

NAME = "unlinked"
_REPLICAS = 40
_MANY = 1000
_P99_S = 0.100


async def _until_not_ready(workers: Workers, worker: str) -> float:
    """The monotonic instant at which SMG is seen not to call a worker ready any more."""
    async with asyncio.timeout(10):
        while await workers.status(worker) == "ready":
            await asyncio.sleep(0.001)
        return time.monotonic()


async def _floor(smg: BareSmg, ports: range, kinds: list[EngineKind]) -> list[float]:
    """Every worker of a bare SMG deleted, one at a time; seconds each."""
    added = [await smg.workers.add(worker_body(port, kind, MODEL)) for port, kind in zip(ports, kinds, strict=True)]
    await smg.workers.until_ready(len(ports))
    times = []
    for worker in added:
        began = time.monotonic()
        await smg.workers.delete(worker)
        times.append(await _until_not_ready(smg.workers, worker) - began)
    await smg.workers.until_ready(0)
    return times


async def _ours(ours: Ours, sockets: list[Path], round_name: str) -> list[float]:
    """Every socket unlinked, one at a time; seconds each."""
    names = [f"{round_name}-{number}" for number in range(len(sockets))]
    show(sockets, map(ours.socket, names))
    await ours.until_serving(*names)
    rows = replicas_of(await ours.gateway.status())
    times = []
    for name in names:
        began = time.monotonic()
        hide([ours.socket(name)])
        times.append(await _until_not_ready(ours.workers, rows[name]["worker_id"]) - began)
    await ours.until_serving()
    return times


async def run(scale: Scale) -> list[Row]:
    """3 rounds of 40, and 50 out of 1,000; with `--quick` one round of 40."""
    rows = [await _against_floor(scale.pick(3, 1))]
    return rows if scale.quick else [*rows, await _of_many(50)]


async def _of_many(times: int) -> Row:
    """How soon the daemon says of one out of many that it drains."""
    kinds = [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC] * (_MANY // 2)
    took = []
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway(bridges=_MANY + 100) as ours:
            sockets = await stage(engines, directory / "staged", kinds)
            names = [f"r{number}" for number in range(_MANY)]
            show(sockets, map(ours.socket, names))
            await ours.until_serving(*names, within_s=180)
            for name in names[:times]:
                began = time.monotonic()
                hide([ours.socket(name)])
                took.append(await _until_draining(ours, name) - began)
                await asyncio.sleep(0.2)
    p99 = percentile(took, 99)
    return Row(
        NAME, f"{times} out of {_MANY}, until `status` says draining", f"p99 < {in_ms(_P99_S)}", "-",
        f"p50 {in_ms(median(took))}, p99 {in_ms(p99)}", f"p99 {in_ms(p99)}", p99 < _P99_S,
        {"runs": times, "p99_ms": round(p99 * 1000, 3), "ours_ms": rounded_ms(took)},
    )  # fmt: skip


async def _until_draining(ours: Ours, replica: str) -> float:
    """The monotonic instant at which the daemon says it, asked 5 ms after each answer."""
    async with asyncio.timeout(10):
        while replicas_of(await ours.gateway.status()).get(replica, {"state": "draining"})["state"] != "draining":
            await asyncio.sleep(0.005)
        return time.monotonic()


async def _against_floor(rounds: int) -> Row:
    floors: list[float] = []
    times: list[float] = []
    kinds = [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC] * (_REPLICAS // 2)
    with scratch_directory() as directory:
        first = free_ports(_REPLICAS)
        ports = range(first, first + _REPLICAS)
        async with EngineHost(directory / "engines.log") as engines:
            sockets = await stage(engines, directory / "staged", kinds)
            async with (
                BareSmg(directory) as smg,
                BareNginx(directory, dict(zip(ports, sockets, strict=True))),
                running_gateway(settle_s=0) as ours,
            ):
                for number in range(rounds):
                    floors += await _floor(smg, ports, kinds)
                    times += await _ours(ours, sockets, f"round{number}")
    p99 = percentile(times, 99)
    return Row(
        NAME,
        f"{len(times)} sockets, one at a time",
        f"p99 < {in_ms(_P99_S)}",
        f"p50 {in_ms(median(floors))}, p99 {in_ms(percentile(floors, 99))}",
        f"p50 {in_ms(median(times))}, p99 {in_ms(p99)}",
        f"p99 {in_ms(p99)}",
        p99 < _P99_S,
        {"runs": len(times), "p99_ms": round(p99 * 1000, 3), "floor_ms": rounded_ms(floors),
         "ours_ms": rounded_ms(times)},
    )  # fmt: skip
