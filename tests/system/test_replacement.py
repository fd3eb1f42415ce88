"""A router is replaced by another without a gap, and everything can be taken down in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from examples.simulated import EngineKind
from gateway_sidecar.supervision.process import start_ticks
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartAs, StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of, states_of
from tests.users import ONE

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


class Load:
    """Clients that ask again and again until they are told to stop."""

    def __init__(self, gateway: Gateway, clients: int = 6) -> None:
        self._gateway = gateway
        self._stop = asyncio.Event()
        self.outcomes: Counter[str] = Counter()
        self._clients = [asyncio.create_task(self._client(stream=i % 2 == 0)) for i in range(clients)]

    async def _client(self, *, stream: bool) -> None:
        async with self._gateway.client() as session:
            while not self._stop.is_set():
                if stream:
                    await stream_chat(self._gateway, 3)
                    self.outcomes["200"] += 1
                    continue
                async with session.post(f"{self._gateway.url()}/v1/chat/completions", json=BODY) as response:
                    text = await response.text()
                    self.outcomes[str(response.status) if response.status == 200 else text] += 1

    async def answered(self, more: int) -> None:
        """Waits for so many more answers."""
        wanted = self.outcomes["200"] + more
        while self.outcomes["200"] < wanted:
            assert not any(client.done() for client in self._clients), "a client failed"
            await asyncio.sleep(0.01)

    async def stop(self) -> Counter[str]:
        self._stop.set()
        await asyncio.gather(*self._clients)
        return self.outcomes


def router_is_new(status: Status, *, old: int) -> bool:
    router = service_of(status)["router"]
    return router["state"] == "up" and router["pid"] not in (None, old)


async def test_router_is_replaced_without_a_failed_request(gateway: Gateway, engine: StartEngine) -> None:
    """The new one has every worker before the service address moves; the old one finishes its streams."""
    for i in range(4):
        kind = EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP
        await engine(gateway.socket(f"r{i}"), kind)
    slow = await engine(gateway.socket("slow"), model="slow", token_interval_s=0.05)
    wanted = {"slow": "serving", **{f"r{i}": "serving" for i in range(4)}}
    before = await gateway.until_states(wanted)
    load = Load(gateway)
    await load.answered(20)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started, model="slow"))
    await started.wait()
    old_pid = service_of(before)["router"]["pid"]
    for _ in range(2):
        code, out, err = await gateway.cli("router", "restart", "chat")
        assert (code, err) == (0, "")
        assert "has a new router" in out
        await load.answered(20)
    assert (await stream).split()[-1] == "59"
    assert (await load.stop()).keys() == {"200"}
    after = await gateway.until_states(wanted)
    assert router_is_new(after, old=old_pid)
    while start_ticks(old_pid) is not None:
        await asyncio.sleep(0.05)
    assert after["nginx"]["reloads"] == 0, "a reload would cost clients their kept connections"
    assert slow.ledger.aborted == 0
    for name in wanted:
        assert replica_of(after, name)["bridge"] == replica_of(before, name)["bridge"]
    assert len(await gateway.workers()) == 5


async def test_router_that_will_not_start_leaves_the_old_one(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A replacement that fails changes nothing, and says why."""
    gateway = make_gateway()
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    broken = gateway.directory / "smg"
    broken.write_text("#!/bin/sh\nexit 5\n")
    broken.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(broken), "start_timeout_s": 2}
    gateway.configure()
    for _ in range(2):  # What is not in force is not taken for the settings: the next reload says so again.
        code, out, err = await gateway.cli("reload")
        assert (code, out) == (1, "nothing changed\n")
        assert "not in force: chat: router: the new router was not put in place" in err
        assert "exit code 5" in err
    after = await gateway.status()
    assert service_of(after)["router"]["pid"] == service_of(before)["router"]["pid"]
    assert states_of(after) == {"r1": "serving"}
    assert await stream_chat(gateway, 3)


