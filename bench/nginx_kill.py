"""Figures: nginx is killed (SIGKILL) until the service address serves again.

Eight replicas. From the SIGKILL to the first 200 through the service address; one client asks again and again, on a new
connection each time. The master's workers live on when it alone is killed, and the daemon ends them: what
they still answer meanwhile does not count, only what is asked once another nginx runs.

floor   From the launch of a plain nginx with as many listening ports, one `server` each, to its first accepted
        connection.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from bench import processes
from bench.bare import BareNginx
from bench.chat import MODEL, PATH, chat
from bench.engines import EngineHost, EngineKind, settings
from bench.fatal import kill
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import ExchangeFailed

NAME = "nginx-kill"
_REPLICAS = 8
_BRIDGES = 400
KILL_BAR_S = 2.0


async def plain_start(directory: Path) -> float:
    """A plain nginx until it accepts; seconds."""
    first = free_ports(_BRIDGES)
    began = time.monotonic()
    async with BareNginx(directory, dict.fromkeys(range(first, first + _BRIDGES), directory / "nobody.sock")):
        return time.monotonic() - began


async def kill_nginx(ours: Ours, *, workers_too: bool) -> float:
    """nginx killed until another one serves; seconds."""
    master = int((await ours.gateway.status())["nginx"]["pid"])
    killed = await kill(master, *(processes.children(master) if workers_too else ()))
    async with asyncio.timeout(30):
        while True:
            bridge = (await ours.gateway.status())["nginx"]
            if bridge["state"] == "up" and bridge["pid"] != master:
                with suppress(ExchangeFailed):
                    async with ours.client() as client:
                        if (await client.ask("POST", PATH, chat())).status == 200:
                            return time.monotonic() - killed.at
            await asyncio.sleep(0.005)


async def run(scale: Scale) -> list[Row]:
    """8 rounds of each case; 3 with `--quick`."""
    rounds = scale.pick(8, 3)
    names = [f"r{number}" for number in range(_REPLICAS)]
    rows = []
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway(bridges=_BRIDGES) as ours:
            await engines.start(
                *[settings(ours.socket(name), EngineKind.SGLANG_HTTP, name=name, model=MODEL) for name in names]
            )
            await ours.until_serving(*names)
            for workers_too in (False, True):
                floors, times = [], []
                for _ in range(rounds):
                    floors.append(await plain_start(directory))
                    times.append(await kill_nginx(ours, workers_too=workers_too))
                rows.append(_row(workers_too, floors, times))
    return rows


def _row(workers_too: bool, floors: list[float], times: list[float]) -> Row:
    worst = percentile(times, 99)
    return Row(
        NAME,
        "master and workers" if workers_too else "master only, its workers live on",
        f"p99 < {KILL_BAR_S:g} s",
        in_ms(median(floors)),
        f"p50 {in_ms(median(times))}, p99 {in_ms(worst)}",
        f"p99 {in_ms(worst)}",
        worst < KILL_BAR_S,
        {"rounds": len(times), "floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times)},
    )
