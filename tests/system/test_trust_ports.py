"""Who gets a bridge: an engine, and nobody else; and no service so many that another has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from examples.simulated import EngineKind
from examples.simulated.options import Lie
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartAs
from tests.system.gateway import BRIDGES, Gateway, Status, replica_of, service_of, states_of
from tests.system.test_crowds import engines_elsewhere
from tests.system.test_operation import metrics_of
from tests.system.test_trust_files import write_key
from tests.users import ONE, OTHER

pytestmark = pytest.mark.own_users

DEAD = 3000
SILENT = 800
Serve = Callable[[Path], Awaitable[list[str]]]


@pytest_asyncio.fixture
async def admin_like() -> AsyncIterator[Serve]:
    """Something that is no engine, and that nobody ought to reach: an API like the daemon's. What it was asked."""
    runners: list[web.AppRunner] = []

    async def start(path: Path) -> list[str]:
        asked: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            asked.append(f"{request.method} {request.path}")
            return web.json_response({"services": [], "ready": True}, status=200 if "status" in request.path else 404)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.SockSite(runners[-1], OTHER.binds(path)).start()
        return asked

    yield start
    for runner in runners:
        await runner.cleanup()


def links(gateway: Gateway) -> list[str]:
    """What leads anywhere."""
    return sorted(path.name for path in (gateway.directory / "run" / "bridges").iterdir())


async def answering(gateway: Gateway) -> list[int]:
    """The bridge ports that somebody answers at, and not the bridge itself that there is nobody."""
    first = int(gateway.settings["bridges"]["ports"].partition("-")[0])

    async def asks(port: int) -> bool:
        try:
            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = await reader.read()
                    return bool(answer) and b"engine_not_connected" not in answer
                finally:
                    writer.close()
        except OSError:
            return False

    said = await asyncio.gather(*(asks(port) for port in range(first, first + BRIDGES)))
    return [first + number for number, answers in enumerate(said) if answers]


async def until_hung_up(gateway: Gateway) -> bytes:
    """What a bridge that leads nowhere says to somebody who would stay, until it ends the connection."""
    first = int(gateway.settings["bridges"]["ports"].partition("-")[0])
    async with asyncio.timeout(60):  # nginx keeps others for 75 s.
        reader, writer = await asyncio.open_connection("127.0.0.1", first)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        said = await reader.read()
    writer.close()
    return said


def portless(status: Status) -> list[str]:
    """Replicas of `greedy` that wait for a port."""
    rows = service_of(status, "greedy")["replicas"]
    return [row["id"] for row in rows if "no free bridge port" in (row["reason"] or "")]