async def test_arguments_that_smg_refuses_are_told_at_once(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """By `check` before, by `reload` without waiting for a router that will never be there; with SMG's own words."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"start_timeout_s": 300}
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = service_of(await gateway.until_states({"r1": "serving"}))["router"]
    gateway.settings["services"][0]["router"]["args"] = ["--no-such-option", "1"]
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code == 1
    assert "FAIL  chat: router.args: smg: error: unrecognized arguments: --no-such-option 1" in out
    for _ in range(2):
        async with asyncio.timeout(100):  # The settings' 300 s would be waited for.
            code, out, err = await gateway.cli("reload")
        assert (code, out) == (1, "nothing changed\n")
        assert "exit code 2: smg: error: unrecognized arguments: --no-such-option 1; fix router.args" in err
    status = await gateway.status()
    assert service_of(status)["router"]["pid"] == before["pid"]
    assert "unrecognized arguments" in service_of(status)["router"]["reason"]
    assert await stream_chat(gateway, 3)
    gateway.settings["services"][0]["router"]["args"] = ["--max-tree-size", "1000"]
    gateway.configure()
    assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: router\n")


async def test_new_service_whose_arguments_smg_refuses_is_told(make_gateway: MakeGateway) -> None:
    """The reload that adds it says so, and fails; the other service is left alone."""
    gateway = make_gateway(services=("chat", "code"))
    both = gateway.settings["services"]
    gateway.settings["services"] = both[:1]
    await gateway.start()
    both[1]["router"] = {"args": ["--no-such-option"]}
    gateway.configure(services=both)
    for changes in ("changed: code: added\n", "nothing changed\n"):
        code, out, err = await gateway.cli("reload")
        assert (code, out) == (1, changes)
        assert "not in force: code: router: ended while starting, exit code 2: smg: error: unrecognized" in err
    status = await gateway.status()
    assert (service_of(status)["router"]["state"], service_of(status, "code")["router"]["state"]) == ("up", "refused")
    del both[1]["router"]
    gateway.configure(services=both)
    code, out, err = await gateway.cli("reload")
    assert (code, out) == (0, "changed: code: router\n"), err
    await gateway.until(lambda s: s["ready"])


@pytest.mark.own_users
async def test_router_that_outgrows_its_limit_is_replaced(make_gateway: MakeGateway, start: StartAs) -> None:
    """Resident memory is watched; beyond the limit a new router takes over."""
    gateway = make_gateway()
    await gateway.start()
    await start(ONE, gateway.socket("r1"))
    before = service_of(await gateway.until_states({"r1": "serving"}))["router"]["pid"]
    gateway.settings["services"][0]["router"] = {"memory_limit_mb": 10_000}
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    calm = service_of(await gateway.until_states({"r1": "serving"}))["router"]["pid"]
    assert calm != before, "a changed router setting makes a new router"
    assert gateway.events("router.outgrown") == []
    gateway.settings["services"][0]["router"] = {"memory_limit_mb": 16, "args": ["--max-tree-size", "1000"]}
    gateway.configure()
    await gateway.cli("reload")
    while not gateway.events("router.outgrown"):
        assert service_of(await gateway.status())["router"]["pid"] is not None
        await asyncio.sleep(0.05)
    assert gateway.events("router.outgrown")[0]["limit_mb"] == 16
    assert await stream_chat(gateway, 3)


async def test_daemon_that_dies_in_a_replacement_leaves_one_router(gateway: Gateway, engine: StartEngine) -> None:
    """The next daemon adopts the router in service and ends the other."""
    for i in range(3):
        await engine(gateway.socket(f"r{i}"))
    slow = await engine(gateway.socket("slow"), model="slow", token_interval_s=0.1)
    wanted = {"slow": "serving", **{f"r{i}": "serving" for i in range(3)}}
    before = await gateway.until_states(wanted)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 1000, started, model="slow"))
    await started.wait()  # So that there are two routers until it ends, however late somebody looks.
    replacing = asyncio.create_task(gateway.cli("router", "restart", "chat"))
    record = gateway.directory / "run" / "processes.json"
    known: list[dict[str, int]] = []
    while len(known) < 2:
        known = [row["identity"] for row in json.loads(record.read_text())["routers"]["chat"] if row["identity"]]
        await asyncio.sleep(0.001)
    await gateway.kill()
    await replacing
    await gateway.start()
    slow.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "999"
    await gateway.until_states(wanted)
    after = await gateway.status()
    pids = {service_of(before)["router"]["pid"], *(identity["pid"] for identity in known)}
    assert len(pids) == 2
    while len(alive := {pid for pid in pids if start_ticks(pid) is not None}) > 1:
        await asyncio.sleep(0.05)
    assert alive == {service_of(after)["router"]["pid"]}
    assert await stream_chat(gateway, 3)


async def test_stop_leaves_everything_running_and_stop_all_nothing(gateway: Gateway, engine: StartEngine) -> None:
    """`stop` ends the daemon alone; `stop --all` lets the streams finish and takes all down in order."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    status = await gateway.until_states({"r1": "serving"})
    pids = [service_of(status)["router"]["pid"], status["nginx"]["pid"]]
    assert (await gateway.cli("stop"))[1] == "stopped; nginx and the routers go on\n"
    assert all(start_ticks(pid) is not None for pid in pids)
    assert await stream_chat(gateway, 3)
    await gateway.start()
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 40, started))
    await started.wait()
    assert (await gateway.cli("stop", "--all"))[1] == "stopped, with nginx and all routers\n"
    assert (await stream).split()[-1] == "39"
    assert gateway.process is not None
    await gateway.process.wait()
    assert [start_ticks(pid) for pid in pids] == [None, None]


