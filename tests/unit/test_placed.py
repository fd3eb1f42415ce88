"""What may be bridged, whoever names it: by a pattern, in an inventory, or over the API."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway_sidecar.config import SshDefaults
from gateway_sidecar.control.replicas.notes import is_at, open_path
from gateway_sidecar.domain.model import Overrides, ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.files.stamp import stamp_of
from gateway_sidecar.sources import socket_pattern
from gateway_sidecar.sources.base import Given
from gateway_sidecar.sources.described import listing_of
from gateway_sidecar.sources.entry import Described
from gateway_sidecar.sources.inventory import Inventory
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.sources.placed import Forbidden, OwnSockets, RefusedPlaceError, occupant_of, socket_at
from gateway_sidecar.sources.socket_pattern import SocketPattern

ONE, OTHER = 42421, 42422
R1 = ReplicaId("r1")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
Bind = Callable[[Path], Path]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Makes a socket at a path."""
    bound: list[socket.socket] = []

    def make(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        bound.append(socket.socket(socket.AF_UNIX))
        bound[-1].bind(str(path))
        return path

    yield make
    for each in bound:
        each.close()


def give(path: Path, owner: int) -> None:
    os.chown(path, owner, owner, follow_symlinks=False)


def given(socket: Path, own: OwnSockets | None = None) -> Given:
    """What a source is built with; a tunnel's socket is this one."""
    return Given("chat", SshDefaults(), lambda _: socket, own or OwnSockets())


def _bind_anew(socket_path: Path, bind: Bind) -> None:
    socket_path.unlink()
    bind(socket_path)


def _lead_elsewhere(socket_path: Path, bind: Bind) -> None:
    bind(socket_path.with_name("elsewhere"))
    socket_path.unlink()
    socket_path.symlink_to("elsewhere")


def _put_a_file(socket_path: Path, _bind: Bind) -> None:
    socket_path.unlink()
    socket_path.touch()


def _lead_the_directory_elsewhere(socket_path: Path, _bind: Bind) -> None:
    moved = socket_path.parent.rename(socket_path.parent.with_name("moved"))
    socket_path.parent.symlink_to(moved)


@pytest.mark.parametrize(
    "change",
    [
        _bind_anew,
        _lead_elsewhere,
        _put_a_file,
        _lead_the_directory_elsewhere,
        lambda path, _bind: path.unlink(),
        lambda path, _bind: path.with_suffix(".yaml").touch(),
        lambda path, _bind: os.utime(path, ns=(1, 1)),
        lambda path, bind: bind(path.with_name("r2.sock")),
    ],
)  # fmt: skip
def test_a_look_after_a_change_shows_what_a_first_look_would(
    tmp_path: Path, bind: Bind, change: Callable[[Path, Bind], None]
) -> None:
    """What is as it was is looked at with one lstat; what is not is judged anew."""
    pattern = f"{tmp_path}/at/{{replica}}.sock"
    looker = SocketPattern(pattern, OwnSockets())
    path = bind(tmp_path / "at" / "r1.sock")
    looker.look_now()
    assert looker.look_now() == SocketPattern(pattern, OwnSockets()).look_now()
    change(path, bind)
    assert looker.look_now() == SocketPattern(pattern, OwnSockets()).look_now()


@pytest.mark.parametrize("is_in_place", [True, False])
def test_notes_that_are_written_right_after_they_were_made_are_notes_anew(
    tmp_path: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch, *, is_in_place: bool
) -> None:
    """The kernel's clock for files may stand still meanwhile."""
    monkeypatch.setattr(socket_pattern, "stamp_of", lambda found: (*stamp_of(found)[:3], 1, 1))
    notes = bind(tmp_path / "r1.sock").with_suffix(".yaml")
    looker = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets())
    notes.write_text("cost: 1\n")
    before = looker.look_now().present[ReplicaId("r1")]
    assert looker.look_now().present[ReplicaId("r1")] == before
    if is_in_place:
        notes.write_text("cost: 10\n")
    else:
        replace_file(notes, b"cost: 2\n")
    assert looker.look_now().present[ReplicaId("r1")] != before


def _chown_and_back(socket_path: Path, _bind: Bind) -> None:
    os.chown(socket_path, ONE, ONE)
    os.chown(socket_path, os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda path, _bind: path.touch(), True),
        (lambda path, _bind: os.utime(path, ns=(1, 1)), True),
        (lambda path, _bind: path.chmod(0o600), True),
        pytest.param(_chown_and_back, True, marks=as_root),
        (lambda path, _bind: path.rename(path.with_name("x")).rename(path), True),
        (_bind_anew, False),
    ],
    ids=["touch", "utime", "chmod", "chown", "rename", "bind"],
)
def test_identity_of_a_socket_is_when_it_was_bound_and_nothing_that_may_change(
    tmp_path: Path, bind: Bind, change: Callable[[Path, Bind], None], *, is_same: bool
) -> None:
    """A served socket that is touched is the same replica; one bound anew is not, though its inode be the same."""
    path = bind(tmp_path / "r1.sock")
    source = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets())
    before = source.look_now().present[R1]
    change(path, bind)
    after = source.look_now().present[R1]
    assert (after.occupant == before.occupant) is is_same
    handle = open_path(path)
    try:
        assert is_at(handle, before) is is_same
    finally:
        os.close(handle)


