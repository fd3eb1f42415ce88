"""What an operator does: check, plan, status, reload, drain by wrong names, metrics, restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from itertools import pairwise

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from examples.simulated import EngineKind
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of, until_gone

REPLICA_KEYS = {
    "id", "state", "state_age_s", "socket", "bridge", "worker_id", "worker_type", "connection_mode", "runtime_type",
    "model", "reason",
}  # fmt: skip


async def test_status_has_the_promised_names(gateway: Gateway, engine: StartEngine) -> None:
    """Other tools rely on these names."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    code, out, err = await gateway.cli("status", "--json")
    assert (code, err) == (0, "")
    status = json.loads(out)
    service = service_of(status)
    assert {"name", "listen", "router", "replicas"} <= service.keys()
    assert {"type", "state", "url", "pid", "restarts", "metrics_url"} <= service["router"].keys()
    assert service["replicas"][0].keys() >= REPLICA_KEYS
    code, out, _ = await gateway.cli("status")
    assert code == 0
    assert "serving" in out
    assert "sglang/http" in out


async def test_plan_of_a_fresh_and_of_a_running_daemon(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The plan is told and not carried out; at rest it is empty."""
    gateway = make_gateway()
    gateway.configure()
    await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"), load_s=3600)
    code, out, _ = await gateway.cli("plan")
    assert code == 0
    assert "chat/r1: bridge, then register http://<bridge> as regular sglang" in out
    assert "chat/r2: wait, without a bridge: loading" in out
    assert not (gateway.directory / "run").exists()
    await gateway.start()
    await gateway.until_states({"r1": "serving", "r2": "loading"})
    code, out, _ = await gateway.cli("plan", "--json")
    plan = json.loads(out)
    assert (plan["by"], plan["actions"], plan["reload"]["on_disk"]) == ("the running daemon", [], "in force")


async def test_plan_and_a_dry_run_say_what_a_reload_would_change_and_interrupt(gateway: Gateway) -> None:
    """And change nothing: the reload itself then changes just that."""
    gateway.settings["services"][0]["router"] = {"type": "smg", "api_timeout_s": 17}
    gateway.configure(log={"format": "json", "level": "info"})
    for command in (("plan",), ("reload", "--dry-run")):
        code, out, err = await gateway.cli(*command)
        assert (code, err) == (0, "")
        assert f"a reload of {gateway.config_path} would change:\n  log\n    interrupts: nothing\n" in out
        assert "  chat: router\n    interrupts: the router is replaced" in out
    gateway.configure(metrics={"listen": None})
    code, out, _ = await gateway.cli("reload", "--dry-run")
    assert "metrics: needs a restart of the daemon" in out
    gateway.config_path.write_text(gateway.config_path.read_text() + "nonsense: 1\n")
    code, _, err = await gateway.cli("reload", "--dry-run")
    assert (code, "nonsense: unknown setting" in err) == (78, True)


async def test_check_explains_and_changes_nothing(make_gateway: MakeGateway) -> None:
    """Taken ports, missing programs and directories are named; nothing is made."""
    gateway = make_gateway()
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code == 0, out
    assert "stream" in out
    assert not (gateway.directory / "run").exists()
    with socket.create_server(("127.0.0.1", gateway.ports["chat"])):
        gateway.settings["nginx"]["command"] = "/nowhere/nginx"
        gateway.settings["services"][0]["router"] = {"command": "/nowhere/smg"}
        gateway.configure()
        code, out, _ = await gateway.cli("check")
    assert code == 1
    assert f"FAIL  cannot listen on 127.0.0.1:{gateway.ports['chat']}: EADDRINUSE" in out
    assert "apt-get install nginx-light libnginx-mod-stream" in out
    assert "/nowhere/smg is not an executable file" in out


async def test_reload_touches_only_what_changed(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A new service comes, a changed one stays connected, a removed one goes; no stream breaks."""
    gateway = make_gateway(services=("chat", "code"))
    both = gateway.settings["services"]
    gateway.settings["services"] = both[:1]
    await gateway.start()
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    before = service_of(await gateway.until_states({"r1": "serving"}))
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    gateway.configure(services=both)
    code, out, _ = await gateway.cli("reload")
    assert (code, out) == (0, "changed: code: added\n")
    await engine(gateway.socket("r2", "code"))
    await gateway.until_states({"r2": "serving"}, service="code")
    assert "r2" in await ask(gateway, "tiny", stream=False, service="code")
    assert (await gateway.cli("reload"))[1] == "nothing changed\n"
    both[0]["health"] = {"interval_s": 3}
    gateway.configure(services=both[:1])
    code, out, _ = await gateway.cli("reload")
    assert (code, out) == (0, "changed: code: removed; chat: health\n")
    status = await gateway.until(lambda s: [x["name"] for x in s["services"]] == ["chat"])
    assert service_of(status)["router"]["pid"] == before["router"]["pid"]
    assert replica_of(status, "r1")["worker_id"] == before["replicas"][0]["worker_id"]
    assert (await stream).split()[-1] == "59"
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as session:
            await session.get(gateway.url("code"))


async def test_bad_config_changes_nothing_and_says_why(gateway: Gateway, engine: StartEngine) -> None:
    """By SIGHUP and by command: the old configuration stays, the reasons are told with their lines."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    gateway.config_path.write_text(gateway.config_path.read_text().replace("listen: 127", "lisen: 127"))
    code, _, err = await gateway.cli("reload")
    assert code == 78
    assert "did you mean 'listen'" in err
    gateway.configure(state_dir=str(gateway.directory / "other"))
    code, _, err = await gateway.cli("reload")
    assert code == 78
    assert "state_dir: cannot change while the daemon runs" in err
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    while len(gateway.events("config.refused")) < 2:
        await asyncio.sleep(0.01)
    after = await gateway.status()
    assert service_of(after)["router"] == service_of(before)["router"]
    assert states_of(after) == {"r1": "serving"}


async def test_config_with_ten_mistakes_gets_ten_messages(make_gateway: MakeGateway) -> None:
    """Every mistake in one go, each with its line; exit code 78."""
    gateway = make_gateway()
    gateway.config_path.write_text(
        "state_dir: relative/path\n"
        "rescan_interval_s: -1\n"
        "metrics: {listen: 127.0.0.1:99999}\n"
        "bridges: {ports: 24001-99999}\n"
        "colour: blue\n"
        "services:\n"
        "  - name: Chat Room\n"
        "    listen: example.org:30000\n"
        "    replicas: {sockets: /run/replicas/chat.sock}\n"
        "    router: {policy: fastest, args: [--port, '1']}\n"
    )
    for command in ("check", "run"):
        code, _, err = await gateway.cli(command)
        assert code == 78
        lines = err.splitlines()
        assert len(lines) == 10, err
        numbers = [int(line.removeprefix(f"{gateway.config_path}:").split(":")[0]) for line in lines]
        assert sorted(numbers) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 10]


async def test_unknown_names_are_answered_with_known_ones(gateway: Gateway, engine: StartEngine) -> None:
    """An error says what there is."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert "no service 'chta'; did you mean 'chat'? there are: chat" in (await gateway.cli("drain", "chta", "r1"))[2]
    assert "no replica 'r2'; there are: r1" in (await gateway.cli("drain", "chat", "r2"))[2]
    assert "timeout_s" in (await gateway.cli("drain", "chat", "r1", "--timeout", "-3"))[2]


async def test_commands_without_a_daemon_say_so(make_gateway: MakeGateway) -> None:
    """Nobody there is an error in words, exit code 1."""
    gateway = make_gateway()
    gateway.configure()
    code, _, err = await gateway.cli("status")
    assert code == 1
    assert "the daemon does not run" in err


async def test_second_daemon_is_kept_out(gateway: Gateway) -> None:
    """Two daemons never share a run_dir."""
    assert gateway.process is not None
    code, _, err = await gateway.cli("run")
    assert code == 1
    assert f"another gateway-sidecar (pid {gateway.process.pid}) runs" in err


async def metrics_of(gateway: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as response,
    ):
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_tell_the_story_and_forget_the_gone(gateway: Gateway, engine: StartEngine) -> None:
    """Replicas by state, changes, probes, times; the series of a vanished replica disappear."""
    one = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    found = await metrics_of(gateway)

    def value(name: str, **labels: str) -> float | None:
        return found.get((f"gateway_sidecar_{name}", frozenset(labels.items())))

    assert value("replicas", service="chat", state="serving") == 1
    assert value("replica_state_changes_total", service="chat", state="serving") == 1
    assert value("registrations_total", service="chat", outcome="ready") == 1
    assert value("router_up", service="chat") == 1
    assert value("bridge_ports", use="leased") == 1
    assert value("socket_to_serving_seconds_count", service="chat") == 1
    assert (value("probes_total", service="chat", kind="identify", outcome="ready") or 0) >= 1
    assert any("r1" in dict(labels).values() for _, labels in found)
    await one.stop()
    await gateway.until_states({})
    found = await metrics_of(gateway)
    assert not any("r1" in dict(labels).values() for _, labels in found)
    assert value("replicas", service="chat", state="serving") == 0
    assert value("deregistrations_total", service="chat", reason="socket_gone") == 1
    for path in ("/healthz", "/readyz"):
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{gateway.metrics_port}{path}") as response,
        ):
            assert response.status == 200


