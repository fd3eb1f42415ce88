"""Keys and certificates: what is read, what is refused and with which words, and what nginx finds."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway_sidecar.doors.certificate import read_certificate
from gateway_sidecar.doors.keys import add_key, parse_keys, read_keys, revoke_key
from gateway_sidecar.doors.publish import publish_keys, publish_pem, withdraw_keys
from gateway_sidecar.errors import FrontDoorError
from tests.system.test_front_door_tls import certificate

A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))


def test_both_spellings_comments_and_capitals() -> None:
    """As people write them, and as `sha256sum` does."""
    text = f"# keys\n\nalice:{A}\r\n bob.x-1 : sha256:{B.upper()} \n"
    assert parse_keys(text.encode(), "f") == {A: "alice", B: "bob.x-1"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", "f:1: is not NAME:SHA256"),
        (f"alice:{A[:-1]}", "f:1: is not NAME:SHA256"),
        (f"al ice:{A}", "f:1: is not NAME:SHA256"),
        (f"../x:{A}", "f:1: is not NAME:SHA256"),
        ("alice:sk-in-the-clear", "f:1: is not NAME:SHA256"),
        (f"alice:{A}\nalice:{B}", "f:2: 'alice' is named in line 1 already"),
        (f"alice:{A}\nbob:{A}", "f:2: 'bob' has the same key as 'alice'"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(text: str, expected: str) -> None:
    """With its number and the cure; what stands in it may be a key."""
    with pytest.raises(FrontDoorError) as caught:
        parse_keys(text.encode(), "f")
    assert [line.startswith(expected) and "; " in line for line in caught.value.problems] == [True]
    assert A not in str(caught.value)
    assert "sk-in-the-clear" not in str(caught.value)


def test_many_mistakes_are_not_many_lines() -> None:
    """Another file altogether, perhaps."""
    with pytest.raises(FrontDoorError) as caught:
        parse_keys(b"x\n" * 1000, "f")
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1] == "f: and 990 more"


@pytest.mark.parametrize(("mode", "usable"), [(0o600, True), (0o640, True), (0o644, False), (0o660, False)])
def test_others_may_not_read_or_change_the_file(tmp_path: Path, mode: int, usable: bool) -> None:
    """Hashes tell who has a key, and a line more lets anybody in."""
    file = tmp_path / "keys"
    add_key(file, "alice")
    file.chmod(mode)
    if usable:
        assert list(read_keys(file).values()) == ["alice"]
        return
    with pytest.raises(FrontDoorError, match=f"mode {mode:04o}"):
        read_keys(file)


def test_an_edit_keeps_all_else(tmp_path: Path) -> None:
    """Comments, order and mode."""
    file = tmp_path / "keys"
    file.write_text(f"# by hand\nalice:{A}")
    file.chmod(0o640)
    key = add_key(file, "bob")
    revoke_key(file, "alice")
    assert file.read_text() == f"# by hand\nbob:{hashlib.sha256(key.encode()).hexdigest()}\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["keys"]


def test_the_last_key_may_go(tmp_path: Path) -> None:
    """A file without a key is meant; an empty one is not."""
    file = tmp_path / "keys"
    add_key(file, "alice")
    revoke_key(file, "alice")
    assert read_keys(file) == {}
    file.write_text("")
    with pytest.raises(FrontDoorError, match="is empty"):
        read_keys(file)


def test_links_follow_the_keys(tmp_path: Path) -> None:
    """Only what changed is touched, and nothing else is there."""
    directory = tmp_path / "keys"
    assert publish_keys(directory, {A: "alice", B: "bob"}) == (2, 0)
    inode = (directory / A).lstat().st_ino
    assert publish_keys(directory, {A: "alice"}) == (0, 1)
    assert (directory / A).lstat().st_ino == inode
    assert publish_keys(directory, {A: "ann"}) == (1, 0)
    assert {name: str((directory / name).readlink()) for name in os.listdir(directory)} == {A: "ann"}
    assert directory.stat().st_mode & 0o777 == 0o700
    withdraw_keys(directory)
    assert not directory.exists()


def test_a_certificate_is_published_once(tmp_path: Path) -> None:
    """For the daemon's user alone."""
    place = tmp_path / "chat.pem"
    assert publish_pem(place, b"x")
    assert not publish_pem(place, b"x")
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_good_pair_is_taken(tmp_path: Path) -> None:
    """Its names are those that browsers will compare."""
    pem = certificate(tmp_path, "api.example.com", "*.x.example.com")
    found = read_certificate(pem, pem.with_suffix(".key"), time.time())
    assert found.covers("API.example.com")
    assert found.covers("a.x.example.com")
    assert not found.covers("a.b.x.example.com")
    assert not found.covers("example.com")
    assert abs(found.expires_at - time.time() - 90 * 86400) < 60


def test_what_is_wrong_with_a_pair_is_one_line(tmp_path: Path) -> None:
    """File, what is wrong, cure."""
    pem = certificate(tmp_path, "a")
    key = pem.with_suffix(".key")
    now = time.time()

    def said(certificate_file: Path = pem, key_file: Path = key, at: float = now) -> str:
        with pytest.raises(FrontDoorError) as caught:
            read_certificate(certificate_file, key_file, at)
        (line,) = caught.value.problems
        assert "; " in line
        return line

    assert "s.pem: no such file" in said(tmp_path / "s.pem")
    assert "is a directory" in said(tmp_path)
    assert "tls.key: holds no certificate in PEM" in said(key)
    assert "tls.pem: holds no private key in PEM" in said(key_file=_locked(pem, tmp_path / "again" / "tls.pem"))
    assert "is not the key of" in said(key_file=certificate(tmp_path, "b", stem="b").with_suffix(".key"))
    assert "expired at" in said(at=now + 91 * 86400)
    assert "is not valid before" in said(at=now - 500 * 86400)
    key.chmod(0o644)
    assert "others may read or change it (mode 0644)" in said()
    guarded = tmp_path / "guarded.key"
    guarded.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    guarded.chmod(0o600)
    assert "is guarded by a passphrase" in said(key_file=guarded)


def _locked(source: Path, target: Path) -> Path:
    target.parent.mkdir()
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)
    return target
