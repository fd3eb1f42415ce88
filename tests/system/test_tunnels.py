"""Replicas behind SSH servers, through the whole daemon: from a line in an inventory to an answer, and back again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.simulated import EngineKind
from gateway_sidecar.supervision.process import start_ticks, writers_below
from tests import under_unit
from tests.ssh_servers import SSHD, Sshd
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of

pytestmark = pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed; `make test` installs it")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd")
    server.start()
    yield server
    server.kill()


SOON_DEAD = {"keepalive_s": 1, "connect_timeout_s": 3}
"""A dead path is dead after three seconds; so is one whose far side is busy."""


def with_inventory(make_gateway: MakeGateway, sshd: Sshd, **ssh_defaults: Any) -> Gateway:
    """A gateway whose replicas are what its inventory says."""
    gateway = make_gateway()
    gateway.settings["services"][0]["replicas"] = {
        "inventory": str(inventory_of(gateway)),
        "ssh_defaults": {
            "user": "root",
            "port": sshd.port,
            "key_file": str(sshd.user_key),
            "known_hosts": str(sshd.known_hosts),
            **ssh_defaults,
        },
    }
    inventory_of(gateway).mkdir()
    return gateway


def inventory_of(gateway: Gateway) -> Path:
    return gateway.directory / "inventory"


def write(gateway: Gateway, name: str, entries: dict[str, Any] | str) -> None:
    """Writes an inventory file as any careful tool would: beside it, then renamed over it."""
    fresh = inventory_of(gateway) / f".{name}.new"
    fresh.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    fresh.rename(inventory_of(gateway) / name)


def behind(sshd: Sshd, engine: Path, **more: Any) -> dict[str, Any]:
    return {"ssh": {"host": sshd.host, "forward": str(engine)}, **more}


async def until_dead_path(gateway: Gateway) -> None:
    """Waits until the daemon has said so; what `status` says of a path changes again with the next try."""
    await gateway.until(lambda _: any(row["state"] == "dead path" for row in gateway.events("tunnel.down")))


def tunnel_pids(gateway: Gateway) -> list[int]:
    return [one.pid for found in writers_below(gateway.directory / "run" / "tunnels").values() for one in found]


async def test_inventory_to_chat(make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path) -> None:
    """A line is written, a tunnel is opened, an engine is asked, requests go through; another line, and it is gone."""
    far = await engine(tmp_path / "far.sock")
    gateway = with_inventory(make_gateway, sshd)
    await gateway.start()
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock", labels={"rack": "b7"}, priority=70)})
    row = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert row["source"] == "inventory"
    assert row["tunnel"] == {"to": f"{tmp_path / 'far.sock'} at {sshd.host}:{sshd.port}", "state": "up", "reason": None}
    assert await stream_chat(gateway, 3)
    (worker,) = await gateway.workers()
    assert worker["labels"]["rack"] == "b7"
    (pid,) = tunnel_pids(gateway)
    far.behave(token_interval_s=0.5)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 40, started))
    await started.wait()
    write(gateway, "a.json", {})
    await gateway.until_state("r1", "draining")
    assert start_ticks(pid) is not None
    far.behave(token_interval_s=0)
    assert (await stream).split()[-1] == "39"
    await gateway.until_states({})
    async with asyncio.timeout(60):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)


async def test_tunnel_that_comes_back_keeps_port_and_worker_address(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """The path is cut for longer than the evidence needs: out, port held; back: same port, the engine asked again."""
    await engine(tmp_path / "far.sock")
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
    await gateway.start()
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    bound_at = Path(before["socket"]).stat().st_mtime_ns
    sshd.kill()
    down = await gateway.until(lambda s: replica_of(s, "r1")["tunnel"]["state"] == "connection refused")
    await gateway.until_state("r1", "unreachable")
    await gateway.until_workers(lambda workers: workers == [])
    assert replica_of(down, "r1")["bridge"] == before["bridge"]
    sshd.start()
    after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert (after["bridge"], after["socket"]) == (before["bridge"], before["socket"])
    assert Path(after["socket"]).stat().st_mtime_ns != bound_at
    assert len(gateway.events("replica.seen")) == 1
    assert await stream_chat(gateway, 3)


async def test_another_engine_behind_the_tunnel_is_another_worker(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """While the path was down another engine took the place: new worker, new port."""
    first = await engine(tmp_path / "far.sock", model="one")
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
    await gateway.start()
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    sshd.kill()
    await gateway.until_state("r1", "unreachable")
    await first.stop(grace_s=0)
    await engine(tmp_path / "far.sock", model="two")
    sshd.start()
    status = await gateway.until(
        lambda s: states_of(s) == {"r1": "serving"} and replica_of(s, "r1")["model"] == "two",
        within_s=60,
    )
    assert replica_of(status, "r1")["bridge"] != before["bridge"]


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.SGLANG_GRPC])
async def test_engine_that_was_started_again_behind_the_tunnel_is_another_worker(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path, kind: EngineKind
) -> None:
    """The same in all that it says of itself but when it was started: nothing of the old one's cache is there."""
    first = await engine(tmp_path / "far.sock", kind)
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
    await gateway.start()
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    await first.stop(grace_s=0)
    await engine(tmp_path / "far.sock", kind)
    status = await gateway.until(
        lambda s: any(r["bridge"] != before["bridge"] and r["state"] == "serving" for r in service_of(s)["replicas"]),
        within_s=60,
    )
    assert replica_of(status, "r1")["model"] == before["model"]
    assert len(gateway.events("replica.replaced")) == 1
    assert await stream_chat(gateway, 3)


