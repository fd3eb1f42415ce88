"""Inventory files: read when they change, never half, and never trusted with more than they can prove."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway_sidecar.config import SshDefaults
from gateway_sidecar.domain.model import Overrides, ReplicaId, WorkerType
from gateway_sidecar.domain.tunnels import SshServer, Tunnel
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.base import Given
from gateway_sidecar.sources.entry import Described
from gateway_sidecar.sources.inventory import Inventory, read_inventory
from gateway_sidecar.sources.placed import OwnSockets

DEFAULTS = SshDefaults(user="tunnel", key_file="/etc/key", known_hosts="/etc/known")


def read(path: Path, text: str, defaults: SshDefaults = DEFAULTS) -> Mapping[str, Described]:
    path.write_text(text)
    return {str(replica): it for replica, it in read_inventory(path, "chat", defaults).items()}


def problems(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(path, text)
    return [problem.removeprefix(f"{path}:") for problem in raised.value.problems]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml"


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "r.sock"))
        yield tmp_path / "r.sock"


def inventory(path: Path) -> Inventory:
    return Inventory(path, Given("chat", DEFAULTS, socket_of, OwnSockets()))


def socket_of(tunnel: Tunnel) -> Path:
    return Path("/run/t") / f"{tunnel.owner.replace('/', '-')}.sock"


def test_entry_with_notes(path: Path) -> None:
    """All that a file beside a socket may carry, the key of the engine included."""
    (path.parent / "r1.key").write_text("secret\n")
    text = "r1: {socket: /run/r1.sock, labels: {rack: b7}, worker_type: prefill, priority: 3, api_key_file: r1.key}\n"
    found = read(path, text)["r1"]
    assert found == Described(Path("/run/r1.sock"), Overrides({"rack": "b7"}, "secret", WorkerType.PREFILL, 3))


def test_ssh_entry_takes_what_it_leaves_out_from_the_defaults(path: Path) -> None:
    """Its own words win, also over a jump or a way to know the host that the defaults have."""
    defaults = SshDefaults.model_validate(
        {**DEFAULTS.model_dump(exclude={"jump"}), "jump": [{"host": "gate", "port": 2200}]}
    )
    text = (
        "r1: {ssh: {host: gpu, forward: '127.0.0.1:8000'}}\n"
        "r2: {ssh: {host: gpu, port: 23, forward: /e.sock, jump: []}}\n"
    )
    found = read(path, text, defaults)
    one, two = found["r1"].place, found["r2"].place
    assert isinstance(one, Tunnel)
    assert isinstance(two, Tunnel)
    gate = SshServer("gate", 2200, "tunnel", "/etc/key", None, "/etc/known")
    assert one.route.servers == (gate, SshServer("gpu", 22, "tunnel", "/etc/key", None, "/etc/known"))
    assert [str(server) for server in two.route.servers] == ["gpu:23"]
    assert (one.owner, one.remote, two.remote) == ("chat/r1", "127.0.0.1:8000", "/e.sock")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r1: {}", "1: r1: needs one place; give it either `socket` or `ssh`"),
        ("r1: {socket: /a, ssh: {host: h, forward: '1.1.1.1:1'}}", "1: r1: needs one place"),
        ("r1: {socket: /a, direct: true}", "1: r1: has `direct: true` without the address"),
        (
            "r1:\n  socket: /a\n  kv_role: kv_consumer\n  worker_type: prefill",
            "3: r1.kv_role: 'kv_consumer' is a decode worker, but worker_type says prefill",
        ),
        ("r1:\n  socket: a", "2: r1.socket: 'a' is relative"),
        ("r1: {ssh: {host: h}}", "1: r1.ssh.forward: is missing; add it, for example 127.0.0.1:8000"),
        ("r1: {ssh: {host: h, forward: '1.1.1.1:0'}}", "1: r1.ssh.forward: '1.1.1.1:0' is not an engine's address"),
        (
            "r1: {ssh: {host: -oProxyCommand=x, forward: '1.1.1.1:1'}}",
            "1: r1.ssh.host: '-oProxyCommand=x' is not a host",
        ),
        ("r1: {ssh: {host: h, user: '-l x', forward: '1.1.1.1:1'}}", "1: r1.ssh.user: '-l x' is not a user's name"),
        (
            "r1: {ssh: {host: h, key_file: '/a b', forward: '1.1.1.1:1'}}",
            "1: r1.ssh.key_file: '/a b' holds a character",
        ),
        (
            "r1: {ssh: {host: h, host_key: AAAA, forward: '1.1.1.1:1'}}",
            "1: r1.ssh.host_key: 'AAAA' is not a public key",
        ),
        ("r1: {sockt: /a}", "1: r1.sockt: unknown setting; did you mean 'socket'?"),
        ("a/b: {socket: /a}", "1: a/b: 'a/b' cannot be a replica's id"),
        ("r1: {socket: /a}\nr1: {socket: /b}", "2: r1: is given twice, first in line 1"),
        ("[r1]", "1: is not a mapping at the top"),
        ("r1: {socket: /a", "1: is not YAML"),
    ],
)
def test_mistakes_are_told_with_their_lines(path: Path, text: str, expected: str) -> None:
    """And nothing of such a file is used."""
    assert any(line.startswith(expected) for line in problems(path, text)), problems(path, text)


def test_tunnel_that_cannot_prove_who_it_is_is_refused(path: Path) -> None:
    """No key and no agent; first use believed, and nowhere to write down who it was."""
    with pytest.raises(ConfigError, match="has neither key_file nor agent"):
        read(path, "r1: {ssh: {host: h, forward: '1.1.1.1:1'}}", SshDefaults())
    with pytest.raises(ConfigError, match="needs a known_hosts file"):
        read(
            path, "r1: {ssh: {host: h, host_key: trust-on-first-use, forward: '1.1.1.1:1'}}", SshDefaults(key_file="/k")
        )


def test_json_with_tabs(tmp_path: Path) -> None:
    """As tools write it."""
    assert list(read(tmp_path / "a.json", '{\n\t"r1": {\n\t\t"socket": "/a"\n\t}\n}\n')) == ["r1"]


def test_sockets_are_there_when_they_exist_and_tunnels_at_once(tmp_path: Path, sock: Path) -> None:
    """A tunnel's socket is ours to make; it is known by the tunnel, whatever inode it has."""
    (tmp_path / "a.yaml").write_text(
        f"r1: {{socket: {sock}}}\nr2: {{socket: /none}}\nr3: {{socket: {tmp_path}/a.yaml}}\n"
        "r4: {ssh: {host: h, forward: '1.1.1.1:1'}}\n"
    )
    listing = inventory(tmp_path / "a.yaml").look_now()
    assert set(listing.present) == {"r1", "r4"}
    assert listing.present[ReplicaId("r1")].occupant.inode == sock.stat().st_ino
    assert listing.present[ReplicaId("r4")].occupant.tunnel == "chat-r4"
    assert listing.refused == {"r3": f"{tmp_path}/a.yaml is not a socket"}


