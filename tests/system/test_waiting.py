"""Waiting instead of failing: what clients see while a router is away."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial

import aiohttp
import pytest

from examples.simulated import EngineKind, SimulatedEngine
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.supervision.process import writers_of
from tests.stopping import stop
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, service_of, states_of

LONG = {"timeout_s": 600, "asleep_s": 600}
"""Whoever waits does so for as long as a busy machine takes to start daemons and routers."""
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def router_pid(status: Status) -> int:
    return int(service_of(status)["router"]["pid"])


def broken_router(gateway: Gateway) -> None:
    """Lets every further start of the router fail, until `repair_router`."""
    path = gateway.directory / "smg"
    path.write_text("#!/bin/sh\nexit 1\n")


def use_own_router_script(gateway: Gateway) -> None:
    """A router command that the test can break and repair."""
    repair_router(gateway)
    gateway.settings["services"][0]["router"] = {"command": str(gateway.directory / "smg")}


def repair_router(gateway: Gateway) -> None:
    import sys
    from pathlib import Path

    path = gateway.directory / "smg"
    path.write_text(f'#!/bin/sh\nexec {Path(sys.executable).parent / "smg"} "$@"\n')
    path.chmod(0o755)


def is_back(status: Status, *, restarts: int, wanted: dict[str, str]) -> bool:
    """The router was started again so many times, and has everybody."""
    router = service_of(status)["router"]
    return bool(status["ready"]) and router["restarts"] == restarts and states_of(status) == wanted


async def lose_router(gateway: Gateway, engine: StartEngine) -> SimulatedEngine:
    """Starts the gateway with one replica, then ends its router until `repair_router`. The replica's engine."""
    use_own_router_script(gateway)
    gateway.settings["services"][0].setdefault("hold", LONG)
    await gateway.start()
    here = await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    broken_router(gateway)
    os.kill(router_pid(status), signal.SIGKILL)
    await gateway.until(lambda s: service_of(s)["router"]["state"] == "backing_off")
    return here


async def post(session: aiohttp.ClientSession, gateway: Gateway, body: object = BODY) -> tuple[int, str]:
    async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response:
        return response.status, await response.text()


