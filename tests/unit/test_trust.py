"""Whom a file is believed of, by owners and modes alone; and where paths really lead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway_sidecar import check
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.domain.trust import Owned, trouble_with_key, trouble_with_links, trouble_with_notes, way_in
from gateway_sidecar.errors import StateError
from gateway_sidecar.files.follow import follow, opened_at
from gateway_sidecar.files.own import keep_directory, make_directory, way_in_for_others
from gateway_sidecar.files.replace import open_to_append, replace_file, replace_link
from gateway_sidecar.supervision.lock import DirectoryLock, holder_of
from gateway_sidecar.supervision.privileges import keep_files_to_ourselves

US, ONE, OTHER = 990, 42421, 42422
OURS = frozenset({0, US})


def held(path: str, owner: int, mode: int = 0o755, group: int = 0) -> Owned:
    return Owned(path, owner, group, mode)


@pytest.mark.parametrize(
    ("link_of", "target_of", "believed"),
    [(ONE, ONE, True), (0, OTHER, True), (US, OTHER, True), (ONE, OTHER, False), (ONE, US, False), (ONE, 0, False)],
)
def test_a_link_leads_to_its_owners_own(link_of: int, target_of: int, believed: bool) -> None:
    """Root's and the daemon's own lead anywhere; everybody else's to what is his."""
    trouble = trouble_with_links([held("/r/evil.sock", link_of)], held("/run/gw/admin.sock", target_of), OURS)
    assert (trouble is None) == believed
    if trouble is not None:
        assert trouble.startswith(f"/r/evil.sock is a link of user {link_of} that leads to /run/gw/admin.sock")


def test_every_link_on_the_way_is_judged() -> None:
    """One of a stranger's is enough."""
    links = [held("/var/run", 0), held("/r/a", OTHER), held("/r/b", ONE)]
    assert "/r/a is a link" in (trouble_with_links(links, held("/x", ONE), OURS) or "")


@pytest.mark.parametrize(
    ("place", "above", "words"),
    [
        (held("/a/b", US, 0o700), [held("/", 0), held("/a", 0)], None),
        (held("/a/b", 0, 0o755), [held("/", 0), held("/a", US)], None),
        (held("/tmp/b", US, 0o700), [held("/", 0), held("/tmp", 0, 0o1777)], None),
        (held("/a/b", US, 0o700), [held("/", 0), held("/a", US, 0o775, group=77)], None),
        (held("/a/b", ONE, 0o700), [], f"/a/b belongs to user {ONE}"),
        (held("/a/b", US, 0o770), [], "users other than its owner may write in /a/b (mode 0770)"),
        (held("/a/b", US, 0o1777), [], "users other than its owner may write in /a/b (mode 1777)"),
        (held("/a/b", US, 0o700), [held("/a", ONE)], f"/a, above it, belongs to user {ONE}"),
        (held("/a/b", US, 0o700), [held("/a", ONE, 0o1777)], f"/a, above it, belongs to user {ONE}"),
        (held("/a/b", US, 0o700), [held("/a", 0, 0o777)], "others may rename what is in /a, above it (mode 0777)"),
        (held("/a/b", US, 0o700), [held("/a", 0, 0o775, group=50)], "others may rename what is in /a"),
    ],
)
def test_how_others_get_into_a_directory(place: Owned, above: list[Owned], words: str | None) -> None:
    """By writing in it, or by putting another one into its place."""
    found = way_in(place, above, OURS, groups=(0, 77))
    assert (found is None) if words is None else (words in (found or ""))


@pytest.mark.parametrize(
    ("notes_of", "links_of", "counts"),
    [
        (ONE, [], True),
        (0, [], True),
        (US, [], True),
        (OTHER, [], False),
        (ONE, [ONE], True),
        (ONE, [0], True),
        (0, [ONE], False),  # `evil.yaml -> r1.yaml`, which is root's
        (OTHER, [ONE], False),
    ],
)
def test_notes_count_for_their_owners_socket(notes_of: int, links_of: list[int], counts: bool) -> None:
    """For a socket of user ONE."""
    links = [held("/r/evil.yaml", owner) for owner in links_of]
    assert (trouble_with_notes(held("/r/r1.yaml", notes_of, 0o640), links, ONE, OURS) is None) == counts


@pytest.mark.parametrize(
    ("notes", "shared", "shown"),
    [
        (held("/r/r1.yaml", ONE, 0o640), "anybody may", True),
        (held("/r/r1.yaml", ONE, 0o660), None, False),
        (held("/r/r1.yaml", ONE, 0o646), None, False),
        (held("/r/r1.yaml", 0, 0o640), None, True),
        (held("/r/r1.yaml", 0, 0o640), "users other than its owner may write in /r (mode 3775)", False),
    ],
)
def test_a_key_is_shown_to_its_owners_socket(notes: Owned, shared: str | None, shown: bool) -> None:
    """Root's notes name a key only where nobody else can place the socket."""
    trouble = trouble_with_key(notes, ONE, shared)
    assert (trouble is None) == shown
    assert shared is None or trouble is None or shared in trouble


