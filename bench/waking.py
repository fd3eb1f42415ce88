"""Figure: 1,000 requests wait for a first replica, and go on when it serves.

A service without a replica. 1,000 clients send a chat each and wait; then a tiny nginx, which answers `{}`, appears as
the first replica. Each round has a gateway of its own.

memory      Resident memory of the daemon, and of nginx's worker, with all of them waiting, less what it was before.
answered    Answers of 200.
on the way  From the daemon's log event `replica.serving` to the moment at which a request reaches the replica, by that
            nginx's own clock: the first, and the last one. The bar is for the first; the rest follow as fast as nginx
            and SMG take them: `floor` is how long the same clients take for as many requests with the replica there.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.bridge_cost import upstream
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median
from bench.wire import Connection
from tests.system.gateway import service_of

NAME = "waking"
_WAITING = 1000
_FIRST_S = 0.05
_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 1000}]}


@dataclass(frozen=True, slots=True)
class _Round:
    """Bytes in MB; times in seconds from `replica.serving`, or, for the floor, from the first request."""

    daemon_mb: float
    nginx_mb: float
    answered: int
    first_s: float
    last_s: float
    floor_s: float


async def run(scale: Scale) -> list[Row]:
    """Four rounds; two with `--quick`."""
    rounds = [await _round() for _ in range(scale.pick(4, 2))]
    daemon = median([each.daemon_mb for each in rounds])
    nginx = median([each.nginx_mb for each in rounds])
    fewest = min(each.answered for each in rounds)
    firsts, lasts = [each.first_s for each in rounds], [each.last_s for each in rounds]
    floors = [each.floor_s for each in rounds]
    numbers = {"daemon_mb": [round(each.daemon_mb, 1) for each in rounds],
               "nginx_mb": [round(each.nginx_mb, 1) for each in rounds],
               "answered": [each.answered for each in rounds],
               "first_ms": [round(each * 1000, 1) for each in firsts],
               "last_ms": [round(each * 1000, 1) for each in lasts],
               "floor_ms": [round(each * 1000, 1) for each in floors]}  # fmt: skip
    return [
        Row(NAME, f"memory of {_WAITING:,} waiting requests", "none", "-", f"daemon {daemon:.1f} MB",
            f"nginx {nginx:.1f} MB", True, numbers),
        Row(NAME, f"answered of {_WAITING:,}", "all", "-", f"{fewest:,}", f"{_WAITING - fewest} lost",
            fewest == _WAITING, numbers),
        Row(NAME, "serving, to the first one on its way", f"< {in_ms(_FIRST_S)}", "-", f"p50 {in_ms(median(firsts))}",
            f"worst {in_ms(max(firsts))}", max(firsts) < _FIRST_S, numbers),
        Row(NAME, "serving, to the last one on its way", "none", in_ms(median(floors)), in_ms(median(lasts)),
            f"{median(lasts) / median(floors):.2f} x", True, numbers),
    ]  # fmt: skip


async def _round() -> _Round:
    with scratch_directory() as directory:
        arrivals = directory / "arrivals.log"
        async with running_gateway(nginx_workers=1, hold={"max_waiting": _WAITING, "asleep_s": 120}) as ours:
            await _until_waiting(ours, 0)
            worker = (await ours.nginx_pids())[1]
            before = processes.rss_mb(ours.pid), processes.rss_mb(worker)
            clients = [ours.client() for _ in range(_WAITING)]
            asking = [asyncio.create_task(_ask(client)) for client in clients]
            try:
                await _until_waiting(ours, _WAITING)
                daemon_mb, nginx_mb = processes.rss_mb(ours.pid) - before[0], processes.rss_mb(worker) - before[1]
                async with upstream(directory / "up", ours.socket("r1"), arrivals=arrivals):
                    answered = (await asyncio.gather(*asking)).count(200)
                    served_at = _served_at(ours)
                    came = _came(arrivals)
                    began = time.time()
                    await asyncio.gather(*[_ask(client) for client in clients])
                    floor_s = max(_came(arrivals)) - began
            finally:
                for task in asking:
                    task.cancel()
                for client in clients:
                    client.close()
    return _Round(daemon_mb, nginx_mb, answered, min(came) - served_at, max(came) - served_at, floor_s)


async def _ask(client: Connection) -> int:
    return (await client.ask("POST", "/v1/chat/completions", _CHAT)).status


async def _until_waiting(ours: Ours, count: int) -> None:
    async with asyncio.timeout(60):
        while True:
            service = service_of(await ours.gateway.status())
            if service["missing"] == "replica" and service["waiting"] == count:
                return
            await asyncio.sleep(0.05)


def _served_at(ours: Ours) -> float:
    (event,) = ours.gateway.events("replica.serving")
    return datetime.datetime.fromisoformat(event["timestamp"]).timestamp()


def _came(arrivals: Path) -> list[float]:
    """When each chat reached the replica."""
    rows = [line.split() for line in arrivals.read_text().splitlines()]
    return [float(at) for method, at in rows if method == "POST"]