async def test_loading_engine_is_no_fault_of_the_tunnel(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """The far port is closed until the engine listens; both are told apart."""
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
    await gateway.start()
    status = await gateway.until(lambda s: "the tunnel is up" in (replica_of(s, "r1")["reason"] or ""))
    assert replica_of(status, "r1")["tunnel"]["state"] == "remote port closed"
    assert replica_of(status, "r1")["state"] == "loading"
    await engine(tmp_path / "far.sock")
    await gateway.until_states({"r1": "serving"})


async def test_killed_daemon_leaves_the_tunnels_and_the_next_takes_them_up(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """A stream through the tunnel does not notice; nothing is opened anew; `stop --all` ends it."""
    await engine(tmp_path / "far.sock", token_interval_s=0.05)
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock", labels={"rack": "b7"})})
    await gateway.start()
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    (pid,) = tunnel_pids(gateway)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 80, started))
    await started.wait()
    await gateway.until_written(1)
    await gateway.kill()
    await gateway.start()
    after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert [after[k] for k in ("bridge", "worker_id")] == [before[k] for k in ("bridge", "worker_id")]
    assert tunnel_pids(gateway) == [pid]
    assert (await stream).split()[-1] == "79"
    assert (await gateway.cli("stop", "--all"))[0] == 0
    assert start_ticks(pid) is None
    assert not list((gateway.directory / "run" / "tunnels").iterdir())