async def test_stop_all_is_bounded_and_takes_no_new_requests(gateway: Gateway, engine: StartEngine) -> None:
    """A stream that does not end in time is cut; meanwhile nobody new is let in, and an engine is still reached."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    status = await gateway.until_states({"r1": "serving"})
    pids = [service_of(status)["router"]["pid"], status["nginx"]["pid"]]
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 10_000, started))
    await started.wait()
    assert "timeout_s" in (await gateway.cli("stop", "--all", "--timeout", "-1"))[2]
    began = time.monotonic()
    stopping = asyncio.create_task(gateway.cli("stop", "--all", "--timeout", "3"))
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(f"{gateway.url()}/v1/chat/completions", json=BODY) as response:
                    assert response.status == 200
            except aiohttp.ClientConnectorError:
                break
            except aiohttp.ClientConnectionError:
                continue  # A kept connection is closed, as it may be between two requests.
    goes_on = not stream.done()
    assert goes_on or time.monotonic() - began > 3, "the address is closed while the stream goes on"
    assert (await stopping)[1] == "stopped, with nginx and all routers\n"
    assert time.monotonic() - began > 3
    with pytest.raises((AssertionError, aiohttp.ClientError)):
        await stream
    assert gateway.events("daemon.cut_off")[0]["connections"] >= 1
    assert gateway.process is not None
    assert await gateway.process.wait() == 79
    assert [start_ticks(pid) for pid in pids] == [None, None]


async def test_second_interrupt_does_not_wait(gateway: Gateway, engine: StartEngine) -> None:
    """Ctrl-C waits for what is in flight; Ctrl-C again does not."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 10_000, started))
    await started.wait()
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGINT)
    with suppress(aiohttp.ClientError):
        while True:
            await gateway.status()  # Until the daemon is on its way out.
            await asyncio.sleep(0.02)
    gateway.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        assert await gateway.process.wait() == 0
    with pytest.raises((AssertionError, aiohttp.ClientError)):
        await stream


async def test_socket_that_goes_and_comes_back_is_a_new_stay(gateway: Gateway, engine: StartEngine) -> None:
    """The same inode, moved away and back while a stream holds its old bridge: two stays that do not fight."""
    here = await engine(gateway.socket("r1"), token_interval_s=0.1)
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 1000, started))
    await started.wait()
    aside = gateway.directory / "aside.sock"
    gateway.socket("r1").rename(aside)
    await gateway.until_state("r1", "draining")
    aside.rename(gateway.socket("r1"))
    status = await gateway.until(
        lambda s: sorted(r["state"] for r in service_of(s)["replicas"]) == ["draining", "serving"]
    )
    serving = next(r for r in service_of(status)["replicas"] if r["state"] == "serving")
    assert serving["bridge"] != before["bridge"]
    here.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "999"
    status = await gateway.until_states({"r1": "serving"})
    assert replica_of(status, "r1")["worker_id"] == serving["worker_id"]


