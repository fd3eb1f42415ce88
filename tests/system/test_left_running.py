"""No daemon runs, and what it left serves on: the commands see that, and end it when they are asked to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket

import pytest
import yaml

from examples.simulated import EngineKind
from gateway_sidecar import __version__
from gateway_sidecar.control.process.left_running import look_for_left
from gateway_sidecar.supervision.process import Identity, session_members, start_ticks
from tests.stopping import stop
from tests.system.clients import stream_chat
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_keys import give_key


async def test_commands_see_what_a_killed_daemon_left(gateway: Gateway, engine: StartEngine) -> None:
    """It is named wherever the daemon is missed; it is no obstacle for `check`, and `plan` starts nothing twice."""
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    [began] = gateway.events("daemon.started")
    assert began["version"] == __version__
    nginx, router = status["nginx"]["pid"], service_of(status)["router"]["pid"]
    port = service_of(status)["replicas"][0]["bridge"].rpartition(":")[2]
    await gateway.kill()
    for command in (("status",), ("stop",), ("reload",), ("drain", "chat", "r1")):
        code, _, err = await gateway.cli(*command)
        assert code == 1
        assert f"An earlier daemon left nginx (pid {nginx}), the router of chat (pid {router}), 1 process" in err, err
        assert "`gateway-sidecar stop --all` ends it" in err
    code, out, _ = await gateway.cli("check")
    assert code == 0, out
    assert f"warn  no daemon runs; an earlier daemon left nginx (pid {nginx})" in out
    assert "ports can be used: free, or of what an earlier daemon left" in out
    await engine(gateway.socket("r2"))
    code, out, _ = await gateway.cli("plan", "--json")
    actions = {(row["service"], row["replica"]): row["action"] for row in json.loads(out)["actions"]}
    assert actions["-", "-"].startswith("adopt nginx")
    assert actions["chat", "-"].startswith(f"adopt smg (pid {router})")
    assert actions["chat", "r1"] == f"adopt, with its bridge on port {port}"
    assert actions["chat", "r2"].startswith("bridge, then register")
    code, out, _ = await gateway.cli("plan")
    assert out.startswith(f"no daemon runs; an earlier daemon left nginx (pid {nginx})"), out
    assert "a new daemon would do:" in out
    address = ("127.0.0.1", gateway.ports["chat"] + 8)
    with socket.create_server(address):  # A stranger is told from what was left.
        gateway.configure(metrics={"listen": f"{address[0]}:{address[1]}"})
        code, out, _ = await gateway.cli("check")
    assert code == 1
    assert out.count("FAIL") == 1
    assert f"FAIL  cannot listen on 127.0.0.1:{address[1]}" in out


async def test_a_daemon_that_hangs_is_none_that_does_not_run(gateway: Gateway, engine: StartEngine) -> None:
    """`plan` and `check` do not take what it runs for what an earlier one left, and name a cure that cuts nothing."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert gateway.process is not None
    stop(gateway.process.pid)
    try:
        code, out, err = await gateway.cli("plan")
        assert (code, out) == (1, "")
        assert "did not answer" in err
        assert "`systemctl restart gateway-sidecar`" in err
        code, out, _ = await gateway.cli("check")
        assert code == 0, out
        assert "so ports are not checked" in out
        assert "no daemon runs" not in out
    finally:
        gateway.process.send_signal(signal.SIGCONT)


async def test_a_daemon_that_starts_is_none_that_does_not_run(gateway: Gateway) -> None:
    """Its own nginx is no earlier daemon's, and `stop --all` ends nothing under it."""
    (gateway.directory / "run" / "admin.sock").unlink()  # As before it listens; it binds this again in two seconds.
    code, out, err = await gateway.cli("stop", "--all")
    if code == 0:  # A busy machine: it listened again by then.
        assert "no daemon ran" not in out
        return
    assert gateway.process is not None
    assert f"the daemon (pid {gateway.process.pid}) starts, or ends, and does not listen" in err
    assert "earlier daemon" not in err


