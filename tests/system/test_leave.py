"""A gateway leaves, and no client notices; it can be taken back until it stops."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.haproxy import haproxy
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway
from tests.system.test_operation import metrics_of
from tests.system.test_readiness import said, until_said

LEFT, CUT, BY_COMMAND = 0, 3, 79
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


async def leaving(gateway: Gateway) -> dict[str, Any]:
    async with gateway.session.get("http://daemon/v1/leave") as answer:
        return dict(await answer.json())


async def until_phase(gateway: Gateway, phase: str | None) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                if (answer := await leaving(gateway))["phase"] == phase:
                    return answer
            await asyncio.sleep(0.02)


async def post(gateway: Gateway, path: str) -> tuple[int, dict[str, Any]]:
    async with gateway.session.post(f"http://daemon{path}") as answer:
        return answer.status, dict(await answer.json())


async def refuses(gateway: Gateway) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def has_ended(gateway: Gateway) -> int:
    assert gateway.process is not None
    async with asyncio.timeout(60):
        return await gateway.process.wait()


class Load:
    """Clients that ask all the time, some of them with streams; `results` counts what they got."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.results: Counter[str] = Counter()
        self._began = time.monotonic()
        self.longest_pause_s = 0.0
        """Between the beginnings of two requests."""
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(6)]

    async def _client(self, number: int) -> None:
        # Half of them keep their connection, as SDKs do; the others make a new one for each request.
        connector = aiohttp.TCPConnector(force_close=number % 2 == 0)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                now = time.monotonic()
                self._began, self.longest_pause_s = now, max(self.longest_pause_s, now - self._began)
                body = {**BODY, "stream": number % 3 == 0, "max_tokens": 30 if number % 3 == 0 else 3}
                try:
                    async with session.post(f"{self._url}/v1/chat/completions", json=body) as answer:
                        text = await answer.text()
                        whole = "[DONE]" in text if body["stream"] else "choices" in text
                        self.results["ok" if answer.status == 200 and whole else f"{answer.status} {text[:200]}"] += 1
                except aiohttp.ClientError as error:
                    self.results[repr(error)] += 1
                await asyncio.sleep(0.01)

    async def more(self, number: int) -> None:
        """Waits until so many more were answered."""
        before = self.results["ok"]
        async with asyncio.timeout(60):
            while self.results["ok"] < before + number:
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def leaves(make_gateway: MakeGateway, **settings: Any) -> Gateway:
    gateway = make_gateway()
    gateway.settings["leave"] = {"quiet_s": 2.0, "balancer_s": 120.0, "timeout_s": 300.0, **settings}
    return gateway