async def test_nothing_leads_to_what_is_no_engine(
    gateway: Gateway, start: StartAs, admin_like: Serve, tmp_path: Path
) -> None:
    """Neither at first sight nor later: no port, no link, and nothing but the probe's own questions."""
    asked = await admin_like(gateway.socket("foreign"))
    silent = await start(OTHER, gateway.socket("silent"), hang=True)
    await start(ONE, gateway.socket("loading"), load_s=3600)
    OTHER.binds(gateway.socket("dead"), backlog=None).close()
    seen = {"foreign": "foreign", "silent": "unreachable", "loading": "loading", "dead": "loading"}
    status = await gateway.until_states(seen)
    assert [row["bridge"] for row in service_of(status)["replicas"]] == [None] * 4
    assert (status["bridge_ports"]["leased"], links(gateway), await answering(gateway)) == (0, [], [])
    assert b"engine_not_connected" in await until_hung_up(gateway), "a port rests while anybody is on it"
    pages = {"/v1/models", "/info", "/health", "/server_info", "/version", "/metrics"}
    assert set(asked) <= {f"GET {page}" for page in pages}, asked
    assert await gateway.workers() == []
    _, plan, _ = await gateway.cli("plan")
    assert "bridge" not in plan
    await silent.behave(hang=False)
    status = await gateway.until_states({**seen, "silent": "serving"})
    port = int(replica_of(status, "silent")["bridge"].rpartition(":")[2])
    assert (links(gateway), await answering(gateway)) == ([f"{port}.sock"], [port])


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.VLLM_HTTP])
async def test_who_turns_foreign_is_unbridged(make_gateway: MakeGateway, start: StartAs, kind: EngineKind) -> None:
    """Another program behind a replica's socket gets no request. What is under way ends; the port is somebody's
    again when nobody is on it; and an engine that is back is one that has just been seen."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = {"interval_s": 0.5, "timeout_s": 1, "failures": 2}
    await gateway.start()
    one = await start(ONE, gateway.socket("r1"), kind, token_interval_s=0.05)
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    await one.behave(lie=Lie.NOT_AN_ENGINE)
    await gateway.until(
        lambda s: any(row["state"] == "foreign" for row in service_of(s)["replicas"]) and not links(gateway)
    )
    assert await answering(gateway) == []
    assert (await stream).split()[-1] == "59"
    status = await gateway.until(lambda s: states_of(s) == {"r1": "foreign"} and s["bridge_ports"]["leased"] == 0)
    assert replica_of(status, "r1")["bridge"] is None
    assert await gateway.until_workers(lambda workers: workers == []) == []
    await one.behave(lie=None)
    after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert after["bridge"] != before["bridge"]
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_an_engine_that_is_ill_keeps_its_bridge_whichever_daemon(
    make_gateway: MakeGateway, start: StartAs
) -> None:
    """It was an engine when last heard of: a killed daemon's successor takes nothing from it."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = {"interval_s": 0.5, "timeout_s": 1, "failures": 2}
    await gateway.start()
    one = await start(ONE, gateway.socket("r1"))
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    await one.behave(hang=True)
    await gateway.until_states({"r1": "unreachable"})
    await gateway.kill()
    await gateway.start()
    await gateway.until_states({"r1": "unreachable"})
    assert links(gateway) == [f"{before['bridge'].rpartition(':')[2]}.sock"]
    await one.behave(hang=False)
    after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert after["bridge"] == before["bridge"]


async def test_a_drain_of_one_that_loads_outlives_the_daemon(gateway: Gateway, start: StartAs) -> None:
    """It has no port that a lease could be written down for."""
    one = await start(ONE, gateway.socket("r1"), load_s=3600)
    await gateway.until_states({"r1": "loading"})
    assert (await gateway.cli("drain", "chat", "r1"))[0] == 0
    await gateway.terminate()
    await gateway.start()
    await one.behave(load_s=0)
    status = await gateway.until_states({"r1": "draining"})
    assert "safe to stop" in replica_of(status, "r1")["reason"]
    assert (await gateway.cli("resume", "chat", "r1"))[0] == 0
    await gateway.until_states({"r1": "serving"})


async def test_dead_sockets_hold_no_port_and_nobody_up(make_gateway: MakeGateway, start: StartAs) -> None:
    """A true replica beside thousands of dead sockets: one that listens at once, one that loads, one that binds first
    and listens later, each found about as soon as it were alone. Both services, with one range."""
    gateway = make_gateway(services=("chat", "code"), log={"format": "json", "level": "info"})
    await gateway.start()
    for number in range(DEAD):
        OTHER.binds(gateway.socket(f"dead{number}"), backlog=None).close()
    await start(ONE, gateway.socket("other", "code"))
    await start(ONE, gateway.socket("true"))
    await gateway.until_state("other", "serving", service="code")
    await gateway.until_state("true", "serving")
    await gateway.until(lambda s: list(states_of(s).values()).count("loading") == DEAD)
    before = await metrics_of(gateway)
    await start(ONE, gateway.socket("loads"), load_s=3)
    await start(ONE, gateway.socket("later"), listen_delay_s=3)
    # Seconds, and not the minute after which each of the dead is asked again.
    await gateway.until_state("loads", "serving")
    status = await gateway.until_state("later", "serving")
    assert (status["bridge_ports"]["leased"], len(links(gateway))) == (4, 4)
    assert await ask(gateway, "tiny", stream=False)
    after = await metrics_of(gateway)
    asked = sum(after[key] - before.get(key, 0) for key in after if key[0] == "gateway_sidecar_probes_total")
    assert asked < 6000, "fifty questions a second, however many are dead"


