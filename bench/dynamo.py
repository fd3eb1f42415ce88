"""Figures: Dynamo's frontend as the router (`router: {type: dynamo}`), with plain OpenAI engines and a shim for each.

first 200     An engine listens, until the first 200 through the service address. Floor: a shim that is started by hand,
              until its entries are there: most of it is Python, which imports ai-dynamo.
replacement   Four replicas, each replaced again and again (a new one up, the old one drained and stopped) under load.
SIGKILL       The frontend is killed, until the first 200 through the service address. Floor: a frontend that is started
              by hand, until it answers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.another_router import REPLICAS, first_answer, kill_router, replace_in_turn, start_engine
from bench.chat import MODEL
from bench.engines import EngineHost
from bench.gateway import running_gateway
from bench.load import Load
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection, ExchangeFailed
from gateway_sidecar.files import dynamo_entries as entries
from gateway_sidecar.routers.dynamo.inside import frontend, shim
from tests.dynamo import PLANES, PYTHON

NAME = "dynamo"
_FIRST_OVER_FLOOR_S = 0.3
_KILL_OVER_FLOOR_S = 1.0


@asynccontextmanager
async def _by_hand(directory: Path, *argv: str, **env: str) -> AsyncIterator[None]:
    """A process in Dynamo's interpreter."""
    process = await asyncio.create_subprocess_exec(
        PYTHON, *argv, env={**os.environ, **PLANES, **env},
        stdout=asyncio.subprocess.DEVNULL, stderr=(directory / "by-hand.log").open("ab"),
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _shim_floor(directory: Path, number: int) -> float:
    """A shim, until its entries are there; seconds."""
    record, store = directory / "record", directory / f"store-{number}"
    record.touch()
    alive = entries.alive_path(directory)
    began = time.monotonic()
    argv = (shim.__file__, str(record), str(alive), "http://127.0.0.1:1", MODEL)
    async with _by_hand(directory, *argv, DYN_FILE_KV=str(store), **{shim.KEY_VARIABLE: "key", shim.MODE_VARIABLE: ""}):
        while not (mdc := store / "v1" / "mdc").is_dir() or not any(mdc.iterdir()):
            await asyncio.sleep(0.002)
        return time.monotonic() - began


async def _frontend_floor(directory: Path) -> float:
    """A frontend, until it answers; seconds."""
    port = free_ports(1)
    began = time.monotonic()
    options = ("--http-host", "127.0.0.1", "--http-port", str(port))
    argv = (frontend.__file__, str(directory / "frontend"), str(free_ports(1)), *options)
    async with _by_hand(directory, *argv), Connection("127.0.0.1", port) as client:
        while True:
            try:
                await client.ask("GET", "/live")
                return time.monotonic() - began
            except ExchangeFailed:
                await asyncio.sleep(0.002)


async def run(scale: Scale) -> list[Row]:
    """10 first answers, 10,000 requests, 5 kills; 3, 1,000 and 2 with `--quick`."""
    if not Path(PYTHON).exists():
        return [Row.not_measured(NAME, "ai-dynamo is missing: make dynamo")]
    rounds, requests, kills = scale.pick(10, 3), scale.pick(10_000, 1_000), scale.pick(5, 2)
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(router="dynamo", command=PYTHON) as ours,
        ):
            floors = [await _shim_floor(directory, number) for number in range(rounds)]
            firsts = [await first_answer(ours, engines, f"f{number}") for number in range(rounds)]
            names = [f"r{number}" for number in range(REPLICAS)]
            for name in names:
                await start_engine(ours, engines, name)
            await ours.until_serving(*names)
            async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=16) as load:
                await asyncio.gather(*(replace_in_turn(ours, engines, name, scale.pick(5, 1)) for name in names))
                await load.until(requests, within_s=300)
            kill_floors, killed = [], []
            for _ in range(kills):
                kill_floors.append(await _frontend_floor(directory))
                killed.append(await kill_router(ours))
    failed = [failure.reason for failure in itertools.islice(load.failures, 20)]
    return [
        _timed("an engine listens, until the first 200", floors, firsts, _FIRST_OVER_FLOOR_S),
        Row(NAME, f"{REPLICAS * scale.pick(5, 1)} replacements", "0 failed", "-",
            f"{len(load.failures)} of {load.requests}", f"{len(load.failures)} failed", not load.failures,
            {"failures": failed, "answered": dict(load.answered)}),
        _timed("SIGKILL of the frontend, until the first 200", kill_floors, killed, _KILL_OVER_FLOOR_S),
    ]  # fmt: skip


def _timed(case: str, floors: list[float], times: list[float], over_s: float) -> Row:
    floor, ours = median(floors), median(times)
    return Row(
        NAME,
        case,
        f"p50 floor + {in_ms(over_s)}",
        f"p50 {in_ms(floor)}",
        f"p50 {in_ms(ours)}, worst {in_ms(percentile(times, 100))}",
        f"floor {(ours - floor) * 1000:+.0f} ms",
        ours - floor <= over_s,
        {"floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(times)},
    )