def _time_there(path: Path) -> int:
    path.touch()
    try:
        return path.stat().st_mtime_ns
    finally:
        path.unlink()


@pytest.mark.parametrize("directory", ["/dev/shm", "/tmp"])
def test_inode_number_that_is_used_again_is_another_socket(directory: str) -> None:
    """Where the file system gives it to the next socket, the time of birth tells the two apart."""
    found: list[SocketIdentity] = []
    with tempfile.TemporaryDirectory(dir=directory) as made:
        path = Path(made) / "r1.sock"
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
            found.append(socket_identity(path))
            path.unlink()
            tick = _time_there(path)
            while _time_there(path) == tick:
                pass  # Two births in one tick of the file system's clock are one.
    if not all(it.born_ns for it in found):
        pytest.skip(f"{directory} keeps no time of birth")
    assert len(set(found)) == len(found)


def test_a_socket_that_the_daemon_comes_to_use_is_refused_though_it_is_as_it_was(tmp_path: Path, bind: Bind) -> None:
    used: list[str] = []
    looker = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets(sockets=lambda: used))
    path = bind(tmp_path / "r1.sock")
    assert looker.look_now().present
    used.append(str(path))
    assert "which the daemon itself uses" in looker.look_now().refused["r1"]


def test_what_a_pattern_bridges_is_the_socket_itself(tmp_path: Path, bind: Bind) -> None:
    """A link of ours is followed once, here; the bridge does not follow it again."""
    real = bind(tmp_path / "real" / "engine.sock")
    (tmp_path / "r1.sock").symlink_to("real/engine.sock")
    bind(tmp_path / "r2.sock")
    listing = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets()).look_now()
    one, two = listing.present[R1], listing.present[ReplicaId("r2")]
    assert (one.socket, one.place) == (tmp_path / "r1.sock", real)
    assert (two.target, two.place) == (None, tmp_path / "r2.sock")


def test_the_daemons_own_is_refused_by_place_and_by_inode(
    tmp_path: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names it, an operator too: below run_dir, an agent of the environment or of a tunnel, a hard link."""
    run_dir, agent, other_agent = tmp_path / "run", bind(tmp_path / "agent"), bind(tmp_path / "other-agent")
    admin, alive = bind(run_dir / "admin.sock"), bind(run_dir / "nginx" / "alive.sock")
    os.link(admin, tmp_path / "admin-too.sock")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    own = OwnSockets((run_dir,), lambda: ("SSH_AUTH_SOCK", None, str(other_agent)))
    (tmp_path / "link").symlink_to("run")
    for path in (admin, alive, agent, other_agent, tmp_path / "admin-too.sock", tmp_path / "link" / "admin.sock"):
        with pytest.raises(RefusedPlaceError, match=r"which is the daemon's own|which the daemon itself uses"):
            socket_at(str(path), own.now())
        listing = listing_of({R1: Described(path, Overrides())}, "api", given(admin, own))
        assert (dict(listing.present), list(listing.refused)) == ({}, [R1])
    assert socket_at(str(bind(tmp_path / "run-not" / "x.sock")), own.now()).links == ()


def test_a_path_that_cannot_be_shown_is_refused(tmp_path: Path, bind: Bind) -> None:
    """It would stand in the log, in tables and in nginx's configuration."""
    bind(tmp_path / "odd\x1b[2J" / "r1.sock")
    (tmp_path / "r1.sock").symlink_to("odd\x1b[2J/r1.sock")
    listing = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets()).look_now()
    assert (dict(listing.present), list(listing.refused)) == ({}, ["r1"])
    assert "characters that cannot be shown" in listing.refused["r1"]