async def test_router_restart_by_config_change_keeps_replicas(gateway: Gateway, engine: StartEngine) -> None:
    """A changed policy gives the service a router with that policy and all of its workers."""
    await engine(gateway.socket("r1"))
    before = service_of(await gateway.until_states({"r1": "serving"}))
    gateway.settings["services"][0]["router"] = {"policy": "round_robin"}
    gateway.configure()
    assert (await gateway.cli("reload"))[1] == "changed: chat: router\n"
    await gateway.until(
        lambda s: (
            service_of(s)["router"]["pid"] not in (None, before["router"]["pid"]) and states_of(s) == {"r1": "serving"}
        ),
        within_s=60,
    )
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_daemon_killed_and_started_again_adopts_everything(gateway: Gateway, engine: StartEngine) -> None:
    """SIGKILL: nginx, router and streams go on; the next daemon deregisters and re-probes nobody."""
    engines = [await engine(gateway.socket(f"r{i}"), token_interval_s=0.05) for i in range(3)]
    wanted = {f"r{i}": "serving" for i in range(3)}
    before = await gateway.until_states(wanted)
    identified = [sum(one.ledger.calls[p] for p in ("/server_info", "/v1/models")) for one in engines]
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 80, started))
    await started.wait()
    leases = gateway.directory / "state" / "leases.json"
    while sum(row["facts"] is not None for row in json.loads(leases.read_text())["services"]["chat"]) < 3:
        await asyncio.sleep(0.01)
    await gateway.kill()
    assert "r" in await ask(gateway, "tiny", stream=False)
    await gateway.start()
    after = await gateway.until_states(wanted)
    assert service_of(after)["router"]["pid"] == service_of(before)["router"]["pid"]
    assert after["nginx"]["pid"] == before["nginx"]["pid"]
    for name in wanted:
        for key in ("worker_id", "bridge"):
            assert replica_of(after, name)[key] == replica_of(before, name)[key]
    assert [sum(one.ledger.calls[p] for p in ("/server_info", "/v1/models")) for one in engines] == identified
    assert (await stream).split()[-1] == "79"


