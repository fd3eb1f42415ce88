"""Saved state is a hint, processes are what they are: whatever is lost, truncated or killed, the service goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from gateway_sidecar.supervision.process import start_ticks
from tests.stopping import stop
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of, take_away, until_gone

GARBAGE = {
    "truncated": '{"version": 1, "services": {"chat": [{"repl',
    "empty": "",
    "bytes": "\x00\x01 no JSON",
    "newer": '{"version": 99}',
    "other form": '{"version": 1, "services": null, "routers": [], "nginx": {"pid": -1, "start_ticks": 1}}',
    "foreign rests": '{"version": 1, "services": {}, "resting": [[18000], "x"]}',
    "endless": '{"version": 1, "resting": [[1e999, 1]], "nginx": {"pid": 1e999, "start_ticks": 1, "boot_id": ""}}',
    "foreign rows": '{"version": 1, "services": {"chat": [{"port": "x"}, 7]}, "routers": {"chat": [{"pid": 1}]}}',
}


async def test_garbage_records_are_told_and_ignored(gateway: Gateway, engine: StartEngine) -> None:
    """Truncated, garbage, from a newer version: the daemon starts, says so, and everybody serves."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    for name, text in GARBAGE.items():
        await gateway.terminate()
        (gateway.directory / "state" / "leases.json").write_text(text)
        await gateway.start()
        after = await gateway.until_states({"r1": "serving"})
        assert gateway.events("state.ignored") or name == "other form"
        assert replica_of(after, "r1")["worker_id"] == replica_of(before, "r1")["worker_id"], name
    for name in ("endless", "foreign rows"):  # Each costs a router, whose ports rest for a while.
        await gateway.terminate()
        (gateway.directory / "run" / "processes.json").write_text(GARBAGE[name])
        await gateway.start()
        await gateway.until_states({"r1": "serving"})
        assert await stream_chat(gateway, 3), name


async def test_processes_that_no_record_tells_of_are_found(gateway: Gateway, engine: StartEngine) -> None:
    """A daemon may die between a start and its record: nginx is adopted all the same, a router without key ended."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    await gateway.kill()
    (gateway.directory / "run" / "processes.json").unlink()
    await gateway.start()
    after = await gateway.until_states({"r1": "serving"})
    assert after["nginx"]["pid"] == before["nginx"]["pid"]
    await until_gone(service_of(before)["router"]["pid"])
    assert replica_of(after, "r1")["bridge"] == replica_of(before, "r1")["bridge"]


async def test_daemon_that_died_in_the_moment_that_it_started_the_router(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """What the next one needs was written down before: it adopts the router, whatever that has begun meanwhile."""
    gateway = make_gateway()
    command, port_file, pid_file = (gateway.directory / name for name in ("smg", "router.port", "router.pid"))
    # Of its arguments the fifth is the port of its API.
    command.write_text(f"""#!/bin/sh
[ -e {pid_file} ] || {{ kill -9 $PPID; echo $5 > {port_file}; echo $$ > {pid_file}; }}
exec {Path(sys.executable).parent / "smg"} "$@"
""")
    command.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(command)}
    await gateway.start(ready=False)
    assert gateway.process is not None
    assert await gateway.process.wait() == -signal.SIGKILL
    await until_router_answers(port_file, pid_file)
    await gateway.start()
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    assert service_of(status)["router"]["pid"] == int(pid_file.read_text())
    assert gateway.events("router.leftover_stopped") == []


async def until_router_answers(port_file: Path, pid_file: Path) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError, FileNotFoundError):
                pid_file.read_text()
                async with session.get(f"http://127.0.0.1:{int(port_file.read_text())}/liveness") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("daemon_dies", ["before", "after"])
async def test_port_rests_as_long_as_a_worker_may_yet_appear_there(
    gateway: Gateway, engine: StartEngine, daemon_dies: str
) -> None:
    """SMG cannot take back a registration that it has accepted: its port is nobody's for a while, whichever daemon."""
    hung = await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    hung.behave(hang=True)
    os.kill(service_of(status)["router"]["pid"], signal.SIGKILL)  # The next one is told of it, and tries.
    status = await gateway.until(lambda s: replica_of(s, "r1")["reason"] == "the router says pending")
    if daemon_dies == "before":
        await gateway.kill()
    gateway.socket("r1").unlink()
    if daemon_dies == "before":
        await gateway.start()
    await gateway.until(lambda s: states_of(s) == {} and s["bridge_ports"]["quarantined"] == 1)
    if daemon_dies == "after":
        await gateway.until(
            lambda _: recorded_rests(gateway) == [replica_of(status, "r1")["bridge"].rpartition(":")[2]]
        )
        await gateway.kill()
        await gateway.start()
    else:
        await gateway.until_workers(lambda workers: workers == [])
    await engine(gateway.socket("r2"))
    assert (await gateway.until_states({"r2": "serving"}))["bridge_ports"]["quarantined"] == 1


