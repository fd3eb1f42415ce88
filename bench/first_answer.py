"""Figure: engine starts listening -> first 200 through the service address, one replica at a time.

Both are measured from the instant at which the simulated engine, in a process of its own, listens, to the instant at
which a client that asks again and again (2 ms after each other answer, over one kept connection) has its first 200.

floor  A script POSTs the worker to a bare SMG at that instant; the client asks that SMG. The engine is reached over a
       plain nginx stream proxy.
ours   Nobody tells the daemon anything: it sees the socket, bridges, probes and registers. The client asks the service
       address.

Two ways of beginning: the socket file appears and listens at once; or it is there first and listens after 0.1 to 0.5 s
(spread, so as not to fall in step with the daemon's own tries). HTTP and gRPC. Floor and ours alternate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

from bench.bare import BareNginx, BareSmg, worker_body
from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind, settings
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection

NAME = "first-answer"
_P50_OVER_FLOOR_S = 0.060
_P99_S = 0.300
_CASES = [(kind, later) for kind in (EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC) for later in (False, True)]


class _Floor:
    """A bare SMG, and one socket that is each run's engine. Every run has a port of its own, as ours has."""

    def __init__(self, smg: BareSmg, ports: Iterable[int], socket: Path, engines: EngineHost) -> None:
        self._smg = smg
        self._ports = iter(ports)
        self._socket = socket
        self._engines = engines

    async def run(self, kind: EngineKind, listen_delay_s: float) -> float:
        """One engine's way; seconds."""
        async with Connection("127.0.0.1", self._smg.ports.api) as client:
            answered = asyncio.create_task(first_200(client))
            (listening_at,) = await self._engines.start(
                settings(self._socket, kind, name="floor", model=MODEL, listen_delay_s=listen_delay_s)
            )
            worker = await self._smg.workers.add(worker_body(next(self._ports), kind, MODEL))
            took_s = await answered - listening_at
        await self._smg.workers.delete(worker)
        await self._smg.workers.until_ready(0)
        await self._engines.stop("floor")
        return took_s


async def _ours(ours: Ours, engines: EngineHost, replica: str, kind: EngineKind, listen_delay_s: float) -> float:
    """One engine's way; seconds."""
    async with ours.client() as client:
        answered = asyncio.create_task(first_200(client))
        (listening_at,) = await engines.start(
            settings(ours.socket(replica), kind, name=replica, model=MODEL, listen_delay_s=listen_delay_s)
        )
        took_s = await answered - listening_at
    await engines.stop(replica)
    await ours.until_serving()
    await ours.workers.until_ready(0)
    return took_s


async def run(scale: Scale) -> list[Row]:
    """30 runs of each case; 6 with `--quick`."""
    runs = scale.pick(30, 6)
    rows = []
    with scratch_directory() as directory:
        first, socket = free_ports(runs * len(_CASES)), directory / "floor.sock"
        ports = range(first, first + runs * len(_CASES))
        async with (
            EngineHost(directory / "engines.log") as engines,
            BareSmg(directory) as smg,
            BareNginx(directory, dict.fromkeys(ports, socket)),
            running_gateway(settle_s=0) as ours,
        ):
            floor = _Floor(smg, ports, socket, engines)
            for kind, later in _CASES:
                spread = random.Random(1)
                delays = [spread.uniform(0.1, 0.5) if later else 0.0 for _ in range(runs)]
                floors, times = [], []
                for number, delay_s in enumerate(delays):
                    floors.append(await floor.run(kind, delay_s))
                    times.append(await _ours(ours, engines, f"{kind}-{later:d}-{number}", kind, delay_s))
                rows.append(_row(kind, later, floors, times))
    return rows


def _row(kind: EngineKind, later: bool, floors: list[float], times: list[float]) -> Row:
    floor_p50, p50, p99 = median(floors), median(times), percentile(times, 99)
    over_s = p50 - floor_p50
    return Row(
        NAME,
        f"{kind}, {'file first, listens later' if later else 'listens at once'}",
        f"p50 floor + {in_ms(_P50_OVER_FLOOR_S)}, p99 < {in_ms(_P99_S)}",
        f"p50 {in_ms(floor_p50)}, p99 {in_ms(percentile(floors, 99))}",
        f"p50 {in_ms(p50)}, p99 {in_ms(p99)}",
        f"floor {over_s * 1000:+.1f} ms",
        over_s <= _P50_OVER_FLOOR_S and p99 < _P99_S,
        {
            "runs": len(times),
            "p50_over_floor_ms": round(over_s * 1000, 3),
            "floor_ms": rounded_ms(floors),
            "ours_ms": rounded_ms(times),
        },
    )