async def test_replica_that_left_while_the_daemon_was_away(gateway: Gateway, engine: StartEngine) -> None:
    """What changed meanwhile is found at the start: the gone are taken out, the new let in, the rest left alone."""
    gone = await engine(gateway.socket("gone"))
    await engine(gateway.socket("stays"))
    changed = await engine(gateway.socket("changed"))
    before = await gateway.until_states({"gone": "serving", "stays": "serving", "changed": "serving"})
    await gateway.terminate()
    await gone.stop()
    await changed.stop()
    await engine(gateway.socket("changed"), model="other")
    await engine(gateway.socket("new"))
    await gateway.start()
    after = await gateway.until_states({"stays": "serving", "changed": "serving", "new": "serving"})
    assert replica_of(after, "stays")["worker_id"] == replica_of(before, "stays")["worker_id"]
    assert replica_of(after, "changed")["model"] == "other"
    await gateway.until_workers(lambda workers: len(workers) == 3)


async def test_interrupt_takes_everything_down(gateway: Gateway, engine: StartEngine) -> None:
    """Ctrl-C in the foreground leaves no process and no link behind."""
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    pids = [service_of(status)["router"]["pid"], status["nginx"]["pid"]]
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGINT)
    assert await gateway.process.wait() == 0
    assert gateway.events("daemon.stopped")[0]["left_running"] is False
    from gateway_sidecar.supervision.process import start_ticks

    assert [start_ticks(pid) for pid in pids] == [None, None]
    assert list((gateway.directory / "run" / "bridges").iterdir()) == []