@pytest.mark.timeout(300)
async def test_no_request_fails_while_a_gateway_leaves_and_comes_back(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Two gateways behind HAProxy, which tries nothing twice: one leaves, is taken back, leaves, and is back."""
    one, other = leaves(make_gateway, quiet_s=10.0), leaves(make_gateway)
    for gateway in (one, other):
        await gateway.start()
        await engine(gateway.socket("r1"), token_interval_s=0.02)
        await gateway.until_states({"r1": "serving"})
        await until_said(gateway, 200)
    ports = {"one": one.ports["chat"], "other": other.ports["chat"]}
    async with haproxy(one.directory, one.metrics_port - 1, ports) as balancer:
        load = Load(balancer.url)
        await load.more(20)

        assert (await post(one, "/v1/leave"))[0] == 202
        assert await said(one) == 503
        await balancer.until("one", "DOWN")
        assert (await one.cli("join"))[:2] == (0, "it is back: load balancers are told to send requests here\n")
        await balancer.until("one", "UP")
        await load.more(20)

        code, out, err = await one.cli("leave")
        assert (code, err) == (LEFT, ""), out + err
        assert "waiting: load balancers are told" in out
        assert out.splitlines()[-1].endswith("nothing was cut")
        assert await has_ended(one) == BY_COMMAND
        await load.more(20)

        await one.start()  # Whoever starts it wants it back.
        assert (await leaving(one))["phase"] is None
        await one.until_states({"r1": "serving"})
        await balancer.until("one", "UP")
        await load.more(20)
        await load.end()
    assert set(load.results) == {"ok"}, load.results


async def test_what_is_in_flight_ends_and_then_everything_stops(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Each phase is in `status`, the events and the metrics; a second `leave` follows the first."""
    gateway = leaves(make_gateway, quiet_s=0.5)
    await gateway.start()
    busy = await engine(gateway.socket("r1"), token_interval_s=0.1)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    chat = asyncio.create_task(stream_chat(gateway, 3000, started))
    await started.wait()
    waits = "waits for 1 connection in flight"
    followers = [await following(gateway) for _ in range(2)]
    said_last = await asyncio.gather(*(until_printed(it, f"no new requests are taken; {waits}") for it in followers))
    assert all("  draining: " in line for line in said_last)
    status = await gateway.until(lambda s: s["leave"] is not None and waits in s["leave"]["reason"])
    assert status["leave"]["connections"] == {f"127.0.0.1:{gateway.ports['chat']}": 1}
    assert not status["ready"]
    assert status["problems"] == []
    assert await refuses(gateway)
    assert "LEAVING (draining): no new requests are taken" in (await gateway.cli("status"))[1]
    page = await metrics_of(gateway)
    assert page["gateway_sidecar_leave_phase", frozenset({("phase", "draining")})] == 1
    assert page["gateway_sidecar_leave_connections", frozenset()] == 1
    assert page["gateway_sidecar_service_ready", frozenset({("service", "chat")})] == 0
    busy.behave(token_interval_s=0.0)
    await chat
    for follower in followers:
        printed, complaints = await follower.communicate()
        assert (follower.returncode, complaints) == (LEFT, b""), printed + complaints
        assert printed.splitlines()[-1].endswith(b"nothing was cut")
    assert await has_ended(gateway) == BY_COMMAND
    assert list(gateway.left_running()) == []
    assert [gateway.events(f"leave.{it}") != [] for it in ("begun", "draining", "stopping", "cut")] == [True] * 3 + [
        False
    ]
    code, _, err = await gateway.cli("join")
    assert code == 1
    assert "systemctl start gateway-sidecar" in err


async def test_a_gateway_that_refuses_requests_is_taken_back(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Streams of before go on, and the addresses are served as before."""
    gateway = leaves(make_gateway, quiet_s=0.2)
    await gateway.start()
    busy = await engine(gateway.socket("r1"), token_interval_s=0.1)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    chat = asyncio.create_task(stream_chat(gateway, 3000, started))
    await started.wait()
    follower = asyncio.create_task(gateway.cli("leave"))
    await until_phase(gateway, "draining")
    async with asyncio.timeout(60):
        while not await refuses(gateway):
            await asyncio.sleep(0.02)
    async with asyncio.timeout(60):  # The daemon looks whether nginx has done so.
        while not (await gateway.cli("status", "--problems"))[1].startswith(
            "LEAVING (draining): no new requests are taken"
        ):
            pass
    assert "  -/-: go on leaving: no new requests are taken" in (await gateway.cli("plan"))[1]
    assert await post(gateway, "/v1/join") == (200, {"joined": True})
    assert await said(gateway) == 200
    busy.behave(token_interval_s=0.0)
    assert await ask(gateway, "tiny", stream=False)
    await chat
    code, _, err = await follower
    assert code == 1
    assert "taken back by `join`" in err
    assert await post(gateway, "/v1/join") == (200, {"joined": False})
    assert not any(gateway.directory.glob("run/gates/.l*"))


async def test_what_does_not_end_is_cut_in_time_and_said(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A WebSocket, or a stream without an end, keeps nobody for ever."""
    gateway = leaves(make_gateway, quiet_s=0.2)
    await gateway.start()
    await engine(gateway.socket("r1"), token_interval_s=0.2)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    chat = asyncio.create_task(stream_chat(gateway, 10_000, started))
    await started.wait()
    code, out, _ = await gateway.cli("leave", "--timeout", "4")
    assert code == CUT
    assert out.splitlines()[-1].endswith("1 connection with requests in flight cut")
    assert await has_ended(gateway) == BY_COMMAND
    assert gateway.events("leave.cut")[0]["connections"] == 1
    with pytest.raises((aiohttp.ClientError, AssertionError)):
        await chat


async def following(gateway: Gateway) -> asyncio.subprocess.Process:
    """The command; a gateway that leaves already has it follow, too."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_sidecar", "leave", "--config", str(gateway.config_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def until_printed(command: asyncio.subprocess.Process, words: str) -> str:
    """The line of its output that says so. A command that has an answer follows whatever becomes of the daemon."""
    assert command.stdout is not None
    async with asyncio.timeout(60):
        while words not in (line := (await command.stdout.readline()).decode()):
            assert line, f"it ended, and did not say {words!r}"
    return line


@pytest.mark.timeout(300)
@pytest.mark.parametrize("phase", ["waiting", "draining"])
async def test_a_daemon_that_is_started_again_goes_on_leaving(
    make_gateway: MakeGateway, engine: StartEngine, phase: str
) -> None:
    """The command follows across the daemons. Once the gateway has left, whoever starts it wants it back."""
    gateway = leaves(make_gateway, quiet_s=60.0 if phase == "waiting" else 0.2)
    await gateway.start()
    busy = await engine(gateway.socket("r1"), token_interval_s=0.1)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    chat = asyncio.create_task(stream_chat(gateway, 3000, started))
    await started.wait()
    follower = await following(gateway)
    await until_printed(follower, "waiting")
    before = await until_phase(gateway, phase)
    record = Path(gateway.directory / "run" / "processes.json")
    async with asyncio.timeout(60):  # It is in force at once, and written down before it is answered.
        while (json.loads(record.read_text())["leave"] or {}).get("phase") != phase:
            await asyncio.sleep(0.02)
    if phase == "waiting":
        await gateway.kill()
        assert await said(gateway) == 503, "nginx tells it without a daemon, too"
    else:
        async with asyncio.timeout(60):
            while not await refuses(gateway):
                await asyncio.sleep(0.02)
        assert await gateway.terminate() == 0
        assert await refuses(gateway)
    await until_printed(follower, "the daemon is away")
    await gateway.start(ready=False)
    after = await until_phase(gateway, phase)
    assert after["pid"] != before["pid"]
    assert after["left_s"] < before["left_s"] + 1
    assert gateway.events("leave.goes_on")[0]["phase"] == phase
    busy.behave(token_interval_s=0.0)
    await chat
    if phase == "waiting":
        gateway.configure(leave={"quiet_s": 0.2})  # Long so far, so that this phase outlives the daemon's absence.
        assert (await gateway.cli("reload"))[0] == 0
    out, err = await follower.communicate()
    assert (follower.returncode, err) == (LEFT, b""), out + err
    assert await has_ended(gateway) == BY_COMMAND
    await gateway.start()
    await until_said(gateway, 200)
    assert (await leaving(gateway))["phase"] is None


async def test_a_leave_of_long_ago_is_forgotten(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A daemon that somebody stopped in the middle of a leave, and starts hours later, is wanted back."""
    gateway = leaves(make_gateway, quiet_s=300.0, balancer_s=3000.0, timeout_s=3000.0)
    await gateway.start()
    await post(gateway, "/v1/leave")
    assert await gateway.terminate() == 0
    assert await said(gateway) == 503
    record = Path(gateway.directory / "run" / "processes.json")
    content = json.loads(record.read_text())
    content["leave"]["at"] -= 3600
    record.write_text(json.dumps(content))
    await gateway.start()
    await until_said(gateway, 200)
    assert "was leaving when the last daemon ended" in gateway.events("state.ignored")[0]["reason"]


async def test_whoever_does_not_ask_whether_it_is_ready_is_refused_in_the_end(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Requests that go on coming do not keep a gateway for ever, and that they did is said."""
    gateway = leaves(make_gateway, quiet_s=3.0, balancer_s=4.0)
    await gateway.start()
    await engine(gateway.socket("r1"), token_interval_s=0.02)
    await gateway.until_states({"r1": "serving"})
    load = Load(gateway.url())
    await load.more(5)
    code, out, err = await gateway.cli("leave")
    await load.end()
    assert code in (LEFT, CUT), out + err
    (draining,) = gateway.events("leave.draining")
    assert not draining["quiet"] or load.longest_pause_s > 2.0  # On a busy machine nobody may have asked for a while.