async def test_stop_all_ends_the_tunnels_of_a_killed_daemon(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """No daemon has to be started to end what one left."""
    await engine(tmp_path / "far.sock")
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    (pid,) = tunnel_pids(gateway)
    await gateway.kill()
    code, out, err = await gateway.cli("stop", "--all")
    assert (code, err) == (0, "")
    assert "1 SSH connection" in out
    assert start_ticks(pid) is None
    assert not list((gateway.directory / "run" / "tunnels").iterdir())


async def test_broken_file_keeps_what_it_said(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """Told with file and line; other files go on changing; an id in two files is refused by name."""
    await engine(tmp_path / "far.sock")
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.yaml", f"r1:\n  ssh: {{host: {sshd.host}, forward: {tmp_path / 'far.sock'}}}\n")
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    write(gateway, "a.yaml", f"r1:\n  ssh: {{host: {sshd.host}, forward: nowhere}}\n")
    write(gateway, "b.yaml", f"r2: {{socket: {gateway.directory}/r2.sock}}\nr1: {{socket: /x.sock}}\n")
    await engine(gateway.directory / "r2.sock")
    await gateway.until(lambda s: len(service_of(s)["source"]["refused"]) == 2)
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    refused = status["services"][0]["source"]["refused"]
    assert f"{inventory_of(gateway)}/a.yaml:2: r1.ssh.forward: 'nowhere'" in refused[f"{inventory_of(gateway)}/a.yaml"]
    assert f"is in {inventory_of(gateway)}/a.yaml and in {inventory_of(gateway)}/b.yaml" in refused["r1"]


async def test_id_in_two_sources_is_that_of_the_first(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """Shown and logged, and nothing of the second is tried."""
    gateway = make_gateway()
    pattern = gateway.settings["services"][0]["replicas"]["sockets"]
    gateway.settings["services"][0]["replicas"] = {
        "sockets": pattern,
        "inventory": str(gateway.directory / "more.yaml"),
    }
    await engine(gateway.socket("r1"))
    await engine(gateway.directory / "other.sock")
    text = f"r1: {{socket: {gateway.directory}/other.sock}}\nr2: {{socket: {gateway.directory}/other.sock}}\n"
    (gateway.directory / "more.yaml").write_text(text)
    await gateway.start()
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert [replica_of(status, r)["source"] for r in ("r1", "r2")] == ["sockets", "inventory"]
    assert "; sockets counts" in status["services"][0]["source"]["refused"]["r1"]
    assert [row["replica"] for row in gateway.events("replica.refused")] == ["r1"]


async def test_check_looks_at_keys_hosts_and_files(make_gateway: MakeGateway, sshd: Sshd) -> None:
    """What a daemon would stumble over, before there is one; and what a fresh one would do."""
    gateway = with_inventory(make_gateway, sshd)
    write(gateway, "a.json", {"r1": behind(sshd, Path("/far.sock"))})
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code == 0, out
    assert "chat: inventory lists 1 replica, 1 behind SSH servers" in out
    _, plan, _ = await gateway.cli("plan")
    to = f"/far.sock at {sshd.host}:{sshd.port}"
    assert f"chat/r1: open an SSH tunnel to {to}, ask the engine, then bridge it" in plan
    sshd.user_key.chmod(0o644)
    sshd.known_hosts.unlink()
    write(gateway, "b.json", "{")
    code, out, _ = await gateway.cli("check")
    assert code == 1
    for trouble in (
        f"key_file {sshd.user_key} may be read by others (mode 0644); use chmod 0600",
        f"known_hosts {sshd.known_hosts} is not there; enter the hosts' keys in it",
        f"chat: inventory: {inventory_of(gateway)}/b.json:1: is not JSON",
    ):
        assert trouble in out


async def test_reload_adds_a_source_to_a_running_service(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path
) -> None:
    """Replicas of the settings themselves; those that were there before keep port and worker."""
    gateway = make_gateway()
    await engine(gateway.socket("r1"))
    await engine(tmp_path / "far.sock")
    await gateway.start()
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    gateway.settings["services"][0]["replicas"] |= {
        "ssh": {"r2": {"host": sshd.host, "port": sshd.port, "user": "root", "forward": str(tmp_path / "far.sock")}},
        "ssh_defaults": {"key_file": str(sshd.user_key), "known_hosts": str(sshd.known_hosts)},
    }
    gateway.configure()
    code, out, err = await gateway.cli("reload")
    assert code == 0, err
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert "chat: replicas" in out
    assert replica_of(status, "r2")["source"] == "ssh"
    after = replica_of(status, "r1")
    assert [after[k] for k in ("bridge", "worker_id")] == [before[k] for k in ("bridge", "worker_id")]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def far_host() -> Iterator[tuple[str, Callable[[str], None]]]:
    """A host of its own, as a network namespace: its name, and what takes its cable out ('down') and in ('up')."""
    name = f"gwt{os.getpid()}"
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    here = f"{name[:13]}a"
    ip("link", "add", here, "type", "veth", "peer", "name", "far0", "netns", name)
    ip("addr", "add", "10.213.77.1/30", "dev", here)
    ip("link", "set", here, "up")
    for words in (
        ("addr", "add", "10.213.77.2/30", "dev", "far0"),
        ("link", "set", "far0", "up"),
        ("link", "set", "lo", "up"),
    ):
        ip("-n", name, *words)
    yield name, lambda state: ip("-n", name, "link", "set", "far0", state)
    ip("netns", "del", name)


async def test_partition(
    make_gateway: MakeGateway,
    far_host: tuple[str, Callable[[str], None]],
    engine: StartEngine,
    tmp_path: Path,
) -> None:
    """The cable is out: no packet comes back and nobody says so. Out within the keepalives' time; back: same port."""
    name, cable = far_host
    sshd = Sshd(tmp_path / "sshd", host="10.213.77.2", prefix=("ip", "netns", "exec", name))
    sshd.start()
    try:
        await engine(tmp_path / "far.sock")
        gateway = with_inventory(make_gateway, sshd, **SOON_DEAD)
        write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
        await gateway.start()
        before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
        cable("down")
        await until_dead_path(gateway)
        await gateway.until_workers(lambda workers: workers == [])
        await gateway.until(lambda s: replica_of(s, "r1")["tunnel"]["state"] == "host unreachable")
        cable("up")
        after = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
        assert after["bridge"] == before["bridge"]
        assert await stream_chat(gateway, 3)
    finally:
        sshd.kill()


async def test_replica_behind_ssh_put_over_the_api(make_gateway: MakeGateway, engine: StartEngine, sshd: Sshd) -> None:
    """The service's `ssh_defaults` hold for it; it keeps port and worker over a killed daemon, and goes by a DELETE."""
    gateway = with_inventory(make_gateway, sshd)
    del gateway.settings["services"][0]["replicas"]["inventory"]
    await gateway.start()
    far = gateway.directory / "far.sock"
    await engine(far)
    code, out, err = await gateway.cli(
        "replica", "add", "chat", "s1", "--ssh", "127.0.0.1", "--forward", str(far), "--wait", "--timeout", "120"
    )
    assert (code, out.startswith("s1 is new: serving")) == (0, True), err
    before = replica_of(await gateway.status(), "s1")
    assert (before["source"], before["tunnel"]["state"]) == ("api", "up")
    await gateway.until_written(1)
    await gateway.kill()
    await gateway.start()
    after = replica_of(await gateway.until_states({"s1": "serving"}), "s1")
    assert (after["bridge"], after["worker_id"]) == (before["bridge"], before["worker_id"])
    assert "s1" in (await gateway.cli("replica", "list"))[1]
    code, out, err = await gateway.cli("replica", "remove", "chat", "s1", "--drain", "60")
    assert (code, "safe to stop" in out) == (0, True), err
    await gateway.until_states({})


@pytest.mark.skipif(under_unit.why_not() is not None, reason=str(under_unit.why_not()))
@pytest.mark.parametrize("kind", ["openssh", "asyncssh"])
async def test_the_units_system_call_filter_lets_ssh_work(
    make_gateway: MakeGateway, sshd: Sshd, engine: StartEngine, tmp_path: Path, kind: str
) -> None:
    """All that ssh does here: an agent, a jump, a first use that is written down, a forward taken away, a dead path."""
    await engine(tmp_path / "far.sock")
    gate = Sshd(tmp_path / "gate")
    (gate.directory / "authorized").write_text((sshd.directory / "authorized").read_text())
    gate.start()
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", str(tmp_path / "agent"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "agent").exists():
                await asyncio.sleep(0.02)
        add = await asyncio.create_subprocess_exec(
            "ssh-add", "-q", str(sshd.user_key), env={**os.environ, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
        )
        assert await add.wait() == 0
        sshd.known_hosts.unlink()
        jump = {"host": gate.host, "port": gate.port, "key_file": None, "agent": str(tmp_path / "agent")}
        first_use = {"backend": kind, "host_key": "trust-on-first-use", "jump": [jump]}
        gateway = with_inventory(make_gateway, sshd, **SOON_DEAD, **first_use)
        gateway.before = [sys.executable, "-m", "tests.under_unit"]
        write(gateway, "a.json", {"r1": behind(sshd, tmp_path / "far.sock")})
        await gateway.start()
        await gateway.until_states({"r1": "serving"})
        assert gateway.process is not None
        assert "Seccomp:\t2" in Path(f"/proc/{gateway.process.pid}/status").read_text()
        assert "Seccomp:\t2" in Path(f"/proc/{tunnel_pids(gateway)[0]}/status").read_text()
        assert len(sshd.known_hosts.read_text().splitlines()) == 2
        assert await stream_chat(gateway, 3)
        sshd.freeze()
        await until_dead_path(gateway)
        sshd.thaw()
        await gateway.until_states({"r1": "serving"})
        write(gateway, "a.json", {})
        await gateway.until_states({})
    finally:
        gate.kill()
        agent.terminate()
        await agent.wait()
