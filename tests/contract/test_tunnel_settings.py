"""What people get wrong about keys, agents and hosts, and unusual ways there: both SSH engines, a real sshd."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from gateway_sidecar.domain.tunnels import BackendName, PathState, Tunnel
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.tunnels.inspect import file_troubles
from tests.contract.tunnel_world import World, impatient, route_to
from tests.ssh_servers import SSHD, Sshd, make_key, public_of
from tests.stopping import stop

pytestmark = pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed; `make test` installs it")


def keygen(*words: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, capture_output=True)


def with_passphrase(path: Path) -> None:
    keygen("-t", "ed25519", "-N", "secret", "-f", path)


def with_passphrase_as_pem(path: Path) -> None:
    keygen("-t", "rsa", "-m", "PEM", "-N", "secret", "-f", path)


def public(path: Path) -> None:
    make_key(path.with_name("other"))
    path.with_name("other.pub").rename(path)
    path.chmod(0o600)


def no_key(path: Path) -> None:
    path.write_text("secret\n")
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_passphrase, "has a passphrase, which the daemon cannot type; make a key without one, or use an agent"),
        (with_passphrase_as_pem, "has a passphrase"),
        (public, "holds a public key; name the private key's file"),
        (no_key, "holds no private key"),
        (os.mkfifo, "is not a regular file"),
    ],
)
async def test_key_that_cannot_be_used_is_told_before_it_is_tried(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    """ssh itself would only say that the login was refused."""
    make(tmp_path / "key")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(tmp_path / "key")), "127.0.0.1:1")
    world.request(tunnel)
    reason = (await world.until(tunnel, PathState.KEY_UNUSABLE)).reason
    assert reason.startswith(f"key_file {tmp_path / 'key'} {said}")
    assert list(file_troubles([tunnel])) == [reason]


async def test_agent_that_cannot_be_asked(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not there, nobody behind its socket, or none in the environment."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    for agent, said in (
        (str(tmp_path / "none"), f"agent {tmp_path / 'none'}: No such file or directory; start the agent"),
        (str(tmp_path / "stale"), f"agent {tmp_path / 'stale'}: Connection refused; start the agent"),
        ("SSH_AUTH_SOCK", "agent SSH_AUTH_SOCK is not set in the daemon's environment"),
    ):
        tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=None, agent=agent), "127.0.0.1:1")
        world.request(tunnel)
        assert (await world.until(tunnel, PathState.KEY_UNUSABLE)).reason.startswith(said)


async def test_refused_key_says_which_and_for_whom(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path
) -> None:
    """And where to enter it."""
    other = make_key(tmp_path / "other")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(other)), "127.0.0.1:1")
    world.request(tunnel)
    reason = (await world.until(tunnel, PathState.AUTH_FAILED)).reason
    assert f"the public half of {other}; add it to root's authorized_keys there; tried again at once when" in reason


@pytest.mark.parametrize("over_a_jump", [False, True])
async def test_refused_key_is_tried_once_and_a_new_one_at_once(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path, *, over_a_jump: bool
) -> None:
    """At the target, and at a server to jump over: whoever counts refused logins counts one."""
    key = make_key(tmp_path / "user_key")
    wrong = route_to(sshd, backend, key_file=str(key))
    route = replace(wrong, servers=(wrong.target, route_to(sshd, backend).target)) if over_a_jump else wrong
    tunnel = Tunnel("chat/r1", route, "127.0.0.1:1")
    world.request(tunnel)
    with structlog.testing.capture_logs() as events:
        status = await world.until(tunnel, PathState.JUMP_FAILED if over_a_jump else PathState.AUTH_FAILED)
    assert (status.entered, status.refusal) == (0, PathState.AUTH_FAILED)
    assert [event["retry_in_s"] > 20 for event in events if event["event"] == "tunnel.down"] == [True]
    key.with_name("user_key.pub").unlink()
    replace_file(key, sshd.user_key.read_text())
    await world.until(tunnel, PathState.UP)
    assert (sshd.directory / "sshd.log").read_text().count("authenticating user root") == 1


async def test_banner_is_not_the_reason(world: World, tmp_path: Path, backend: BackendName) -> None:
    """It may hold the words of any fault: of a connection that the server ends, and of a login that it refuses."""
    banner = tmp_path / "banner"
    words = (
        "Idle sessions are timed out.",
        "Permission denied (publickey).",
        "open failed: administratively prohibited",
    )
    banner.write_text("".join(f"{line}\n" for line in words))
    sshd = Sshd(tmp_path / "polite", options=f"Banner {banner}")
    sshd.start()
    try:
        other = make_key(tmp_path / "other")
        tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
        world.request(tunnel)
        assert (await world.until(tunnel, PathState.UP)).reason == ""
        await world.hear(tunnel)
        (connection,) = world.fleet.connections
        await connection._read_log()
        assert world.fleet.status(tunnel).reason == ""
        with structlog.testing.capture_logs() as events:
            sshd.cut()
            while not (down := [event for event in events if event["event"] == "tunnel.down"]):
                await asyncio.sleep(0.02)
        assert down[0]["state"] == PathState.CLOSED.value
        await world.until(tunnel, PathState.UP)
        tunnel = Tunnel("chat/r1", route_to(sshd, backend, key_file=str(other)), "127.0.0.1:1")
        world.request(tunnel)
        assert "timed out" not in (await world.until(tunnel, PathState.AUTH_FAILED)).reason
    finally:
        sshd.kill()


async def test_user_without_a_passwd_entry_is_told_what_to_do(
    world: World, sshd: Sshd, backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before ssh is started, and by `check`: both clients need the name of the user that they run as."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    reason = (await world.until(tunnel, PathState.LOCAL_TROUBLE)).reason
    assert reason.startswith(f"uid {os.geteuid()} has no entry in /etc/passwd, and ssh needs one; add it (useradd")
    assert list(file_troubles([tunnel])) == [reason]


async def test_list_of_known_hosts_that_cannot_be_read(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path
) -> None:
    """Named, with what to do."""
    for known, said in ((tmp_path / "none", "is not there; enter the hosts' keys in it"), (tmp_path, "is not a regul")):
        tunnel = Tunnel("chat/r1", route_to(sshd, backend, known_hosts=str(known)), "127.0.0.1:1")
        world.request(tunnel)
        assert (await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)).reason.startswith(f"known_hosts {known} {said}")


async def test_host_without_an_entry_and_changed_one_say_where_to_look(
    world: World, sshd: Sshd, backend: BackendName
) -> None:
    """The file, the host's name in it, and the cure."""
    sshd.known_hosts.write_text(f"elsewhere {public_of(sshd.host_key)}\n")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    name = f"[{sshd.host}]:{sshd.port}"
    unknown = (await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)).reason
    assert unknown.endswith(f"; enter the key of {name} in {sshd.known_hosts}")
    sshd.trust()
    await world.until(tunnel, PathState.UP)
    make_key(sshd.host_key)
    sshd.kill()
    sshd.start()
    changed = (await world.until(tunnel, PathState.HOST_KEY_CHANGED)).reason
    assert f"ssh-keygen -R '{name}' -f {sshd.known_hosts}" in changed