def recorded_rests(gateway: Gateway) -> list[str]:
    record = json.loads((gateway.directory / "state" / "leases.json").read_text())
    return [str(port) for port, *_ in record["resting"]]


async def test_router_of_a_service_removed_while_no_daemon_ran_is_ended(make_gateway: MakeGateway) -> None:
    """The record tells of it, though no service does; without the record its output does."""
    for record_is_lost in (False, True):
        gateway = make_gateway(services=("chat", "code"))
        await gateway.start()
        before = await gateway.status()
        await gateway.kill()
        if record_is_lost:
            (gateway.directory / "run" / "processes.json").unlink()
        gateway.settings["services"].pop()
        await gateway.start()
        await until_gone(service_of(before, "code")["router"]["pid"])
        if not record_is_lost:
            assert service_of(await gateway.status())["router"]["pid"] == service_of(before)["router"]["pid"]


@pytest.mark.parametrize("ending", ["killed", "ended", "stopped with all"])
async def test_router_of_a_removed_service_is_ended_whatever_becomes_of_the_daemon(
    make_gateway: MakeGateway, ending: str
) -> None:
    """It is written down until it is gone: here it hangs, and does not go when it is asked to."""
    gateway = make_gateway(services=("chat", "code"))
    await gateway.start()
    pid = service_of(await gateway.status(), "code")["router"]["pid"]
    stop(pid)
    gateway.configure(services=gateway.settings["services"][:1])
    assert (await gateway.cli("reload"))[1] == "changed: code: removed\n"
    assert start_ticks(pid) is not None, "nothing waits for it"
    record = gateway.directory / "run" / "processes.json"
    async with asyncio.timeout(60):
        while [row["pid"] for row in json.loads(record.read_text())["departing"].get("code", [])] != [pid]:
            await asyncio.sleep(0.01)
    if ending == "stopped with all":
        assert (await gateway.cli("stop", "--all"))[0] == 0
        assert start_ticks(pid) is None
        return
    await (gateway.kill() if ending == "killed" else gateway.terminate())
    assert start_ticks(pid) is not None
    await gateway.start()
    assert [row["pid"] for row in gateway.events("router.leftover_stopped")] == [pid]
    await until_gone(pid)
    async with asyncio.timeout(60):
        while json.loads(record.read_text())["departing"]:
            await asyncio.sleep(0.01)