def test_a_path_is_followed_link_by_link(tmp_path: Path) -> None:
    """As the kernel does it, and with every link named."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "file").touch()
    (tmp_path / "to-deep").symlink_to("real/./deep/../deep")
    (tmp_path / "twice").symlink_to(tmp_path / "to-deep")
    path = f"{tmp_path}/twice/../deep//file"
    found = follow(path)
    assert found.real == os.path.realpath(path) == str(tmp_path / "real" / "deep" / "file")
    assert [link.path for link in found.links] == [f"{tmp_path}/twice", f"{tmp_path}/to-deep"]
    assert found.found.st_ino == (tmp_path / "real" / "deep" / "file").stat().st_ino
    assert str(tmp_path / "real") in [each.path for each in found.above]
    below = follow("file", follow(f"{tmp_path}/twice"))
    assert (below.real, below.links) == (found.real, found.links)
    with (tmp_path / "real" / "deep" / "file").open() as file:
        assert opened_at(file.fileno()) == found.real


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        follow(f"{tmp_path}/a")
    with pytest.raises(FileNotFoundError):
        follow(f"{tmp_path}/none")


def test_root_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a container; nobody else is."""
    monkeypatch.setattr(check, "_CONTAINER", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [finding.level for finding in check.root_findings()] == [Level.WARN]
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    assert check.root_findings() == []


@pytest.mark.parametrize("umask", [0, 0o077])
def test_what_is_replaced_is_never_written_through(tmp_path: Path, umask: int) -> None:
    """A planted link leads nowhere, under either name, and the mode is what was asked for whatever the umask is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "place").symlink_to(victim)
    (tmp_path / ".place.new").symlink_to(victim)
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "place", "text", 0o640)
        make_directory(tmp_path / "x" / "y", 0o750)
    finally:
        os.umask(before)
    place = (tmp_path / "place").lstat()
    assert (place.st_mode & 0o7777, (tmp_path / "place").read_text(), victim.read_text()) == (0o640, "text", "precious")
    assert [(tmp_path / "x" / "y").stat().st_mode & 0o777, (tmp_path / "x").stat().st_mode & 0o777] == [0o750, 0o750]
    replace_link(tmp_path / "place", victim)
    assert (tmp_path / "place").readlink() == victim
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(tmp_path / "place")


def test_the_lock_is_one_daemons_and_never_somebody_elses_file(tmp_path: Path) -> None:
    """A second daemon is told whose it is; a link in its place is not followed."""
    run_dir = tmp_path / "run"
    first, second = DirectoryLock(run_dir), DirectoryLock(run_dir)
    first.take()
    with pytest.raises(StateError, match=rf"another gateway-sidecar \(pid {os.getpid()}\) runs"):
        second.take()
    assert holder_of(run_dir) == os.getpid()
    first.release()
    assert holder_of(run_dir) is None
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run_dir / "lock").unlink()
    (run_dir / "lock").symlink_to(victim)
    with pytest.raises(StateError, match="cannot use"):
        second.take()
    assert victim.read_text() == "precious"


def test_a_directory_that_others_can_write_in_is_not_kept(tmp_path: Path) -> None:
    """Nor one below such a directory, whether it is there already or not."""
    place = tmp_path / "run"
    keep_directory(place, 0o750)
    assert (place.stat().st_mode & 0o777, way_in_for_others(place)) == (0o750, None)
    place.chmod(0o777)
    with pytest.raises(OSError, match=r"users other than its owner may write in .*mode 0777.*; name another"):
        keep_directory(place)
    place.rmdir()
    tmp_path.chmod(0o777)
    assert "others may rename what is in" in (way_in_for_others(place) or "")
    tmp_path.chmod(0o1777)
    assert way_in_for_others(place) is None
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        way_in_for_others(place)


def test_the_umask_keeps_files_to_the_daemon() -> None:
    """A loose one is made stricter; a strict one stays."""
    before = os.umask(0)
    try:
        found = []
        for mask in (0, 0o022, 0o027, 0o077):
            os.umask(mask)
            keep_files_to_ourselves()
            found.append(os.umask(0))
    finally:
        os.umask(before)
    assert found == [0o027, 0o027, 0o027, 0o077]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_a_directory_of_somebody_elses_is_not_kept(tmp_path: Path) -> None:
    """Nor one that his link leads to."""
    tmp_path.chmod(0o1777)
    for made in ("theirs", "ours"):
        (tmp_path / made).mkdir()
    os.chown(tmp_path / "theirs", ONE, ONE)
    (tmp_path / "link").symlink_to("ours")
    os.chown(tmp_path / "link", ONE, ONE, follow_symlinks=False)
    for name, words in (("theirs", f"belongs to user {ONE}"), ("link", f"is a link of user {ONE}")):
        with pytest.raises(OSError, match=words):
            keep_directory(tmp_path / name)
    with pytest.raises(OSError, match=f"it belongs to user {ONE}"):
        make_directory(tmp_path / "theirs")
    os.chown(tmp_path / "link", 0, 0, follow_symlinks=False)
    keep_directory(tmp_path / "link")
