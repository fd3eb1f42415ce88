"""Both SSH engines against a real sshd: the same promises, really cut, frozen, refused and taken up again."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest
import structlog

from gateway_sidecar.domain.tunnels import BackendName, PathState, SshRoute, SshServer, Tunnel
from gateway_sidecar.supervision.process import start_ticks
from tests.contract.tunnel_world import World, impatient, route_to
from tests.ssh_servers import SSHD, Sshd, free_port, make_key, public_of

pytestmark = pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed; `make test` installs it")


async def test_forwards_to_a_port(world: World, sshd: Sshd, backend: BackendName) -> None:
    """What the far end says arrives through an ordinary socket, for our user alone."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"
    assert world.fleet.socket_of(tunnel).stat().st_mode & 0o777 == 0o600


async def test_forwards_to_a_unix_socket(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """The engine may listen on a Unix socket there."""
    far = tmp_path / "engine.sock"

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"unix")
        writer.close()

    world.servers.append(await asyncio.start_unix_server(talk, far))
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), str(far))
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"unix"


async def test_two_replicas_of_a_host_share_a_connection(world: World, sshd: Sshd, backend: BackendName) -> None:
    """One connection, two forwards; one that is not wanted any more goes, and the other does not notice."""
    route = route_to(sshd, backend)
    one = Tunnel("chat/r1", route, f"127.0.0.1:{await world.listen(b'one')}")
    two = Tunnel("chat/r2", route, f"127.0.0.1:{await world.listen(b'two')}")
    world.request(one, two)
    await world.until(one, PathState.UP)
    await world.until(two, PathState.UP)
    (link,) = world.fleet.connections
    pid = link.pid
    assert (await world.hear(one), await world.hear(two)) == (b"one", b"two")
    reader, writer = await asyncio.open_unix_connection(world.fleet.socket_of(two))
    assert await reader.read(100) == b"two"
    world.request(two)
    while world.fleet.socket_of(one).exists():
        await asyncio.sleep(0.02)
    writer.write(b"still")
    assert await reader.read(100) == b"still"
    writer.close()
    assert link.pid == pid
    assert await world.hear(one) == b""


async def test_remote_port_closed_is_no_fault_of_the_tunnel(world: World, sshd: Sshd, backend: BackendName) -> None:
    """The tunnel is up before the engine is; connections close at once until then."""
    port = free_port()
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{port}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b""
    await world.listen(b"late", port)
    assert await world.hear(tunnel) == b"late"
    assert world.fleet.status(tunnel).is_up


