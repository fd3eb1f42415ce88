"""Figure: the daemon at rest with 200 serving replicas.

CPU time of the daemon process alone (user and system, all threads, from /proc) over an interval that begins when all
replicas are serving and nothing is left to do, in percent of one core; its resident memory at the interval's end. Half
of the engines speak HTTP, half gRPC; they live in a process of their own. Nobody asks the daemon for anything
meanwhile. The interval is a multiple of the health questions' (10 s). There is no floor: nothing is the floor.
"""

from __future__ import annotations

import asyncio
import time

from bench import processes
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale
from bench.staged import show, stage

NAME = "at-rest"
_REPLICAS = 200
_MOST_CPU_PERCENT = 1.0
_MOST_RSS_MB = 100.0
_KINDS = [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC, EngineKind.VLLM_HTTP, EngineKind.SGLANG_GRPC]


async def run(scale: Scale) -> list[Row]:
    """30 s; 10 s with `--quick`."""
    interval_s = scale.pick(30, 10)
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            sockets = await stage(engines, directory / "staged", _KINDS * (_REPLICAS // len(_KINDS)))
            names = [f"r{number}" for number in range(_REPLICAS)]
            show(sockets, map(ours.socket, names))
            await ours.until_serving(*names)
            await _until_nothing_to_do(ours)
            cpu_percent, others = await _cpu_percent(ours, interval_s)
            rss_mb = processes.rss_mb(ours.pid)
    numbers = {
        "interval_s": interval_s,
        "cpu_percent": round(cpu_percent, 3),
        "rss_mb": round(rss_mb, 1),
        "nginx_cpu_percent": round(others[0], 3),
        "smg_cpu_percent": round(others[1], 3),
    }
    case = f"{_REPLICAS} replicas, {interval_s} s"
    return [
        Row(NAME, f"CPU, {case}", f"< {_MOST_CPU_PERCENT:g} %", "-", f"{cpu_percent:.2f} %", f"{cpu_percent:.2f} %",
            cpu_percent < _MOST_CPU_PERCENT, numbers),
        Row(NAME, f"memory, {case}", f"< {_MOST_RSS_MB:g} MB", "-", f"{rss_mb:.0f} MB", f"{rss_mb:.0f} MB",
            rss_mb < _MOST_RSS_MB, numbers),
    ]  # fmt: skip


async def _until_nothing_to_do(ours: Ours) -> None:
    async with asyncio.timeout(30):
        while True:
            async with ours.gateway.session.get("http://daemon/v1/plan") as answer:
                if not (await answer.json())["actions"]:
                    return
            await asyncio.sleep(0.1)


async def _cpu_percent(ours: Ours, interval_s: float) -> tuple[float, list[float]]:
    """The daemon's share of one core over the interval, and nginx's and the router's."""
    router = int((await ours.gateway.status())["services"][0]["router"]["pid"])
    groups = [[ours.pid], await ours.nginx_pids(), [router]]
    before, began = [processes.cpu_s(*pids) for pids in groups], time.monotonic()
    await asyncio.sleep(interval_s)
    took_s = time.monotonic() - began
    daemon, *others = [
        100 * (processes.cpu_s(*pids) - used) / took_s for pids, used in zip(groups, before, strict=True)
    ]
    return daemon, others