async def test_drained_replica_that_hangs_is_taken_back_when_it_answers(gateway: Gateway, engine: StartEngine) -> None:
    """`resume` asks first: SMG would wait long for an engine that does not answer, and nothing could hurry it."""
    here = await engine(gateway.socket("r1"), EngineKind.SGLANG_GRPC)
    await gateway.until_states({"r1": "serving"})
    assert (await gateway.cli("drain", "chat", "r1"))[0] == 0
    here.behave(hang=True)
    assert (await gateway.cli("resume", "chat", "r1"))[0] == 0
    await gateway.until_state("r1", "seen", "unreachable")
    assert await gateway.workers() == []
    here.behave(hang=False)
    await gateway.until_states({"r1": "serving"})


async def test_engine_that_hangs_while_it_is_registered_is_back_soon(gateway: Gateway, engine: StartEngine) -> None:
    """It was well when the daemon asked, and not when SMG did: SMG's next attempt follows soon, not after 30 s."""
    for kind in (EngineKind.SGLANG_GRPC, EngineKind.SGLANG_HTTP):
        here = await engine(gateway.socket("r1"), kind)
        await gateway.until_states({"r1": "serving"})
        pid = service_of(await gateway.status())["router"]["pid"]
        here.behave(hang=True)
        os.kill(pid, signal.SIGKILL)  # The next one is told of an engine that was well a moment ago.
        await gateway.until(lambda s: replica_of(s, "r1")["reason"] == "the router says pending")
        failed = f"{kind.value.split('-')[1]} health check failed"
        while not any(failed in str(event) for event in gateway.events("router.said")):
            await asyncio.sleep(0.05)
        here.behave(hang=False)
        await gateway.until_states({"r1": "serving"})
        await here.stop()
        await gateway.until_states({})


async def test_services_that_come_and_go_use_up_no_ports(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A service has four ports of `router_ports`, two for the router and two for its successor, and gives them back."""
    gateway = make_gateway(services=("chat", "code"))
    first, last = map(int, gateway.settings["router_ports"].split("-"))
    assert last - first + 1 == 10, "room for two services, and for one router that is still leaving"
    await gateway.start()
    await engine(gateway.socket("r1", "code"))
    chat, code = gateway.settings["services"]
    for name, other in pairwise(("code", "a", "b", "c", "code")):
        status = await gateway.until_states({"r1": "serving"}, service=name)
        gateway.configure(services=[chat, {**code, "name": other}])
        assert (await gateway.cli("reload"))[1] == f"changed: {name}: removed; {other}: added\n"
        await until_gone(service_of(status, name)["router"]["pid"])


async def test_replica_without_a_bridge_is_drained_at_once(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Nobody can be on it: there is nothing to wait for, whether it waits for a port or has only just been seen."""
    gateway = make_gateway()
    first = gateway.settings["bridges"]["ports"].split("-")[0]
    gateway.settings["bridges"]["ports"] = first
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await engine(gateway.socket("r2"))
    await gateway.until(lambda s: any("no free bridge port" in (r["reason"] or "") for r in service_of(s)["replicas"]))
    code, out, err = await gateway.cli("drain", "chat", "r2", "--timeout", "60")
    assert code == 0, (out, err)


async def test_daemon_that_begins_answers_when_it_knows(gateway: Gateway, engine: StartEngine) -> None:
    """Its first answer holds the replicas that the last daemon had: nobody is told that there are none."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await gateway.kill()
    await gateway.start(ready=False)
    first = await gateway.until(lambda _status: True)
    assert [row["id"] for row in service_of(first)["replicas"]] == ["r1"]
