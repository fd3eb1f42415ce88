"""Figure: what the live page costs the daemon for each viewer.

200 replicas serve, and a thread of the daemon's process logs 50 events a second (`noisy_gateway.py`). CPU of that
process alone (user, system, all threads, from /proc) in intervals with no viewer, with one and with 16, in turn, so
that what else the machine does meets all of them alike. A viewer reads the stream as the page does. What it costs is
the difference to no viewer; of 16, a sixteenth of that. That the viewers were told of so many events is checked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bench import processes
from bench.engines import EngineHost, EngineKind
from bench.gateway import Ours, running_gateway
from bench.noisy_gateway import EVENTS_A_SECOND
from bench.place import scratch_directory
from bench.report import Row, Scale
from bench.staged import show, stage
from gateway_sidecar.api.page_feed import MOST_VIEWERS

NAME = "page"
_MOST_PERCENT = 1.0
_REPLICAS = 200
_INTERVAL_S = 5.0
_VIEWERS = (0, 1, MOST_VIEWERS)


class _Viewer:
    """One open page: how many bytes and events it was told."""

    def __init__(self) -> None:
        self.bytes = self.events = 0

    async def look(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url) as answer:
            async for line in answer.content:
                self.bytes += len(line)
                if line.startswith(b'data: {"events"'):
                    self.events += len(json.loads(line[6:])["events"])


async def run(scale: Scale) -> list[Row]:
    """12 rounds; 3 with `--quick`."""
    used: dict[int, float] = defaultdict(float)
    took: dict[int, float] = defaultdict(float)
    told: list[_Viewer] = []
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(bridges=_REPLICAS + 100, module="bench.noisy_gateway") as ours,
        ):
            sockets = await stage(engines, directory / "staged", [EngineKind.SGLANG_HTTP] * _REPLICAS)
            names = [f"r{number}" for number in range(_REPLICAS)]
            show(sockets, map(ours.socket, names))
            await ours.until_serving(*names, within_s=180)
            for _ in range(scale.pick(12, 3)):
                for viewers in _VIEWERS:
                    async with _looking(ours, viewers) as looking:
                        before, began = processes.cpu_s(ours.pid), time.monotonic()
                        await asyncio.sleep(_INTERVAL_S)
                        used[viewers] += processes.cpu_s(ours.pid) - before
                        took[viewers] += time.monotonic() - began
                        told += looking
    percent = {viewers: 100 * used[viewers] / took[viewers] for viewers in _VIEWERS}
    rates = [viewer.events / _INTERVAL_S for viewer in told]
    if min(rates) < 0.8 * EVENTS_A_SECOND:
        return [Row.not_measured(NAME, f"a viewer was told {min(rates):.0f} events/s, not {EVENTS_A_SECOND}")]
    rows = []
    for viewers in _VIEWERS[1:]:
        each = (percent[viewers] - percent[0]) / viewers
        numbers: dict[str, Any] = {
            "cpu_percent": {str(key): round(value, 3) for key, value in percent.items()},
            "events_per_s": round(sum(rates) / len(rates), 1),
            "bytes_per_s": round(sum(viewer.bytes for viewer in told) / len(told) / _INTERVAL_S),
        }
        rows.append(
            Row(NAME, f"CPU of the daemon for each of {viewers}, {_REPLICAS} replicas, {EVENTS_A_SECOND} events/s",
                f"< {_MOST_PERCENT:g} %", f"{percent[0]:.2f} % without", f"{percent[viewers]:.2f} %", f"{each:.2f} %",
                each < _MOST_PERCENT, numbers)
        )  # fmt: skip
    return rows


@asynccontextmanager
async def _looking(ours: Ours, viewers: int) -> AsyncIterator[list[_Viewer]]:
    """So many pages are open; what they were told counts from then on."""
    url = f"http://127.0.0.1:{ours.gateway.metrics_port}/page/stream"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(), read_bufsize=1 << 20) as it:
        looking = [_Viewer() for _ in range(viewers)]
        tasks = [asyncio.create_task(viewer.look(it, url)) for viewer in looking]
        async with asyncio.timeout(30):
            while any(viewer.events == 0 for viewer in looking):
                await asyncio.sleep(0.05)
        for viewer in looking:
            viewer.bytes = viewer.events = 0
        yield looking
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