async def test_requests_wait_for_the_router_and_then_succeed(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """While the router is down new requests wait, body untouched, and are answered when it is back."""
    gateway = make_gateway()
    here = await lose_router(gateway, engine)
    content = os.urandom(1_000_000).hex()
    big = dict(BODY, messages=[{"role": "user", "content": content}])
    async with aiohttp.ClientSession() as session:
        waiting = [asyncio.create_task(post(session, gateway)) for _ in range(50)]
        data = io.BytesIO(json.dumps(big).encode())
        sending = asyncio.create_task(
            session.post(
                f"{gateway.url()}/v1/chat/completions", data=data, headers={"Content-Type": "application/json"}
            )
        )
        leaving = asyncio.create_task(post(session, gateway))
        await gateway.until(lambda s: service_of(s)["waiting"] == 52)
        leaving.cancel()
        await gateway.until(lambda s: service_of(s)["waiting"] == 51)
        repair_router(gateway)
        answers = await asyncio.gather(*waiting)
        async with await sending as response:
            assert response.status == 200
    assert Counter(code for code, _ in answers) == {200: 50}
    sent = hashlib.sha256(content.encode()).digest()
    got = [hashlib.sha256(r.body["messages"][0]["content"].encode()).digest() for r in here.ledger.requests]
    assert sent in got, "the body arrived as it was sent"
    assert here.ledger.received == 51, "each was sent once"


async def test_requests_go_on_waiting_while_the_holds_socket_is_gone(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Those that wait stay, and after a moment others can come."""
    gateway = make_gateway()
    await lose_router(gateway, engine)
    async with aiohttp.ClientSession() as session:
        waiting = [asyncio.create_task(post(session, gateway)) for _ in range(3)]
        await gateway.until(lambda s: service_of(s)["waiting"] == 3)
        (gateway.directory / "run" / "hold.sock").unlink()
        async with asyncio.timeout(60):
            while not (gateway.directory / "run" / "hold.sock").exists():
                await asyncio.sleep(0.01)
        waiting += [asyncio.create_task(post(session, gateway)) for _ in range(2)]
        await gateway.until(lambda s: service_of(s)["waiting"] == 5)
        repair_router(gateway)
        assert Counter(code for code, _ in await asyncio.gather(*waiting)) == {200: 5}


@pytest.mark.parametrize("ending", ["killed", "terminated"])
async def test_requests_go_on_waiting_while_the_daemon_is_restarted(
    make_gateway: MakeGateway, engine: StartEngine, ending: str
) -> None:
    """Those that waited when it ended, twice, those that came while there was none, and those that came after."""
    gateway = make_gateway()
    here = await lose_router(gateway, engine)
    big = dict(BODY, messages=[{"role": "user", "content": os.urandom(500_000).hex()}])
    async with aiohttp.ClientSession() as session:
        waiting = [asyncio.create_task(post(session, gateway, big)) for _ in range(20)]
        await gateway.until(lambda s: service_of(s)["waiting"] == 20)
        for restarts in (1, 2):
            await (gateway.kill() if ending == "killed" else gateway.terminate())
            waiting += [asyncio.create_task(post(session, gateway)) for _ in range(20)]
            await until_connected_to_nginx(gateway, len(waiting))
            await gateway.start(ready=False)
            await gateway.until(partial(are_waiting, 20 + 20 * restarts))
        assert not any(task.done() for task in waiting)
        repair_router(gateway)
        assert Counter(code for code, _ in await asyncio.gather(*waiting)) == {200: 60}
    assert here.ledger.received == 60, "each was sent once"
    assert len(holders(gateway)) == 1


async def test_requests_that_wait_for_a_daemon_that_never_comes_are_answered_in_time(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """nginx keeps to the bound by itself, a little later than the daemon would."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"timeout_s": 0.5, "asleep_s": 0.5}
    await gateway.start()
    async with aiohttp.ClientSession() as session:
        await gateway.kill()
        began = time.monotonic()
        async with session.post(f"{gateway.url()}/v1/chat/completions", json=BODY) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            error = (await response.json())["error"]
        assert (error["type"], error["code"]) == ("server_error", "router_unavailable")
        assert "not available" in error["message"], "without a daemon nginx says it by itself"
        assert 0.5 < time.monotonic() - began < 30


async def test_the_hold_is_kept_until_everything_is_stopped(gateway: Gateway) -> None:
    """Whoever ends what holds it open finds it held again; `stop --all` leaves nobody behind."""
    (first,) = holders(gateway)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(60):
        while holders(gateway) in ([], [first]):
            await asyncio.sleep(0.01)
    assert (await gateway.cli("stop", "--all"))[0] == 0
    assert holders(gateway) == []


async def test_daemon_that_cannot_start_leaves_the_hold_as_it_was(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Nobody holds one where nothing had begun; who waits at an earlier daemon's goes on waiting."""
    gateway = make_gateway()
    works = dict(gateway.settings["nginx"])
    gateway.settings["nginx"] = works | {"command": "/nowhere/nginx"}
    await gateway.start(ready=False)
    assert gateway.process is not None
    assert await gateway.process.wait() == 1
    (failed,) = gateway.events("daemon.failed")
    assert "/nowhere/nginx" in failed["reason"]
    assert holders(gateway) == []

    gateway.settings["nginx"] = works
    await lose_router(gateway, engine)
    async with aiohttp.ClientSession() as session:
        waiting = asyncio.create_task(post(session, gateway))
        await gateway.until(partial(are_waiting, 1))
        await gateway.kill()
        first, last = map(int, gateway.settings["router_ports"].split("-"))
        with ExitStack() as taken:
            for port in range(first, last + 1):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            await gateway.start(ready=False)
            assert await gateway.process.wait() == 1
        (failed,) = gateway.events("daemon.failed")
        assert "widen router_ports" in failed["reason"]
        assert len(holders(gateway)) == 1
        await gateway.start(ready=False)
        await gateway.until(partial(are_waiting, 1))
        repair_router(gateway)
        assert (await waiting)[0] == 200
    assert len(holders(gateway)) == 1


def are_waiting(count: int, status: Status) -> bool:
    return bool(service_of(status)["waiting"] == count)


def holders(gateway: Gateway) -> list[int]:
    """The processes that keep the hold's socket open while there is no daemon."""
    return [identity.pid for identity in writers_of(gateway.directory / "run" / "log" / "hold.log")]


async def until_connected_to_nginx(gateway: Gateway, count: int) -> None:
    """Waits until so many clients are connected to the service address."""
    async with asyncio.timeout(60):
        while open_connections({gateway.ports["chat"]})[gateway.ports["chat"]] < count:
            await asyncio.sleep(0.01)


async def test_waiting_is_bounded_in_number_and_time(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Limits reached: 503 with Retry-After and an OpenAI-style error body."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = LONG | {"max_waiting": 3}
    await lose_router(gateway, engine)
    async with aiohttp.ClientSession() as session:

        async def refused() -> tuple[float, str]:
            began = time.monotonic()
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=BODY) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                error = (await response.json())["error"]
            assert error["type"] == "server_error"
            assert error["code"] == "router_unavailable"
            return time.monotonic() - began, error["message"]

        waiting = [asyncio.create_task(post(session, gateway)) for _ in range(3)]
        await gateway.until(partial(are_waiting, 3))
        for _ in range(2):
            assert "too many requests are waiting" in (await refused())[1]
        for task in waiting:
            task.cancel()
        await gateway.until(partial(are_waiting, 0))
        gateway.settings["services"][0]["hold"] = {"timeout_s": 0.5, "max_waiting": 3}
        gateway.configure()
        assert (await gateway.cli("reload"))[0] == 0
        for waited_s, message in await asyncio.gather(*(refused() for _ in range(3))):
            assert "has waited for 0.5 s" in message
            assert waited_s >= 0.5


async def test_router_killed_again_and_again_under_load(gateway: Gateway, engine: StartEngine) -> None:
    """Only what a router had taken when it died may fail; everything else waits and is answered."""
    for i in range(4):
        await engine(gateway.socket(f"r{i}"), EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP)
    wanted = {f"r{i}": "serving" for i in range(4)}
    await gateway.until_states(wanted)
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def client() -> None:
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                code, text = await post(session, gateway)
                outcomes[str(code) if code == 200 else f"{code} {json.loads(text)['error']['code']}"] += 1

    clients = [asyncio.create_task(client()) for _ in range(8)]
    kills = 4
    for count in range(1, kills + 1):
        answered = outcomes["200"]
        while outcomes["200"] < answered + 50:
            await asyncio.sleep(0.01)
        os.kill(router_pid(await gateway.status()), signal.SIGKILL)
        await gateway.until(partial(is_back, restarts=count, wanted=wanted))
    stop.set()
    await asyncio.gather(*clients)
    assert outcomes.pop("200") >= kills * 50
    assert outcomes.pop("502 router_lost", 0) <= kills * len(clients)
    assert not outcomes


async def kill_sockets(port: int) -> bool:
    """Takes a router's listening socket and its connections from it, while it goes on running."""
    for what in ("-tln", "-tn"):
        process = await asyncio.create_subprocess_exec(
            "ss", "-K", what, f"sport = :{port}", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await process.wait()
    with suppress(ConnectionRefusedError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return False
    return True


async def test_router_that_runs_and_refuses_is_waited_for_within_the_bounds(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A router without its listening socket: requests wait as for one that is away, then 503 in OpenAI's form."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"timeout_s": 1.5}
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 6}
    await gateway.start()
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    if not await kill_sockets(int(service_of(status)["router"]["url"].rpartition(":")[2])):
        pytest.skip("this kernel does not let anybody destroy a socket")
    async with aiohttp.ClientSession() as session:

        async def refused() -> float:
            began = time.monotonic()
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=BODY) as response:
                text = await response.text()
                assert response.status == 503, text
                assert int(response.headers["Retry-After"]) >= 1
            assert json.loads(text)["error"]["code"] == "router_unavailable"
            return time.monotonic() - began

        for waited_s in await asyncio.gather(*(refused() for _ in range(5))):
            assert 1.4 < waited_s < 30
        gateway.settings["services"][0]["hold"] = {"timeout_s": 30}
        gateway.configure()
        assert (await gateway.cli("reload"))[0] == 0
        answers = await asyncio.gather(*(post(session, gateway) for _ in range(5)))
    assert Counter(code for code, _ in answers) == {200: 5}, "it is started again, and whoever waited is answered"
    await gateway.until(partial(is_back, restarts=1, wanted={"r1": "serving"}))
    assert gateway.events("router.refusing")


@pytest.mark.parametrize("wakes", [True, False])
async def test_router_that_hangs_gets_nothing_more_long_before_it_is_given_up(
    make_gateway: MakeGateway, engine: StartEngine, *, wakes: bool
) -> None:
    """After a second of silence requests wait: for its successor, or for itself if it was only slow."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 60 if wakes else 6}
    gateway.settings["services"][0]["hold"] = LONG
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = router_pid(await gateway.until_states({"r1": "serving"}))
    silent_before = len(gateway.events("router.silent"))  # A busy machine's router may have been.
    stop(before)
    gate = gateway.directory / "run" / "gates" / "chat"
    async with asyncio.timeout(60):
        while not gate.exists():
            await asyncio.sleep(0.01)
    async with aiohttp.ClientSession() as session:
        asked = [asyncio.create_task(post(session, gateway)) for _ in range(5)]
        status = await gateway.until(lambda s: service_of(s)["waiting"] == 5)
        assert len(gateway.events("router.silent")) == silent_before + 1
        if wakes:
            assert service_of(status)["router"]["state"] == "up", "it may be slow, and is not given up yet"
            os.kill(before, signal.SIGCONT)
        assert Counter(code for code, _ in await asyncio.gather(*asked)) == {200: 5}
    after = await gateway.until(partial(is_back, restarts=0 if wakes else 1, wanted={"r1": "serving"}))
    assert (router_pid(after) == before) is wakes


async def test_retry_in_flight_sends_again_what_was_not_answered(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """With `retry_in_flight` not even what the dead router had taken fails: nor a body that nginx has in a file."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = LONG | {"retry_in_flight": True}
    await gateway.start()
    slow = await engine(gateway.socket("r1"), token_interval_s=600)
    status = await gateway.until_states({"r1": "serving"})
    async with aiohttp.ClientSession() as session:
        large = BODY | {"user": "x" * 400_000}
        asked = [asyncio.create_task(post(session, gateway, body)) for body in (*[BODY] * 4, large)]
        await slow.until(lambda seen: seen.in_flight == 5)
        slow.behave(token_interval_s=0)
        os.kill(router_pid(status), signal.SIGKILL)
        assert Counter(code for code, _ in await asyncio.gather(*asked)) == {200: 5}


async def test_stream_that_had_begun_ends_and_the_next_works(gateway: Gateway, engine: StartEngine) -> None:
    """A stream cannot be taken up again: it ends at once, and is not answered twice."""
    here = await engine(gateway.socket("r1"), token_interval_s=0.05)
    status = await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 20_000, started))
    await started.wait()
    os.kill(router_pid(status), signal.SIGKILL)
    with suppress(aiohttp.ClientPayloadError, AssertionError):
        await asyncio.wait_for(stream, 60)
        raise RuntimeError("the stream ended as if nothing had happened")
    await gateway.until(partial(is_back, restarts=1, wanted={"r1": "serving"}))
    assert await stream_chat(gateway, 3)
    assert here.ledger.received == 2


async def test_requests_wait_while_the_daemon_starts(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The service address is there before the router: who comes early waits."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = LONG
    await engine(gateway.socket("r1"))
    await gateway.start(ready=False)
    while True:
        with suppress(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as session:
                code, text = await post(session, gateway)
            break
        await asyncio.sleep(0.002)
    assert code == 200, text