async def test_router_that_is_slow_to_go_holds_nobody_up(gateway: Gateway, engine: StartEngine) -> None:
    """While an old router finishes a long stream: the daemon is well, may die, drains end, and both slots are known."""
    slow = await engine(gateway.socket("slow"), model="slow", token_interval_s=0.1)
    await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"))
    wanted = {"slow": "serving", "r1": "serving", "r2": "serving"}
    await gateway.until_states(wanted)
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    before = await gateway.until(lambda s: router_is_new(s, old=0))
    while len(json.loads((gateway.directory / "run" / "processes.json").read_text())["routers"]["chat"]) > 1:
        await asyncio.sleep(0.05)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 3000, started, model="slow"))
    await started.wait()
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    code, out, err = await gateway.cli("drain", "chat", "r1", "--timeout", "60")
    assert (code, err) == (0, ""), out
    await gateway.kill()
    await gateway.start()
    code, out, err = await gateway.cli("drain", "chat", "r2", "--timeout", "60")
    assert code == 0, (out, err)
    assert not stream.done()
    slow.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "2999"
    while start_ticks(service_of(before)["router"]["pid"]) is not None:
        await asyncio.sleep(0.05)
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    after = await gateway.until_states({"slow": "serving", "r1": "draining", "r2": "draining"})
    assert after["nginx"]["reloads"] == 0
    assert gateway.events("daemon.wedged") == []
    assert gateway.events("loop.failed") == []


async def test_router_of_other_arguments_is_replaced_by_the_next_daemon(gateway: Gateway, engine: StartEngine) -> None:
    """Whatever was changed while no daemon ran: the router is adopted first, and then replaced without a gap."""
    for i in range(4):
        await engine(gateway.socket(f"r{i}"), EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP)
    wanted = {f"r{i}": "serving" for i in range(4)}
    old = service_of(await gateway.until_states(wanted))["router"]["pid"]
    load = Load(gateway)
    await load.answered(20)
    assert await gateway.terminate() == 0
    gateway.settings["services"][0]["router"] = {"args": ["--max-tree-size", "1000"]}
    await gateway.start()
    await gateway.until(lambda status: router_is_new(status, old=old))
    await load.answered(20)
    assert (await load.stop()).keys() == {"200"}
    assert [event["pid"] for event in gateway.events("router.outdated")] == [old]
    assert gateway.events("router.adopted")[0]["pid"] == old
    new = service_of(await gateway.until_states(wanted))["router"]["pid"]
    assert await gateway.terminate() == 0
    await gateway.start()
    assert service_of(await gateway.until_states(wanted))["router"]["pid"] == new, "nothing changed this time"
    assert gateway.events("router.outdated") == []


async def test_router_of_another_program_is_replaced_or_kept(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """An upgrade that is broken leaves the old router in service, and `status` says why."""
    gateway = make_gateway()
    program = gateway.directory / "smg"
    good = (Path(sys.executable).parent / "smg").read_text()
    program.write_text(good)
    program.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(program), "start_timeout_s": 4}
    await gateway.start()
    await engine(gateway.socket("r1"))
    old = service_of(await gateway.until_states({"r1": "serving"}))["router"]["pid"]
    assert await gateway.terminate() == 0
    program.write_text("#!/bin/sh\necho no such library\nexit 5\n")
    await gateway.start()
    status = await gateway.until(lambda status: service_of(status)["router"]["reason"])
    assert service_of(status)["router"]["pid"] == old
    assert "exit code 5" in service_of(status)["router"]["reason"]
    assert await stream_chat(gateway, 3)
    program.write_text(good + "\n# another release\n")
    code, out, _ = await gateway.cli("router", "restart", "chat")
    assert code == 0, out
    status = await gateway.until(lambda status: router_is_new(status, old=old))
    assert service_of(status)["router"]["reason"] == ""
    assert await stream_chat(gateway, 3)


async def test_router_that_died_without_a_daemon_while_its_predecessor_finishes(
    gateway: Gateway, engine: StartEngine
) -> None:
    """The next one is started where the service address leads, and not in the place of the one that is leaving."""
    here = await engine(gateway.socket("r1"), token_interval_s=0.1)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 3000, started))
    await started.wait()
    old = service_of(await gateway.status())["router"]["pid"]
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    await gateway.router_key()  # It is written down.
    dying = service_of(await gateway.status())["router"]["pid"]
    await gateway.kill()
    os.kill(dying, signal.SIGKILL)
    await gateway.start()
    status = await gateway.until_states({"r1": "serving"})
    assert service_of(status)["router"]["pid"] not in (old, dying)
    await engine(gateway.socket("r2"), model="other")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert "r2" in await ask(gateway, "other", stream=False), "nobody tells the old one of it"
    assert start_ticks(old) is not None, "it finishes its stream"
    here.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "2999"