@as_root
def test_a_link_to_somebody_elses_socket_is_refused(tmp_path: Path, bind: Bind) -> None:
    """Whoever made it may be led there, and would have the daemon lead others."""
    give(bind(tmp_path / "theirs" / "r1.sock"), ONE)
    for name, owner in (("of-other", OTHER), ("of-one", ONE), ("of-root", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r1.sock").symlink_to("../theirs/r1.sock")
        give(tmp_path / name / "r1.sock", owner)
        listing = SocketPattern(f"{tmp_path}/{name}/{{replica}}.sock", OwnSockets()).look_now()
        assert list(listing.refused) == (["r1"] if owner == OTHER else [])
        assert list(listing.present) == ([] if owner == OTHER else [R1])


@as_root
def test_an_inventory_names_its_owners_sockets_or_anybodys_where_it_was_given_that_job(
    tmp_path: Path, bind: Bind
) -> None:
    """The owner of what the settings name may name any socket; a guest in that directory only his own."""
    directory, sock = tmp_path / "inventory", bind(tmp_path / "s" / "r1.sock")
    directory.mkdir()
    (directory / "a.yaml").write_text(f"r1: {{socket: {sock}}}\n")

    def look() -> Listing:
        return Inventory(directory, given(sock)).look_now()

    give(sock, ONE)
    for of_directory, of_file, is_present in ((0, 0, True), (OTHER, OTHER, True), (0, ONE, True), (0, OTHER, False)):
        give(directory, of_directory)
        give(directory / "a.yaml", of_file)
        listing = look()
        assert (R1 in listing.present) == is_present, (of_directory, of_file)
    assert listing.refused[R1] == (f"user {OTHER}, who names {sock}, does not own it: it belongs to user {ONE}")
    (directory / "a.yaml").rename(tmp_path / "roots.yaml")
    give(tmp_path / "roots.yaml", 0)
    (directory / "b.yaml").symlink_to(tmp_path / "roots.yaml")
    give(directory / "b.yaml", OTHER)
    listing = look()
    assert f"is a link of user {OTHER}" in listing.refused[str(directory / "b.yaml")]
    assert R1 not in listing.present


def test_a_guest_of_an_inventory_has_the_daemon_log_in_nowhere(tmp_path: Path) -> None:
    """Its SSH keys are for whom the settings named, and root."""
    tunnel = Tunnel("chat/r1", SshRoute((SshServer("gpu1"),)), "127.0.0.1:8000")
    for named_by, is_present in ((OTHER, False), (ONE, True), (0, True), (os.geteuid(), True)):
        listing = listing_of({R1: Described(tunnel, Overrides(), named_by)}, "inventory", given(tmp_path), {ONE})
        assert (R1 in listing.present) == is_present
        assert is_present or f"user {OTHER} may not have the daemon log in" in listing.refused[R1]


@as_root
def test_a_key_goes_to_no_place_where_others_may_put_a_socket(tmp_path: Path, bind: Bind) -> None:
    """As an inventory or the API has it, which name a path and not an owner."""
    sock = bind(tmp_path / "s" / "r1.sock")
    give(sock, ONE)
    described = {R1: Described(sock, Overrides(api_key="k"))}
    for owner, mode, is_present in ((0, 0o755, True), (ONE, 0o2750, True), (OTHER, 0o750, False), (0, 0o3775, False)):
        give(sock.parent, owner)
        sock.parent.chmod(mode)
        listing = listing_of(described, "api", given(sock))
        assert (R1 in listing.present) == is_present, (owner, oct(mode))
    assert "would be sent its API key" in listing.refused[R1]
    assert listing_of({R1: Described(sock, Overrides())}, "api", given(sock)).present


@as_root
def test_notes_of_others_are_told_of_and_not_read(tmp_path: Path, bind: Bind) -> None:
    """They cannot take the replica out; given to the right owner they count, and the change is noticed."""
    pattern = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets())
    sock, notes = bind(tmp_path / "r1.sock"), tmp_path / "r1.yaml"
    give(sock, ONE)
    notes.write_text("priority: 3\n")
    give(notes, OTHER)
    listing = pattern.look_now()
    assert listing.present[R1].notes is None
    assert f"r1.yaml belongs to user {OTHER}" in listing.refused["r1.yaml"]
    give(notes, ONE)
    one = pattern.look_now().present[R1]
    assert one.notes is not None
    assert one.notes.path == notes
    notes.chmod(0o600)
    assert not pattern.look_now().present[R1].says_as_much_as(one)


def test_a_link_put_on_the_way_after_the_look_is_noticed(tmp_path: Path, bind: Bind) -> None:
    """The very socket, at the very place, or it is looked at again."""
    sock = bind(tmp_path / "a" / "r1.sock")
    place = socket_at(str(sock), Forbidden())
    sighting = Sighting(R1, sock, occupant_of(place), "sockets")

    def pinned() -> bool:
        handle = open_path(sighting.place)
        try:
            return is_at(handle, sighting)
        finally:
            os.close(handle)

    assert pinned()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to("b")
    assert not pinned()
    (tmp_path / "a").unlink()
    (tmp_path / "b").rename(tmp_path / "a")
    sock.rename(tmp_path / "c")
    sock.symlink_to(tmp_path / "c")
    assert not pinned()
