"""Figure: the daemon at rest with 0, 200 and 1,000 serving replicas.

CPU time of the daemon process alone (user and system, all threads, from /proc) over an interval that begins when all
replicas are serving and nothing is left to do, in percent of one core; with 200 its resident memory at the interval's
end. The engines live in a process of their own. Nobody asks the daemon for anything meanwhile. The interval is a
multiple of the health questions' (10 s). There is no floor: nothing is the floor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import processes
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale
from bench.staged import show, stage

NAME = "at-rest"
_MOST_RSS_MB = 100.0
_MIXED = (EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC, EngineKind.VLLM_HTTP, EngineKind.SGLANG_GRPC)


@dataclass(frozen=True, slots=True)
class _Case:
    """So many replicas, of these kinds in turn, and the bar for the daemon's CPU in percent of one core."""

    replicas: int
    speak: str
    kinds: Sequence[EngineKind]
    most_cpu_percent: float
    is_memory_judged: bool = False


_CASES = (
    _Case(0, "", _MIXED, 0.2),
    _Case(200, ", half HTTP and half gRPC", _MIXED, 0.6, is_memory_judged=True),
    _Case(1000, ", HTTP", _MIXED[::2], 2.0),
    _Case(1000, ", gRPC", _MIXED[1::2], 2.0),
)


async def run(scale: Scale) -> list[Row]:
    """30 s each; 10 s with `--quick`."""
    return [row for case in _CASES for row in await _measured(case, scale.pick(30, 10))]


async def _measured(case: _Case, interval_s: int) -> list[Row]:
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(bridges=case.replicas + 100) as ours,
        ):
            kinds = [case.kinds[number % len(case.kinds)] for number in range(case.replicas)]
            sockets = await stage(engines, directory / "staged", kinds)
            names = [f"r{number}" for number in range(case.replicas)]
            show(sockets, map(ours.socket, names))
            await ours.until_serving(*names, within_s=180)
            await _until_nothing_to_do(ours)
            cpu_percent, others = await _cpu_percent(ours, interval_s)
            rss_mb = processes.rss_mb(ours.pid)
    numbers = {
        "replicas": case.replicas,
        "interval_s": interval_s,
        "cpu_percent": round(cpu_percent, 3),
        "rss_mb": round(rss_mb, 1),
        "nginx_cpu_percent": round(others[0], 3),
        "smg_cpu_percent": round(others[1], 3),
    }
    name = f"{case.replicas} replicas{case.speak}, {interval_s} s"
    rows = [
        Row(NAME, f"CPU, {name}", f"< {case.most_cpu_percent:g} %", "-", f"{cpu_percent:.2f} %", f"{cpu_percent:.2f} %",
            cpu_percent < case.most_cpu_percent, numbers),
    ]  # fmt: skip
    if case.is_memory_judged:
        rows.append(
            Row(NAME, f"memory, {name}", f"< {_MOST_RSS_MB:g} MB", "-", f"{rss_mb:.0f} MB", f"{rss_mb:.0f} MB",
                rss_mb < _MOST_RSS_MB, numbers)
        )  # fmt: skip
    return rows


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