async def test_killed_server_and_back(world: World, sshd: Sshd, backend: BackendName) -> None:
    """The end is known at once, the way is tried again, and the socket is where it was."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    with structlog.testing.capture_logs() as events:
        sshd.kill()
        await world.until(tunnel, PathState.CLOSED, PathState.REFUSED, within_s=60)
        await world.until(tunnel, PathState.REFUSED)
    assert next(event["replicas"] for event in events if event["event"] == "tunnel.down") == ["chat/r1"]
    assert await world.hear(tunnel) == b""
    sshd.start()
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"


async def test_frozen_server_is_a_dead_path(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Silence on a connection that answered keepalives is its end: after three of them, here three seconds."""
    tunnel = Tunnel("chat/r1", impatient(route_to(sshd, backend)), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    sshd.freeze()
    await world.until(tunnel, PathState.DEAD_PATH, within_s=60)
    sshd.thaw()
    await world.until(tunnel, PathState.UP, within_s=60)
    assert await world.hear(tunnel) == b"one"


async def test_refused_connection(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Nobody listens at the SSH port."""
    sshd.kill()
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    assert "refused" in (await world.until(tunnel, PathState.REFUSED)).reason


async def test_name_that_is_not_known(world: World, sshd: Sshd, backend: BackendName) -> None:
    """A host that does not exist."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, host="nowhere.invalid"), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.NAME_UNKNOWN, within_s=60)


async def test_changed_host_key_is_refused(world: World, sshd: Sshd, backend: BackendName) -> None:
    """A server with another key than the one written down gets nothing, with first use believed or not."""
    make_key(sshd.host_key)
    sshd.kill()
    sshd.start()
    for first_use in (False, True):
        tunnel = Tunnel("chat/r1", route_to(sshd, backend, trust_first_use=first_use), "127.0.0.1:1")
        world.request(tunnel)
        await world.until(tunnel, PathState.HOST_KEY_CHANGED)


async def test_unknown_host_key_is_refused_unless_asked(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Without an entry nobody is believed; first use enters the key, and from then on it is the one."""
    sshd.known_hosts.unlink()
    remote = f"127.0.0.1:{await world.listen(b'one')}"
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), remote)
    world.request(tunnel)
    await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)
    trusting = Tunnel("chat/r1", route_to(sshd, backend, trust_first_use=True), remote)
    world.request(trusting)
    await world.until(trusting, PathState.UP)
    assert public_of(sshd.host_key) in sshd.known_hosts.read_text()
    make_key(sshd.host_key)
    sshd.kill()
    sshd.start()
    await world.until(trusting, PathState.HOST_KEY_CHANGED)


async def test_host_key_in_the_settings(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """The key itself may be given; another than that is a changed one."""
    sshd.known_hosts.unlink()
    right = Tunnel(
        "chat/r1", route_to(sshd, backend, known_hosts=None, host_key=public_of(sshd.host_key)), "127.0.0.1:1"
    )
    world.request(right)
    await world.until(right, PathState.UP)
    other = public_of(make_key(tmp_path / "other"))
    wrong = Tunnel("chat/r1", route_to(sshd, backend, known_hosts=None, host_key=other), "127.0.0.1:1")
    world.request(wrong)
    await world.until(wrong, PathState.HOST_KEY_CHANGED)


async def test_refused_key_and_unusable_keys(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """A key that the far side does not take, one that is not there, and one that others may read."""
    other = make_key(tmp_path / "other")
    for key, state in ((other, PathState.AUTH_FAILED), (tmp_path / "none", PathState.KEY_UNUSABLE)):
        tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(key)), "127.0.0.1:1")
        world.request(tunnel)
        await world.until(tunnel, state)
    other.chmod(0o644)
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(other), user="nobody"), "127.0.0.1:1")
    world.request(tunnel)
    assert "chmod 0600" in (await world.until(tunnel, PathState.KEY_UNUSABLE)).reason


async def test_jump(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """Over another server; what fails is told by name, whether it is the jump or what lies behind it."""
    gate = Sshd(tmp_path / "gate")
    gate.start()
    try:
        hop = route_to(gate, backend).target
        route = replace(route_to(sshd, backend), servers=(hop, route_to(sshd, backend).target))
        tunnel = Tunnel("chat/r1", route, f"127.0.0.1:{await world.listen(b'far')}")
        world.request(tunnel)
        await world.until(tunnel, PathState.UP)
        assert await world.hear(tunnel) == b"far"
        sshd.kill()
        await world.until(tunnel, PathState.REFUSED)
        sshd.start()
        await world.until(tunnel, PathState.UP)
        gate.kill()
        status = await world.until(tunnel, PathState.JUMP_FAILED)
        assert status.reason.startswith(f"jump 1 (127.0.0.1:{gate.port}): connection refused")
    finally:
        gate.kill()


async def test_frozen_jump_is_a_dead_path(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """Wherever on the way it is dead."""
    gate = Sshd(tmp_path / "gate")
    gate.start()
    try:
        servers = (route_to(gate, backend).target, route_to(sshd, backend).target)
        tunnel = Tunnel("chat/r1", replace(impatient(route_to(sshd, backend)), servers=servers), "127.0.0.1:1")
        world.request(tunnel)
        await world.until(tunnel, PathState.UP)
        gate.freeze()
        await world.until(tunnel, PathState.DEAD_PATH, within_s=60)
    finally:
        gate.kill()


async def test_stale_socket_file_is_replaced(world: World, sshd: Sshd, backend: BackendName) -> None:
    """What an earlier connection left under a tunnel's name does not keep it from listening."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{await world.listen(b'one')}")
    stale = await asyncio.start_unix_server(lambda _r, w: w.close(), world.fleet.socket_of(tunnel))
    stale.close()
    assert world.fleet.socket_of(tunnel).is_socket()
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"


async def test_killed_process_is_begun_again(world: World, sshd: Sshd, backend: BackendName) -> None:
    """SIGKILL leaves the socket's file and the control socket behind; neither is in the way."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    (link,) = world.fleet.connections
    assert link.pid is not None
    os.kill(link.pid, signal.SIGKILL)
    while link.starts < 2:
        await asyncio.sleep(0.02)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"


async def test_next_daemon_takes_over_in_mid_stream(world: World, sshd: Sshd, backend: BackendName) -> None:
    """The process goes on without us, and who comes next goes on with it: nothing is opened anew."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    pid = next(iter(world.fleet.connections)).pid
    reader, writer = await asyncio.open_unix_connection(world.fleet.socket_of(tunnel))
    assert await reader.read(100) == b"one"
    await world.fleet.detach()
    world.fleet = world.new_fleet()
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    (link,) = world.fleet.connections
    assert (link.pid, link.starts) == (pid, 0)
    writer.write(b"on")
    assert await reader.read(100) == b"on"
    writer.close()
    assert await world.hear(tunnel) == b"one"


async def test_leftover_that_nobody_wants_is_ended(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Not before it is known who wants what, and then at once."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    pid = next(iter(world.fleet.connections)).pid
    assert pid is not None
    await world.fleet.detach()
    world.fleet = world.new_fleet()
    world.fleet.request([], complete=False)
    await asyncio.sleep(0)
    assert start_ticks(pid) is not None
    world.fleet.request([], complete=True)
    async with asyncio.timeout(60):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)


async def test_files_that_an_earlier_daemon_left_are_removed(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Once it is known who wants what; what is wanted, or was taken up, keeps its own."""
    route = route_to(sshd, backend)
    one, two = Tunnel("chat/r1", route, "127.0.0.1:1"), Tunnel("chat/r2", route, "127.0.0.1:2")
    world.request(one, two)
    await world.until(one, PathState.UP)
    await world.until(two, PathState.UP)
    await world.fleet.detach()
    (world.directory / "0123456789ab.log").touch()
    world.fleet = world.new_fleet()
    world.fleet.request([one], complete=False)
    assert world.fleet.socket_of(two).exists()
    world.request(one)
    assert not world.fleet.socket_of(two).exists()
    assert not (world.directory / "0123456789ab.log").exists()
    await world.until(one, PathState.UP)
    assert world.fleet.socket_of(one).exists()


async def test_end_leaves_nothing(world: World, sshd: Sshd, backend: BackendName) -> None:
    """No process, no file."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    pid = next(iter(world.fleet.connections)).pid
    assert pid is not None
    await world.fleet.end()
    assert start_ticks(pid) is None
    assert list(world.directory.iterdir()) == []


async def test_key_from_an_agent(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """Only if one is named: the key's file is not needed then."""
    socket = tmp_path / "agent.sock"
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", str(socket), stdout=asyncio.subprocess.DEVNULL
    )  # fmt: skip
    try:
        while not socket.exists():
            await asyncio.sleep(0.02)
        add = ("ssh-add", "-q", str(sshd.user_key)), {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        while await (await asyncio.create_subprocess_exec(*add[0], env=add[1])).wait() != 0:
            assert agent.returncode is None  # Its socket is there before it listens.
        with_agent = Tunnel("chat/r1", route_to(sshd, backend, key_file=None, agent=str(socket)), "127.0.0.1:1")
        world.request(with_agent)
        await world.until(with_agent, PathState.UP)
    finally:
        agent.terminate()
        await agent.wait()


async def test_agent_that_is_not_named_is_not_asked(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the daemon's environment says."""
    asked = asyncio.Event()

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.transport.abort()

    world.servers.append(await asyncio.start_unix_server(talk, tmp_path / "agent.sock"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent.sock"))
    other = make_key(tmp_path / "other")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(other)), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.AUTH_FAILED)
    assert not asked.is_set()


async def test_server_that_forbids_forwarding(world: World, tmp_path: Path) -> None:
    """OpenSSH's client says so, and the tunnel's status passes it on."""
    sshd = Sshd(tmp_path / "strict", options="AllowTcpForwarding no")
    sshd.start()
    try:
        tunnel = Tunnel("chat/r1", route_to(sshd, "openssh"), f"127.0.0.1:{await world.listen(b'one')}")
        world.request(tunnel)
        await world.until(tunnel, PathState.UP)
        assert await world.hear(tunnel) == b""
        async with asyncio.timeout(60):
            while "administratively prohibited" not in world.fleet.status(tunnel).reason:
                await asyncio.sleep(0.05)
    finally:
        sshd.kill()


async def test_nothing_secret_in_the_command_line(world: World, sshd: Sshd, backend: BackendName) -> None:
    """Nor a user, a host or a key's path: whoever may run `ps` learns nothing of the way."""
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    (link,) = world.fleet.connections
    command = Path(f"/proc/{link.pid}/cmdline").read_text()
    assert not [word for word in (str(sshd.user_key), str(sshd.port), "root", "127.0.0.1") if word in command]


async def test_machine_without_ssh_says_what_to_install(
    world: World, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And goes on by itself once it is there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    tunnel = Tunnel("chat/r1", route_to(sshd, "openssh"), "127.0.0.1:1")
    world.request(tunnel)
    assert "openssh-client" in (await world.until(tunnel, PathState.NOT_INSTALLED)).reason
    (tmp_path / "ssh").symlink_to("/usr/bin/ssh")
    async with asyncio.timeout(60):
        while not world.fleet.status(tunnel).is_up:
            world.request(tunnel)
            await asyncio.sleep(0.1)


class FarPython(asyncssh.SSHServer):
    """asyncssh's server, which lets everybody with a key of ours in and forwards everything."""

    def connection_requested(self, *_: object) -> bool:
        return True

    def unix_connection_requested(self, _: str) -> bool:
        return True


async def test_another_make_of_server(world: World, backend: BackendName, tmp_path: Path) -> None:
    """asyncssh's: nothing here is OpenSSH's own way alone, its end included."""
    host_key, user_key = make_key(tmp_path / "host"), make_key(tmp_path / "user")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=FarPython,
        server_host_keys=[str(host_key)],
        authorized_client_keys=f"{user_key}.pub",
    )
    target = SshServer("127.0.0.1", server.get_port(), "any", str(user_key), host_key=public_of(host_key))
    route = SshRoute((target,), keepalive_s=1, connect_timeout_s=3, backend=backend)
    tunnel = Tunnel("chat/r1", route, f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"
    server.close()
    await server.wait_closed()
