"""Many at once, and many for a long time: bounded work in flight, an event loop that answers, and a quiet log."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway_sidecar.nginx.server import busy_ports
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_operation import metrics_of
from tests.users import User, give

CROWD = 1000
HOST = """if True:
    import asyncio, sys
    from examples.simulated.fleet import Fleet

    async def main(directory, count):
        fleet = Fleet()
        for number in range(count):
            await fleet.start({"kind": "sglang-http", "socket": f"{directory}/e{number}.sock", "model": "tiny"})
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for engine in list(fleet):
            await engine.kill()

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@asynccontextmanager
async def engines_elsewhere(directory: Path, count: int, user: User | None = None) -> AsyncIterator[list[Path]]:
    """Engines in a process of their own, or of this user's, at sockets that nobody looks at."""
    directory.mkdir()
    if user is not None:
        give(directory, user, 0o755)
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(user.enter if user else ()), sys.executable, "-c", HOST, str(directory), str(count),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            assert await process.stdout.readline() == b"up\n", (directory / "log").read_text()[-2000:]
        yield [directory / f"e{number}.sock" for number in range(count)]
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(60):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def free_range(count: int) -> str:
    """So many free ports in a row, as the configuration wants them."""
    first = 27_000  # Where neither the other tests nor the benchmark begin to look.
    while busy := busy_ports([("127.0.0.1", port) for port in range(first, first + count)]):
        first = busy[-1][1] + 1
        assert first + count < 32_000, "no ports left"
    return f"{first}-{first + count - 1}"


@pytest.mark.timeout(900)
async def test_a_thousand_sockets_at_once(make_gateway: MakeGateway) -> None:
    """All of them serve; the admin socket answers all the while, and so does the service address from the first on."""
    gateway = make_gateway(bridges={"ports": free_range(CROWD + 20)}, log={"level": "info"})
    async with engines_elsewhere(gateway.directory / "engines", CROWD) as sockets:
        await gateway.start()
        took: list[float] = []
        began = time.monotonic()
        for number, socket in enumerate(sockets):
            gateway.socket(f"r{number}").hardlink_to(socket)
        served_at = None
        async with asyncio.timeout(800):  # 7 s on two cores of its own.
            while True:
                asked = time.monotonic()
                status = await gateway.status()
                took.append(time.monotonic() - asked)
                states = [row["state"] for row in service_of(status)["replicas"]]
                if served_at is None and "serving" in states:
                    assert await ask(gateway, "tiny", stream=False)
                    served_at = time.monotonic() - began
                if len(states) == CROWD and set(states) == {"serving"}:
                    break
                await asyncio.sleep(0.05)
        took_s = time.monotonic() - began
        found = await metrics_of(gateway)
        print(f"{CROWD} sockets: all serving after {took_s:.1f} s, slowest status {max(took) * 1000:.0f} ms")
        # In parts of the whole, since a busy machine is slower in both.
        assert len(took) >= 10, "a crowd must not hold up the admin socket"
        assert sorted(took)[-3] < took_s / 3, "a busy machine may hold up two"
        assert found["gateway_sidecar_nginx_reloads_total", frozenset()] == 0
        assert gateway.events("loop.failed") == []
        assert gateway.events("daemon.wedged") == []
        assert await ask(gateway, "tiny", stream=False)


async def logged(gateway: Gateway, for_s: float) -> list[str]:
    """What is logged meanwhile, but for a busy machine."""
    before = len(gateway.log())
    await asyncio.sleep(for_s)
    return [line for line in gateway.log()[before:].splitlines() if '"daemon.stalled"' not in line]


async def test_engines_that_load_for_long_are_quiet_and_cheap(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One event each when it begins to load and none after that; all together few questions a second."""
    gateway = make_gateway(log={"format": "json", "level": "info"})
    await gateway.start()
    loading = [await engine(gateway.socket(f"r{number}"), load_s=3600) for number in range(20)]
    await gateway.until_states(dict.fromkeys((f"r{number}" for number in range(20)), "loading"))
    async with asyncio.timeout(60):
        while await logged(gateway, 1.0):
            pass  # The last changes.
    before, began = sum(one.ledger.calls.total() for one in loading), time.monotonic()
    assert await logged(gateway, 5.0) == []
    asked, took_s = sum(one.ledger.calls.total() for one in loading) - before, time.monotonic() - began
    assert 0 < asked <= took_s * 50 * 2, "under 50 probes a second, each of one question or two"
    assert len(gateway.events("replica.loading")) == 20
    assert await gateway.workers() == []


async def test_series_of_a_removed_service_do_not_come_back(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Nor while its last connections end."""
    gateway = make_gateway(services=("chat", "code"))
    both = gateway.settings["services"]
    await gateway.start()
    await engine(gateway.socket("r1", "code"))
    await gateway.until_states({"r1": "serving"}, service="code")
    assert any("code" in dict(labels).values() for _, labels in await metrics_of(gateway))
    gateway.configure(services=both[:1])
    assert (await gateway.cli("reload"))[0] == 0
    for _ in range(15):
        left = [name for name, labels in await metrics_of(gateway) if ("service", "code") in labels]
        assert left == []
        await asyncio.sleep(0.2)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.metrics_port}/healthz") as response,
    ):
        assert response.status == 200