async def test_first_use_that_cannot_be_written_down_is_refused(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path
) -> None:
    """Else any host would be believed anew each time. The second file looks as if it could be written."""
    for known in (tmp_path / "none" / "known", Path("/proc/version")):
        route = route_to(sshd, backend, trust_first_use=True, known_hosts=str(known))
        tunnel = Tunnel("chat/r1", route, "127.0.0.1:1")
        world.request(tunnel)
        assert str(known) in (await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)).reason


async def test_first_use_spoils_no_unfinished_line(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path
) -> None:
    """A list that somebody wrote without a line's end at its end keeps its last entry."""
    entry = f"elsewhere {public_of(make_key(tmp_path / 'other'))}"
    sshd.known_hosts.write_text(entry)
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, trust_first_use=True), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    lines = sshd.known_hosts.read_text().splitlines()
    assert lines == [entry, f"[{sshd.host}]:{sshd.port} {public_of(sshd.host_key)}"]


@pytest.mark.parametrize("first_use", [False, True])
async def test_revoked_key_is_refused(world: World, sshd: Sshd, backend: BackendName, first_use: bool) -> None:
    """Whatever else the list says, and however new the host is."""
    known = "" if first_use else sshd.known_hosts.read_text()
    sshd.known_hosts.write_text(f"{known}@revoked * {public_of(sshd.host_key)}\n")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend, trust_first_use=first_use), "127.0.0.1:1")
    world.request(tunnel)
    reason = (await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)).reason
    assert "revoked" in reason
    assert reason.endswith(f"so says {sshd.known_hosts}")


async def test_host_that_a_known_authority_vouches_for(
    world: World, sshd: Sshd, backend: BackendName, tmp_path: Path
) -> None:
    """`@cert-authority` lines count; another authority's word does not."""
    ours, other = make_key(tmp_path / "ours"), make_key(tmp_path / "other")
    keygen("-s", ours, "-I", "host", "-h", "-n", sshd.host, f"{sshd.host_key}.pub")
    certified = Sshd(tmp_path / "certified", options=f"HostCertificate {sshd.host_key}-cert.pub")
    for name in ("host_key", "host_key.pub"):
        (tmp_path / "certified" / name).write_bytes((sshd.directory / name).read_bytes())
    certified.start()
    try:
        tunnel = Tunnel("chat/r1", route_to(certified, backend), "127.0.0.1:1")
        certified.known_hosts.write_text(f"@cert-authority * {public_of(other)}\n")
        world.request(tunnel)
        await world.until(tunnel, PathState.HOST_KEY_UNKNOWN)
        certified.known_hosts.write_text(f"@cert-authority * {public_of(ours)}\n")
        await world.until(tunnel, PathState.UP)
    finally:
        certified.kill()