def test_broken_file_keeps_its_last_content(tmp_path: Path, sock: Path) -> None:
    """The other files go on; what is wrong is told until it is repaired."""
    (tmp_path / "a.yaml").write_text(f"r1: {{socket: {sock}}}\n")
    (tmp_path / "b.yaml").write_text("{}")
    source = inventory(tmp_path)
    assert set(source.look_now().present) == {"r1"}
    (tmp_path / "a.yaml").write_text("r1: {socket: 1}")
    (tmp_path / "b.yaml").write_text(f"r2: {{socket: {sock}}}\n")
    listing = source.look_now()
    assert set(listing.present) == {"r1", "r2"}
    assert listing.refused[f"{tmp_path}/a.yaml"].startswith(f"{tmp_path}/a.yaml:1: r1.socket: ")
    assert listing.refused[f"{tmp_path}/a.yaml"].endswith("; what it said before stays")
    assert listing.unseen == {}
    (tmp_path / "a.yaml").write_text("{}")
    listing = source.look_now()
    assert (set(listing.present), listing.refused) == ({"r2"}, {})


def test_file_that_was_never_good_leaves_others_as_they_were(tmp_path: Path) -> None:
    """Nothing is gone that it may list."""
    (tmp_path / "a.yaml").write_text(":")
    (tmp_path / "b.yaml").write_text("{}")
    listing = inventory(tmp_path).look_now()
    assert not listing.is_gone(ReplicaId("r1"), "inventory")
    assert listing.is_gone(ReplicaId("r1"), "sockets")


