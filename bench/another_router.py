"""Figures of a kind of router beside SMG, the same for each of them.

first 200     An engine listens, until the first 200 through the service address.
replacement   Four replicas, each replaced again and again (a new one up, the old one drained and stopped) under load.
SIGKILL       The router is killed, until the first 200 through the service address. Floor: the same router, started by
              hand, until it answers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path

from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind, settings
from bench.fatal import kill
from bench.gateway import Ours, running_gateway
from bench.load import Load
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection, ExchangeFailed
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.routers.base import RouterPorts, RouterSetup, Surroundings
from tests.other_routers import program_of
from tests.smg import SERVICE

REPLICAS = 4
_FIRST_S = 0.3
_KILL_OVER_FLOOR_S = 1.0
_KIND = EngineKind.VLLM_HTTP


async def measure(kind: str, scale: Scale) -> list[Row]:
    """20 first answers, 10,000 requests, 5 kills; 3, 1,000 and 2 with `--quick`."""
    program = program_of(kind)
    if program is None:
        return [Row.not_measured(kind, f"{kind} is not installed: make routers")]
    rounds, requests, kills = scale.pick(20, 3), scale.pick(10_000, 1_000), scale.pick(5, 2)
    router = {"type": kind, "command": str(program)}
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(router=kind, command=str(program)) as ours,
        ):
            firsts = [await first_answer(ours, engines, f"f{number}") for number in range(rounds)]
            names = [f"r{number}" for number in range(REPLICAS)]
            for name in names:
                await start_engine(ours, engines, name)
            await ours.until_serving(*names)
            async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=12) as load:
                replacing = [replace_in_turn(ours, engines, name, scale.pick(5, 1)) for name in names]
                await asyncio.gather(*replacing)
                await load.until(requests, within_s=600)
            troubles = ours.troubles()
            floors, killed = [], []
            for _ in range(kills):
                floors.append(await _by_hand(router, directory))
                killed.append(await kill_router(ours))
    over_s = median(killed) - median(floors)
    return [
        Row(kind, "an engine listens, until the first 200", f"p50 {in_ms(_FIRST_S)}", "-",
            f"p50 {in_ms(median(firsts))}, worst {in_ms(percentile(firsts, 100))}", "-", median(firsts) <= _FIRST_S,
            {"ours_ms": rounded_ms(firsts)}),
        Row(kind, f"{REPLICAS * scale.pick(5, 1)} replicas replaced", "0 failed", "-",
            f"{len(load.failures)} of {load.requests}", f"{len(load.failures)} failed", not load.failures,
            {"failures": [asdict(failure) for failure in load.failures[:50]], "answered": dict(load.answered),
             "daemon_said": troubles if load.failures else []}),
        Row(kind, "SIGKILL of the router, until the first 200", f"p50 floor + {in_ms(_KILL_OVER_FLOOR_S)}",
            f"p50 {in_ms(median(floors))}", f"p50 {in_ms(median(killed))}, worst {in_ms(percentile(killed, 100))}",
            f"floor {over_s * 1000:+.0f} ms", over_s <= _KILL_OVER_FLOOR_S,
            {"floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(killed)}),
    ]  # fmt: skip


async def start_engine(ours: Ours, engines: EngineHost, name: str) -> float:
    """A new engine; the monotonic instant at which it listens."""
    engine = settings(ours.socket(name), _KIND, name=name, model=MODEL, token_interval_s=0.01)
    (listening_at,) = await engines.start(engine)
    return listening_at


async def first_answer(ours: Ours, engines: EngineHost, name: str) -> float:
    """Seconds from an engine that listens to the first 200; it is gone again afterwards."""
    async with ours.client() as client:
        answered = asyncio.create_task(first_200(client))
        listening_at = await start_engine(ours, engines, name)
        took_s = await answered - listening_at
    await engines.stop(name)
    ours.socket(name).unlink(missing_ok=True)
    await ours.until_serving()
    return took_s


async def replace_in_turn(ours: Ours, engines: EngineHost, old: str, rounds: int) -> None:
    """One replica of the fleet, replaced so many times."""
    for number in range(rounds):
        new = f"{old.partition('-')[0]}-{number}"
        await start_engine(ours, engines, new)
        await ours.until(lambda rows, new=new: rows.get(new, {}).get("state") == "serving")  # type: ignore[misc]
        await ours.drain(old)
        await engines.stop(old, grace_s=10)
        ours.socket(old).unlink(missing_ok=True)
        old = new


async def kill_router(ours: Ours) -> float:
    """Seconds from the router's death to the first 200."""
    pid = await ours.router_pid()
    assert pid is not None
    async with ours.client() as client:
        death = await kill(pid)
        took_s = await first_200(client) - death.at
    await ours.until(lambda rows: all(row["state"] == "serving" for row in rows.values()))
    return took_s


async def _by_hand(router: dict[str, str], directory: Path) -> float:
    """The router with the daemon's own command, until it answers; seconds."""
    kind = ROUTERS[router["type"]]
    first = free_ports(2)
    ports = RouterPorts(first, first + 1)
    setup = kind.build(kind.settings.model_validate(router), SERVICE, Surroundings("key", directory))
    assert isinstance(setup, RouterSetup)
    command = setup.command(ports, "key")
    began = time.monotonic()
    with (directory / "by-hand.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command.argv, env=dict(command.env), stdout=log, stderr=log)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with Connection("127.0.0.1", ports.api) as client:
                        await client.ask("GET", "/liveness")
                        return time.monotonic() - began
                except (ExchangeFailed, OSError):
                    await asyncio.sleep(0.005)
    finally:
        process.kill()
        await process.wait()