async def test_a_service_with_few_replicas_gets_its_share(make_gateway: MakeGateway, start: StartAs) -> None:
    """Thousands may pretend to be engines of one service: the ports of the other are there when it needs them."""
    gateway = make_gateway(services=("greedy", "chat"), log={"format": "json", "level": "info"})
    first = int(gateway.settings["bridges"]["ports"].partition("-")[0])
    gateway.settings["bridges"]["ports"] = f"{first}-{first + 6}"
    await gateway.start()
    async with engines_elsewhere(gateway.directory / "engines", 40, OTHER) as sockets:
        with OTHER.here():
            for number, path in enumerate(sockets):
                gateway.socket(f"g{number}", "greedy").hardlink_to(path)
        status = await gateway.until(lambda s: list(states_of(s, "greedy").values()).count("serving") == 4)
        assert status["bridge_ports"]["share"] == 3
        refused = await gateway.until(lambda s: len(portless(s)) == 36)
        reasons = {row["reason"] for row in service_of(refused, "greedy")["replicas"]} - {None, ""}
        assert reasons == {
            "no free bridge port (greedy holds 4; its share of 7 among 2 services is 3, and the rest is kept for the"
            " others); widen bridges.ports"
        }
        for number in range(3):
            await start(ONE, gateway.socket(f"r{number}"))
        await gateway.until_states(dict.fromkeys(("r0", "r1", "r2"), "serving"), service="chat")
        held = await metrics_of(gateway)
        assert held["gateway_sidecar_service_bridge_ports", frozenset({("service", "greedy")})] == 4
        assert held["gateway_sidecar_service_bridge_ports", frozenset({("service", "chat")})] == 3
        assert held["gateway_sidecar_bridge_port_share", frozenset()] == 3
        # A port that is given back is one of those who wait, in the same service.
        gone = next(row["id"] for row in service_of(refused, "greedy")["replicas"] if row["state"] == "serving")
        gateway.socket(gone, "greedy").unlink()
        await gateway.until(
            lambda s: (
                gone not in states_of(s, "greedy") and list(states_of(s, "greedy").values()).count("serving") == 4
            ),
            within_s=60,
        )
        await gateway.until_states(dict.fromkeys(("r0", "r1", "r2"), "serving"), service="chat")
        assert len(gateway.events("replica.not_bridged")) == 36, "told once for each"


async def test_a_bridge_shows_the_key_from_the_beginning(gateway: Gateway, start: StartAs) -> None:
    """Its link never leads past the nginx that shows the key."""
    write_key(ONE, gateway.socket("r1"))
    bridges = gateway.directory / "run" / "bridges"
    targets: set[str] = set()

    async def look() -> None:
        while True:
            with suppress(FileNotFoundError):  # It is replaced while it is read.
                targets.update(str(link.readlink()) for link in bridges.glob("*.sock"))
            await asyncio.sleep(0.001)

    looking = asyncio.create_task(look())
    await start(ONE, gateway.socket("r1"), require_key="sekrit")
    await gateway.until_states({"r1": "serving"})
    while not targets:  # Nothing may have been looked at meanwhile.
        await asyncio.sleep(0.001)
    looking.cancel()
    (target,) = targets
    assert target.startswith(str(gateway.directory / "run" / "keyed"))


async def test_silent_sockets_hold_nobody_up(gateway: Gateway, start: StartAs) -> None:
    """A true replica that comes after hundreds that take connections and never answer is found all the same."""
    with ExitStack() as listening:
        for number in range(SILENT):
            listening.enter_context(OTHER.binds(gateway.socket(f"silent{number}"), backlog=16))
        await gateway.until(lambda s: len(states_of(s)) == SILENT)
        await start(ONE, gateway.socket("true"))
        # All of them, 32 at a time, take two minutes for their time-outs.
        await gateway.until_state("true", "serving")
        await start(ONE, gateway.socket("loads"), load_s=3)
        await gateway.until_state("loads", "serving")
        assert len(links(gateway)) == 2