async def test_workers_of_a_dead_nginx_are_among_what_was_left(gateway: Gateway) -> None:
    """They go on listening, and the next daemon takes their ports up: they are no strangers to `check`."""
    nginx = (await gateway.status())["nginx"]["pid"]
    await gateway.kill()
    master = Identity.of(nginx)
    assert master is not None
    workers = session_members(master)
    assert workers
    os.kill(nginx, signal.SIGKILL)
    left = look_for_left(gateway.directory / "run", gateway.directory / "state")
    assert {worker.pid for worker in workers} <= left.pids
    code, out, _ = await gateway.cli("check")
    assert code == 0, out
    code, out, err = await gateway.cli("stop", "--all", "--timeout", "5")
    assert (code, err) == (0, ""), out
    assert [worker.pid for worker in workers if start_ticks(worker.pid) is not None] == []


async def test_stop_all_without_a_daemon_ends_what_one_left(gateway: Gateway, engine: StartEngine) -> None:
    """As with a daemon: what is in flight may finish, nothing new gets in, and nothing is left."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    give_key(gateway, "r2", "secret")
    await engine(gateway.socket("r2"), EngineKind.VLLM_HTTP, model="guarded", require_key="secret")
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    pids = [service_of(status)["router"]["pid"], status["nginx"]["pid"]]
    await gateway.kill()
    left = look_for_left(gateway.directory / "run", gateway.directory / "state")
    assert len(left.small) == 1
    with_keys = list((gateway.directory / "run" / "keyed").rglob("nginx.conf"))
    assert len(with_keys) == 1
    assert set(pids) < left.pids
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    code, out, err = await gateway.cli("stop", "--all")
    assert (code, err) == (0, "")
    assert out.startswith("no daemon ran; stopped what an earlier one left: nginx (pid ")
    assert (await stream).split()[-1] == "59"
    assert [pid for pid in left.pids if start_ticks(pid) is not None] == []
    assert not with_keys[0].exists(), "it holds the engine's key"
    assert not look_for_left(gateway.directory / "run", gateway.directory / "state")
    code, out, err = await gateway.cli("stop", "--all")
    assert code == 1
    assert "An earlier daemon" not in err
    await gateway.start()  # Nothing is in its way.
    await gateway.until_states({"r1": "serving", "r2": "serving"})


async def test_stop_all_finds_what_no_record_tells_of(gateway: Gateway) -> None:
    """Records are hints: the children's own logs say whose they are."""
    status = await gateway.status()
    pids = {service_of(status)["router"]["pid"], status["nginx"]["pid"]}
    await gateway.kill()
    (gateway.directory / "run" / "processes.json").unlink()
    shutil.rmtree(gateway.directory / "run" / "nginx")
    code, out, err = await gateway.cli("stop", "--all", "--timeout", "5")
    assert (code, err) == (0, ""), out
    assert [pid for pid in pids if start_ticks(pid) is not None] == []


@pytest.mark.parametrize("mistake", ["servces: []\nbridges: {ports: many}\n", "services: [\n"])
async def test_stop_all_needs_no_valid_configuration(gateway: Gateway, engine: StartEngine, mistake: str) -> None:
    """Where all of it is has not become wrong: whatever else the file says now, or if it is no YAML any more."""
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    pids = {service_of(status)["router"]["pid"], status["nginx"]["pid"]}
    await gateway.kill()
    (gateway.directory / "run" / "processes.json").unlink()
    where = {name: gateway.settings[name] for name in ("run_dir", "state_dir")}
    gateway.config_path.write_text(mistake + yaml.safe_dump(where))
    code, out, err = await gateway.cli("stop", "--all", "--timeout", "5")
    assert (code, err) == (0, ""), out
    assert [pid for pid in pids if start_ticks(pid) is not None] == []
    assert not look_for_left(gateway.directory / "run", gateway.directory / "state")