async def test_hashed_list_of_known_hosts(world: World, sshd: Sshd, backend: BackendName) -> None:
    """As `HashKnownHosts` writes it."""
    keygen("-H", "-f", sshd.known_hosts)
    assert sshd.known_hosts.read_text().startswith("|1|")
    tunnel = Tunnel("chat/r1", route_to(sshd, backend), "127.0.0.1:1")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)


async def test_ipv6_all_the_way(world: World, backend: BackendName, tmp_path: Path) -> None:
    """The server, one to jump over, and the engine."""
    far = Sshd(tmp_path / "six", host="::1")
    far.start()

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"six")
        writer.close()

    listening = await asyncio.start_server(talk, "::1", 0)
    world.servers.append(listening)
    route = route_to(far, backend)
    try:
        for servers in (route.servers, route.servers * 2):
            remote = f"[::1]:{listening.sockets[0].getsockname()[1]}"
            tunnel = Tunnel("chat/r1", replace(route, servers=servers), remote)
            world.request(tunnel)
            await world.until(tunnel, PathState.UP)
            assert await world.hear(tunnel) == b"six"
    finally:
        far.kill()


async def test_two_jumps(world: World, sshd: Sshd, backend: BackendName, tmp_path: Path) -> None:
    """Each that fails is told by number and address, with its own reason."""
    first, second = Sshd(tmp_path / "first"), Sshd(tmp_path / "second")
    first.start()
    second.start()
    try:
        servers = tuple(route_to(one, backend).target for one in (first, second, sshd))
        route = replace(impatient(route_to(sshd, backend)), servers=servers)
        tunnel = Tunnel("chat/r1", route, f"127.0.0.1:{await world.listen(b'far')}")
        world.request(tunnel)
        await world.until(tunnel, PathState.UP)
        assert await world.hear(tunnel) == b"far"
        second.kill()
        status = await world.until(tunnel, PathState.JUMP_FAILED)
        assert status.reason.startswith(f"jump 2 (127.0.0.1:{second.port}): connection refused")
        make_key(second.host_key)
        second.start()
        async with asyncio.timeout(60):
            while "host key changed" not in world.fleet.status(tunnel).reason:
                await asyncio.sleep(0.02)
        assert world.fleet.status(tunnel).reason.startswith(f"jump 2 (127.0.0.1:{second.port})")
        second.trust()
        await world.until(tunnel, PathState.UP, within_s=60)
        first.freeze()
        await world.until(tunnel, PathState.DEAD_PATH, within_s=60)
        (first.directory / "authorized").write_text("")
        first.kill()
        first.start()
        async with asyncio.timeout(60):
            while "auth failed" not in world.fleet.status(tunnel).reason:
                await asyncio.sleep(0.02)
        assert world.fleet.status(tunnel).reason.startswith(f"jump 1 (127.0.0.1:{first.port})")
    finally:
        first.kill()
        second.kill()


async def test_fifty_replicas_on_one_host(world: World, sshd: Sshd, backend: BackendName) -> None:
    """One connection for all of them; after it was lost all are back."""
    port = await world.listen(b"one")
    tunnels = [Tunnel(f"chat/r{n}", route_to(sshd, backend), f"127.0.0.1:{port}") for n in range(50)]
    world.request(*tunnels)
    for tunnel in tunnels:
        await world.until(tunnel, PathState.UP)
    assert len(world.fleet.connections) == 1
    sshd.cut()
    await world.until(tunnels[0], PathState.CLOSED, PathState.CONNECTING)
    for tunnel in tunnels:
        await world.until(tunnel, PathState.UP)
        assert await world.hear(tunnel) == b"one"
    assert len(world.fleet.connections) == 1


async def test_something_else_listens_at_the_ssh_port(world: World, backend: BackendName, tmp_path: Path) -> None:
    """One that says nothing: after `connect_timeout_s`, in words."""
    silent = Sshd(tmp_path / "silent")
    with socket.create_server((silent.host, silent.port)):
        tunnel = Tunnel("chat/r1", impatient(route_to(silent, backend)), "127.0.0.1:1")
        world.request(tunnel)
        reason = (await world.until(tunnel, PathState.UNREACHABLE)).reason
        assert reason in ("Connection timed out during banner exchange", "it did not accept our login in time")


async def test_stopped_process_is_replaced(world: World, sshd: Sshd, backend: BackendName) -> None:
    """One that is there and does nothing is no tunnel: it is ended when it was silent as long as a path may be."""
    tunnel = Tunnel("chat/r1", impatient(route_to(sshd, backend)), f"127.0.0.1:{await world.listen(b'one')}")
    world.request(tunnel)
    await world.until(tunnel, PathState.UP)
    (link,) = world.fleet.connections
    pid = link.pid
    assert pid is not None
    stop(pid)
    status = await world.until(tunnel, PathState.LOCAL_TROUBLE, within_s=60)
    assert status.reason == f"the {backend} process (pid {pid}) did not answer, and was ended"
    await world.until(tunnel, PathState.UP)
    assert await world.hear(tunnel) == b"one"