def test_file_that_is_removed_takes_its_replicas_with_it(tmp_path: Path, sock: Path) -> None:
    """In a directory; the path of the inventory itself is never taken for an empty one."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.yaml").write_text(f"r1: {{socket: {sock}}}\n")
    source = inventory(tmp_path / "d")
    assert set(source.look_now().present) == {"r1"}
    (tmp_path / "d" / "a.yaml").rename(tmp_path / "kept")
    assert source.look_now().is_gone(ReplicaId("r1"), "inventory")
    (tmp_path / "kept").rename(tmp_path / "d" / "a.yaml")
    assert set(source.look_now().present) == {"r1"}
    (tmp_path / "d").rename(tmp_path / "away")
    listing = source.look_now()
    assert set(listing.present) == {"r1"}
    assert "No such file" in listing.unseen["inventory"]


def test_id_in_two_files_stays_with_the_first(tmp_path: Path, sock: Path) -> None:
    """Who had it first keeps it, also against a file that sorts before."""
    (tmp_path / "b.yaml").write_text(f"r1: {{socket: {sock}}}\n")
    source = inventory(tmp_path)
    source.look_now()
    (tmp_path / "a.yaml").write_text("r1: {socket: /elsewhere}\n")
    listing = source.look_now()
    assert listing.present[ReplicaId("r1")].socket == sock
    assert listing.refused["r1"].startswith(
        f"is in {tmp_path}/b.yaml and in {tmp_path}/a.yaml; {tmp_path}/b.yaml counts"
    )


async def test_hints_come_with_a_rename(tmp_path: Path) -> None:
    """As careful tools write; nothing waits for the rescan."""
    hints = inventory(tmp_path / "a.yaml").hints()
    await anext(hints)
    (tmp_path / "new").write_text("{}")
    (tmp_path / "new").rename(tmp_path / "a.yaml")
    await anext(hints)
    await hints.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "# nobody\n", "null\n", "---\n"])
def test_empty_file_is_no_empty_list(path: Path, text: str) -> None:
    """A file that is being written, or that a full disk has cut, must not take its replicas with it."""
    path.write_text("r1: {socket: /run/r1.sock}\n")
    it = inventory(path)
    assert it.look_now().absent.keys() == {"r1"}
    path.write_text(text)
    listing = it.look_now()
    assert listing.absent.keys() == {"r1"}
    assert listing.refused[str(path)].endswith("is empty; write {} to have no replicas; what it said before stays")
    path.write_text("{}")
    assert it.look_now().absent == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"r1": {"socket": "/x"}, "r2": {"sock', "1: is not JSON: Unterminated string starting at (column 33)"),
        ('// hello\n{"r1": {"socket": "/x"}}', "1: is not JSON: Expecting value (column 1); remove comments"),
        ('{"r1": {"socket": "/x"}}\n/* a */', "2: is not JSON: Extra data (column 1); remove comments"),
    ],
)
def test_broken_json_is_told_as_json(tmp_path: Path, text: str, said: str) -> None:
    """And not as the YAML that it is not either."""
    (problem,) = problems(tmp_path / "a.json", text)
    assert problem.startswith(said)


@pytest.mark.parametrize("replica", [".", "..", " "])
def test_id_that_no_path_can_hold_is_refused(path: Path, replica: str) -> None:
    """The admin API has it in its paths."""
    (problem,) = problems(path, f"'{replica}': {{socket: /x}}")
    assert "cannot be a replica's id" in problem


def test_socket_on_this_machine_may_have_any_name(path: Path) -> None:
    """What ssh would give a meaning is of no matter here; the cure names a socket."""
    assert read(path, "r1: {socket: '/run/a b [1]/%h.sock'}\n")["r1"].place == Path("/run/a b [1]/%h.sock")
    (problem,) = problems(path, "r1: {socket: r1.sock}\n")
    assert problem.endswith("use an absolute path such as /run/replicas/r1.sock")
