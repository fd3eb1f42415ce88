"""Figures: an engine's core hangs or dies, and its server goes on, under steady load.

Four replicas, half SGLang over HTTP and half vLLM over gRPC, the default settings; eight clients, each asking again as
soon as it was answered, half of it streamed. One replica's core hangs (it says that it is well, and nothing moves) or
dies (it says that it is not, and fails what it is asked) until `status` calls it dead, and is well again then.

until dead  From that instant to the first `status` that says so.
failed      Requests that were not answered 200, whole and with the last token. Those that wait at a hung engine are
            answered when it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from bench.engines import EngineHost
from bench.fleet import start_fleet
from bench.gateway import Ours, running_gateway
from bench.load import SHAPES, Load
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median, rounded_ms

NAME = "dead-engines"
_REPLICAS = 4
_CLIENTS = 8
_KINDS = {"r0": "HTTP", "r1": "gRPC"}
_DIED_S, _HUNG_S = 2.0, 15.0
_SHORT = SHAPES[:2]


async def run(scale: Scale) -> list[Row]:
    """6 rounds of each case; 2 with `--quick`."""
    rounds = scale.pick(6, 2)
    rows = []
    for retry in (False, True):
        with scratch_directory() as directory:
            async with (
                EngineHost(directory / "engines.log") as engines,
                running_gateway(hold={"retry_in_flight": retry}) as ours,
            ):
                names = await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.005)
                for fault, bar_s in (("dead_core", _DIED_S), ("hung_core", _HUNG_S)):
                    for name, kind in _KINDS.items():
                        times, failed, sent = [], 0, 0
                        for _ in range(rounds):
                            await ours.until_serving(*names, within_s=120)
                            async with Load(
                                "127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS, shapes=_SHORT
                            ) as load:
                                await load.until(200, within_s=60)
                                times.append(await _until_dead(engines, ours, name, {fault: True}))
                                await engines.behave(name, **{fault: False})
                            failed, sent = failed + len(load.failures), sent + load.requests
                        case = f"{fault}, {kind}{', hold.retry_in_flight' if retry else ''}"
                        rows.append(_row(case, bar_s, times, failed, sent))
    return rows


async def _until_dead(engines: EngineHost, ours: Ours, name: str, fault: Mapping[str, bool]) -> float:
    began = time.monotonic()
    await engines.behave(name, **fault)
    await ours.until(lambda rows: rows[name]["state"] == "dead", within_s=120)
    return time.monotonic() - began


def _row(case: str, bar_s: float, times: list[float], failed: int, sent: int) -> Row:
    p50 = median(times)
    return Row(
        NAME,
        case,
        f"p50 < {bar_s:g} s",
        "-",
        f"p50 {in_ms(p50)}, most {in_ms(max(times))}; failed {failed} of {sent}",
        f"p50 {in_ms(p50)}",
        p50 < bar_s,
        {"rounds": len(times), "until_dead_ms": rounded_ms(times), "failed": failed, "requests": sent},
    )