async def test_record_of_a_dead_nginx_does_not_hide_the_living_one(gateway: Gateway, engine: StartEngine) -> None:
    """The daemon died after it had started nginx again and before it could write that down."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    await gateway.kill()
    path = gateway.directory / "run" / "processes.json"
    record = json.loads(path.read_text())
    record["nginx"]["start_ticks"] -= 1
    path.write_text(json.dumps(record))
    await gateway.start()
    assert (await gateway.until_states({"r1": "serving"}))["nginx"]["pid"] == before["nginx"]["pid"]


async def test_leases_are_never_lost_while_a_daemon_starts(gateway: Gateway, engine: StartEngine) -> None:
    """A daemon may die at any line, in its start too: until it has taken the leases up, the file keeps them."""
    for name in ("r1", "r2", "r3"):
        await engine(gateway.socket(name))
    wanted = {"r1": "serving", "r2": "serving", "r3": "serving"}
    await gateway.until_states(wanted)
    leases = gateway.directory / "state" / "leases.json"

    def rows() -> int:
        return sum(row["facts"] is not None for row in json.loads(leases.read_text())["services"]["chat"])

    while rows() < 3:
        await asyncio.sleep(0.01)
    await gateway.kill()
    await gateway.start(ready=False)
    seen: set[int] = set()
    watching = asyncio.create_task(gateway.until_states(wanted))
    while not watching.done():
        seen.add(rows())
        await asyncio.sleep(0.001)
    await watching
    assert seen == {3}


async def test_state_directory_removed_while_running(gateway: Gateway, engine: StartEngine) -> None:
    """Everything goes on, and is written down again with the next change."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    take_away(gateway.directory / "state")
    take_away(gateway.directory / "run" / "nginx")
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    leases = gateway.directory / "state" / "leases.json"
    while not leases.exists() or len(json.loads(leases.read_text())["services"]["chat"]) < 2:
        await asyncio.sleep(0.01)
    assert await stream_chat(gateway, 3)
    while not (gateway.directory / "state" / "nginx-temp" / "client_body").exists():
        await asyncio.sleep(0.01)
    large = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 1_000_000}], "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=large) as response,
    ):
        assert response.status == 200, await response.text()
    pid = service_of(await gateway.status())["router"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await gateway.until(lambda s: service_of(s)["router"]["pid"] not in (None, pid) and s["ready"])
    await gateway.until_states({"r1": "serving", "r2": "serving"})


async def test_state_that_cannot_be_written_is_told_and_survived(gateway: Gateway, engine: StartEngine) -> None:
    """A full or read-only disk: keep serving with what is known, and say so."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    state = gateway.directory / "state"
    state.rename(gateway.directory / "aside")
    state.write_text("in the way")
    await engine(gateway.socket("r2"))
    await gateway.until(
        lambda s: any("cannot write" in it for it in s["problems"]) and states_of(s).get("r2") == "serving"
    )
    assert "r" in await ask(gateway, "tiny", stream=False)
    state.unlink()
    await gateway.until(lambda s: not s["problems"])


async def test_nginx_master_killed_and_its_orphans_stopped(gateway: Gateway, engine: StartEngine) -> None:
    """The workers that a dead master leaves hold the ports: they are stopped, and the bridges are back."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    master = before["nginx"]["pid"]
    workers = [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    os.kill(master, signal.SIGKILL)
    after = await gateway.until(lambda s: s["nginx"]["state"] == "up" and s["nginx"]["pid"] != master)
    assert all(start_ticks(pid) is None for pid in workers)
    assert await stream_chat(gateway, 3)
    assert replica_of(after, "r1")["worker_id"] == replica_of(before, "r1")["worker_id"]
    assert gateway.events("nginx.orphans_stopped")[0]["workers"] == len(workers)


async def test_nginx_that_hangs_is_started_again(gateway: Gateway, engine: StartEngine) -> None:
    """It runs, it listens, the kernel takes every connection, and nobody answers: that is told and ended."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    master = before["nginx"]["pid"]
    for worker in Path(f"/proc/{master}/task/{master}/children").read_text().split():
        stop(int(worker))
    after = await gateway.until(lambda s: s["nginx"]["state"] == "up" and s["nginx"]["pid"] != master)
    assert [event["pid"] for event in gateway.events("nginx.hung")] == [master]
    assert await stream_chat(gateway, 3)
    assert replica_of(after, "r1")["worker_id"] == replica_of(before, "r1")["worker_id"]


async def test_drained_then_resumed_replica_is_released_when_it_goes(gateway: Gateway, engine: StartEngine) -> None:
    """A drain that was taken back leaves nothing behind."""
    here = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await gateway.cli("drain", "chat", "r1"))[0] == 0
    assert (await gateway.cli("resume", "chat", "r1"))[0] == 0
    await gateway.until_states({"r1": "serving"})
    await here.stop()
    status = await gateway.until_states({})
    assert (status["bridge_ports"]["leased"], status["bridge_ports"]["quarantined"]) == (0, 0)


async def test_a_drain_and_its_end_are_written_down_before_they_are_answered(
    gateway: Gateway, engine: StartEngine
) -> None:
    """Whoever was told that it is safe to stop, or that it serves again, is right of the next daemon, too."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    replica, record = "http://daemon/v1/services/chat/replicas/r1", gateway.directory / "state" / "leases.json"
    for action, drains in (("drain", True), ("resume", False), ("drain", True), ("resume", False)):
        async with gateway.session.post(f"{replica}/{action}") as answer:
            assert answer.status == 200
        assert [row["drain"] for row in json.loads(record.read_text())["services"]["chat"]] == [drains]
    await gateway.kill()
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    assert "drain requested" not in {event["reason"] for event in gateway.events("replica.draining")}


async def test_a_replica_that_went_while_neither_daemon_nor_record_was_there_is_waited_for(
    gateway: Gateway, engine: StartEngine
) -> None:
    """Its link alone tells of it: until nothing of it is in flight it is listed, for until then it is needed."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 100_000, started))
    await started.wait()
    await gateway.kill()
    (gateway.directory / "state" / "leases.json").unlink()
    gateway.socket("r1").unlink()
    await gateway.start(ready=False)
    status = await gateway.until_states({"r1": "draining"})
    assert replica_of(status, "r1")["reason"] == "socket gone"
    assert not stream.done()
    stream.cancel()
    await gateway.until_states({})


async def test_engine_that_died_with_the_daemon_and_its_records(gateway: Gateway, engine: StartEngine) -> None:
    """Nobody remembers what it was, and it cannot say so any more: its worker goes all the same."""
    dying = await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"))
    before = await gateway.until_states({"r1": "serving", "r2": "serving"})
    await kill_and_take_state_away(gateway)
    await dying.kill()
    await gateway.start()
    await gateway.until_workers(lambda workers: [w["status"] for w in workers] == ["ready"])
    after = await gateway.until_states({"r1": "loading", "r2": "serving"})
    assert replica_of(after, "r2")["worker_id"] == replica_of(before, "r2")["worker_id"]
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})


async def kill_and_take_state_away(gateway: Gateway) -> None:
    """Once run_dir says which routers run: until then their output tells, which goes with state_dir."""
    record, names = gateway.directory / "run" / "processes.json", [it["name"] for it in gateway.settings["services"]]

    def is_written() -> bool:
        routers = json.loads(record.read_text())["routers"]
        return all(routers[name] and all(row["identity"] for row in routers[name]) for name in names)

    while not record.exists() or not is_written():
        await asyncio.sleep(0.01)
    await gateway.kill()
    take_away(gateway.directory / "state")


async def test_log_directory_removed_while_no_daemon_ran(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """nginx refuses any new configuration without it: it is made again, and the new service is served."""
    gateway = make_gateway(services=("chat", "code"))
    both = gateway.settings["services"]
    gateway.settings["services"] = both[:1]
    await gateway.start()
    await engine(gateway.socket("r1", "code"))
    await kill_and_take_state_away(gateway)
    gateway.settings["services"] = both
    await gateway.start()
    await gateway.until_states({"r1": "serving"}, service="code")
    assert "r1" in await ask(gateway, "tiny", stream=False, service="code")
    assert gateway.events("nginx.not_reloaded") == []


async def test_nginx_that_cannot_be_reconfigured_serves_what_it_has(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A daemon starts, says so, and tries again."""
    gateway = make_gateway(services=("chat", "code"))
    both = gateway.settings["services"]
    gateway.settings["services"] = both[:1]
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    await gateway.kill()
    log = gateway.directory / "state" / "log"
    log.rename(log.with_name("moved"))
    log.write_text("in the way")
    gateway.settings["services"] = both
    await gateway.start(ready=False)
    status = await gateway.until(
        lambda s: "refuses its configuration" in (service_of(s, "code")["not_in_force"] or ""), within_s=60
    )
    assert service_of(status, "chat")["not_in_force"] is None
    assert status["nginx"]["pid"] == before["nginx"]["pid"]
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)
    log.unlink()
    await engine(gateway.socket("r2", "code"))
    await gateway.until(lambda s: service_of(s, "code")["not_in_force"] is None)
    await gateway.until_states({"r2": "serving"}, service="code")
    assert "r2" in await ask(gateway, "tiny", stream=False, service="code")


async def test_port_of_a_lost_lease_is_nobodys_while_it_is_in_use(gateway: Gateway, engine: StartEngine) -> None:
    """The replica has left, its link is gone, and the record too: who is still connected there tells."""
    leaving = await engine(gateway.socket("r1"))
    port = int(replica_of(await gateway.until_states({"r1": "serving"}), "r1")["bridge"].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: r1\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    gateway.socket("r1").unlink()
    await gateway.until_states({"r1": "draining"})
    await kill_and_take_state_away(gateway)
    await gateway.start()
    await engine(gateway.socket("r2"))
    status = await gateway.until_states({"r2": "serving"})
    assert not replica_of(status, "r2")["bridge"].endswith(f":{port}")
    assert status["bridge_ports"]["quarantined"] == 1
    writer.close()
    await leaving.stop()


async def test_drain_of_an_engine_that_nobody_remembers(gateway: Gateway, engine: StartEngine) -> None:
    """Nor can it say what it was: whatever worker the router has at its bridge is taken out."""
    hung = await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    await kill_and_take_state_away(gateway)
    hung.behave(hang=True)
    await gateway.start()
    await gateway.until(lambda s: set(states_of(s)) == {"r1", "r2"})
    assert len(await gateway.workers()) == 2, "it may be busy"
    code, out, err = await gateway.cli("drain", "chat", "r1")
    assert (code, err) == (0, ""), out
    await gateway.until_workers(lambda workers: len(workers) == 1)
    hung.behave(hang=False)
    await gateway.cli("resume", "chat", "r1")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
