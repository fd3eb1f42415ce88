"""Keys and certificates: what is read, what is refused and with which words, and what nginx finds."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway_sidecar.config import AuthSettings, FrontendSettings, TlsSettings
from gateway_sidecar.control.edge.frontends import Frontends
from gateway_sidecar.errors import FrontendError
from gateway_sidecar.frontend.certificate import read_certificate, read_client_ca
from gateway_sidecar.frontend.edit_keys import add_key, change_key, change_plan, revoke_key
from gateway_sidecar.frontend.file_stats import directories
from gateway_sidecar.frontend.files import CertificateTaken, FrontendFiles
from gateway_sidecar.frontend.keys import parse_keys, read_keys
from gateway_sidecar.frontend.served_files import place_certificate, place_keys, withdraw_certificate, withdraw_keys
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.telemetry.metrics import Metrics
from tests.certificates import Authority, certificate

A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))


def test_both_spellings_comments_and_capitals() -> None:
    """As people write them, and as `sha256sum` does."""
    text = f"# keys\n\nalice:{A}\r\n bob.x-1 : sha256:{B.upper()} \n"
    assert parse_keys(text.encode(), "f").links() == {A: "alice", B: "bob.x-1"}


def test_a_key_may_expire() -> None:
    """A day is its first moment in UTC; the name goes with it to where nginx looks."""
    text = f"a:{A} expires=2027-01-31\nb : sha256:{B} \t expires=2027-01-31T13:00+01:00\r\n"
    file = parse_keys(text.encode(), "f")
    assert file.links() == {A: "a expires=1801353600", B: "b expires=1801396800"}
    assert [key.expires for key in file.keys.values()] == [1801353600, 1801396800]
    assert parse_keys(f"alice:{A}".encode(), "f").keys["alice"].expires is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"alice:{A} expires=soon", "f:1: expires: 'soon' is not a date"),
        (f"alice:{A} expires=", "f:1: expires: has no value"),
        (f"alice:{A} expires=0999-01-01", "f:1: expires: '0999-01-01' is not in a year from 1970 to 9999"),
        (f"alice:{A} expires=9999-12-31T23:00-12:00", "f:1: expires: '9999-12-31T23:00-12:00' is not in a year"),
        (f"alice:{A} 2027-01-31", "f:1: what follows is not WORD=VALUE"),
        (f"alice:{A} sk-in-the-clear", "f:1: what follows is not WORD=VALUE"),
        (f"alice:{A} skinthe", "f:1: what follows is not WORD=VALUE"),
        (f"alice:{A} tokens=5", "f:1: 'tokens' is no word for a key"),
        (f"alice:{A} tokens_per_day=5k tokens_per_day=6k", "f:1: tokens_per_day: is given twice"),
        (f"alice:{A} tokens_per_day=5G", "f:1: tokens_per_day: '5G' is not a number above 0"),
        (f"alice:{A} tokens_per_day=0", "f:1: tokens_per_day: '0' is not a number above 0"),
        (f"alice:{A} tokens_per_day=1000000001M", "f:1: tokens_per_day: '1000000001M' is more than 10^15"),
        (f"alice:{A} paused=yes", "f:1: paused: takes no value"),
        (f"alice:{A} models=a,,b", "f:1: models: '' is not a model's name"),
        (f"alice:{A} models={'x' * 200 + ',' * 1}{','.join(['y' * 200] * 20)}", "f:1: models: the names have more"),
        (f'alice:{A} note="a', "f:1: what follows is not WORD=VALUE"),
        (f"alice:{A} plan=team", "f:1: plan: there is no plan 'team'; make it with `gateway-sidecar key plan team`"),
        (f"plan solo\nalice:{A} plan=team", "f:2: plan: there is no plan 'team'; use solo, or make it"),
        ("plan team plan=x", "f:1: 'plan' is no word for a plan"),
        ("plan team\nplan team", "f:2: plan 'team' is in line 1 already"),
        (f"alice:{A} old={B}", "f:1: old and old_until belong together"),
        (f"alice:{A} old={A} old_until=2027-01-31", "f:1: old is the key itself"),
        (f"alice:{A}\nbob:{B} old={A} old_until=2027-01-31", "f:2: 'bob' has the same key as 'alice'"),
        (f"alice:{A} expires=2027-01-31\nalice:{B}", "f:2: 'alice' is named in line 1 already"),
        (f"alice:{A} expires=2027-01-31\nbob:{A}", "f:2: 'bob' has the same key as 'alice'"),
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
    with pytest.raises(FrontendError) as caught:
        parse_keys(text.encode(), "f")
    assert [line.startswith(expected) and "; " in line for line in caught.value.problems] == [True]
    assert A not in str(caught.value)
    assert "sk-in-the-clear" not in str(caught.value)


def test_many_mistakes_are_not_many_lines() -> None:
    """Another file altogether, perhaps."""
    with pytest.raises(FrontendError) as caught:
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
        assert list(read_keys(file).keys) == ["alice"]
        return
    with pytest.raises(FrontendError, match=f"mode {mode:04o}"):
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
    assert read_keys(file).links() == {}
    file.write_text("")
    with pytest.raises(FrontendError, match="is empty"):
        read_keys(file)


def test_a_key_is_revoked_in_a_file_with_mistakes_and_they_are_told(tmp_path: Path) -> None:
    """Who wants a key to end must know what keeps it alive."""
    file = tmp_path / "keys"
    file.write_text(f"alice:{A}\nbob\n")
    with pytest.raises(FrontendError) as caught:
        revoke_key(file, "alice")
    first, second = caught.value.problems
    assert "'alice' is removed from the file but still accepted until these errors are fixed" in first
    assert "keys:1: is not NAME:SHA256" in second
    assert file.read_text() == "bob\n"


def test_an_edit_leaves_a_symlink_and_changes_what_it_leads_to(tmp_path: Path) -> None:
    """Also over two of them, one relative; the lock is that of the file's own directory."""
    (tmp_path / "real").mkdir()
    file, link, first = tmp_path / "real" / "keys", tmp_path / "link", tmp_path / "first"
    file.write_text(f"alice:{A}\n")
    file.chmod(0o640)
    link.symlink_to("real/keys")
    first.symlink_to(link)
    add_key(first, "bob", "b" * 16)
    change_key(first, "alice", {"concurrent": "3"})
    change_plan(link, "team", {})
    revoke_key(first, "bob")
    assert link.is_symlink()
    assert first.is_symlink()
    assert file.read_text() == f"alice:{A} concurrent=3\nplan team\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(it.name for it in (tmp_path / "real").iterdir()) == ["keys"]


def test_an_edit_follows_no_symlink_that_leads_nowhere_or_round(tmp_path: Path) -> None:
    """Nothing is made in a place that nobody has named."""
    link = tmp_path / "keys"
    for target, reason in (("away", "keys: is a symlink to away, which is not there"), ("keys", "Too many levels")):
        link.symlink_to(target)
        with pytest.raises(FrontendError, match=reason):
            add_key(link, "alice")
        assert list(tmp_path.iterdir()) == [link]
        link.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to somebody")
def test_an_edit_follows_no_symlink_of_somebody_elses(tmp_path: Path) -> None:
    """Whoever may not change a file does not have it changed by a link."""
    file, link = tmp_path / "real", tmp_path / "keys"
    file.write_text(f"alice:{A}\n")
    link.symlink_to(file)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(FrontendError, match="is a link of user 65534 that leads to"):
        revoke_key(link, "alice")
    assert file.read_text() == f"alice:{A}\n"


def test_a_mark_of_the_byte_order_is_no_mistake(tmp_path: Path) -> None:
    """Some editors begin a file with it."""
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf# by hand\n" + f"alice:{A}\n".encode())
    file.chmod(0o600)
    assert read_keys(file).links() == {A: "alice"}
    change_key(file, "alice", {"concurrent": "3"})
    assert read_keys(file).links() == {A: "alice concurrent=3"}
    file.write_bytes(b"\xef\xbb\xbf" + f"alice:{A}\n".encode())
    revoke_key(file, "alice")
    assert read_keys(file).links() == {}
    file.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(FrontendError, match="is empty"):
        read_keys(file)


def test_a_comment_of_an_old_editors_stays_and_stops_nobody(tmp_path: Path) -> None:
    """The daemon takes such a file, so a key in it can be changed and revoked, too."""
    file = tmp_path / "keys"
    comment = "# café\n".encode("latin-1")
    file.write_bytes(comment + f"alice:{A}\n".encode())
    file.chmod(0o600)
    change_key(file, "alice", {"note": "ü"})
    assert file.read_bytes() == comment + f"alice:{A} note=ü\n".encode()
    revoke_key(file, "alice")
    assert file.read_bytes() == comment


def test_the_plan_that_is_missing_can_be_made(tmp_path: Path) -> None:
    """As the error says which names it; a plan cannot have the name that says there is none."""
    file = tmp_path / "keys"
    file.write_text(f"alice:{A} plan=team")
    file.chmod(0o600)
    with pytest.raises(FrontendError, match="there is no plan 'team'; make it"):
        read_keys(file)
    with pytest.raises(FrontendError, match="there is no plan 'team'; make it"):
        change_plan(file, "other", {"concurrent": "3"})
    change_plan(file, "team", {"concurrent": "3"})
    assert file.read_text() == f"alice:{A} plan=team\nplan team concurrent=3\n"
    with pytest.raises(FrontendError, match="'none' is no plan's name"):
        change_plan(file, "none", {"concurrent": "3"})


@pytest.mark.parametrize("seed", range(5))
def test_links_are_what_the_file_says_however_it_changed(tmp_path: Path, seed: int) -> None:
    """Keys that are only removed are looked for by themselves: the outcome is that of reading all of it."""
    chance = random.Random(seed)
    file, links = tmp_path / "keys", tmp_path / "links"
    files, settings = (
        FrontendFiles(links, tmp_path / "pem", tmp_path / "ca"),
        FrontendSettings(auth=AuthSettings(keys_file=file)),
    )
    lines = ["# first", ""]
    for number in range(60):
        digest = hashlib.sha256(str(chance.randrange(12)).encode()).hexdigest()
        for _ in range(chance.choice((0, 1, 1, 3))):
            lines.pop(chance.randrange(len(lines))) if lines else None
        if chance.random() < 0.5:
            text = chance.choice(
                (
                    f"u{chance.randrange(8)}:{digest}",
                    "# more",
                    "",
                    " ",
                    f" u{number} : {digest} ",
                    "x",
                    f"u{chance.randrange(8)}:{digest} plan=p{chance.randrange(2)}",
                    f"plan p{chance.randrange(2)} concurrent={number + 1}",
                    f"u{number}:{digest} paused old={number:064x} old_until=2027-01-31",
                )
            )
            lines.insert(chance.randrange(len(lines) + 1), text)
        if lines and chance.random() < 0.1:
            lines.append(chance.choice(lines))
        if links.exists() and chance.random() < 0.1:
            (links / digest).unlink(missing_ok=True)
        before = _links(links)
        file.unlink(missing_ok=True)
        file.write_text("\n".join(lines))
        file.chmod(0o600)
        found = files.look(settings, 0.0).keys
        if isinstance(found, FrontendError):
            with pytest.raises(FrontendError, match=re.escape(str(found))):
                read_keys(file)
            assert _links(links) == before
        else:
            assert _links(links) == read_keys(file).links(), lines


def _links(directory: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in directory.iterdir()} if directory.exists() else {}


def test_links_on_the_way_to_a_file_are_watched(tmp_path: Path) -> None:
    """Each of them may be the one that is changed."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "d" / "file").touch()
    (tmp_path / "way").symlink_to("d")
    (tmp_path / "b" / "two").symlink_to("../way/file")
    (tmp_path / "a" / "one").symlink_to(tmp_path / "b" / "two")
    (tmp_path / "c" / "round").symlink_to("round")
    found = {Path(os.path.normpath(path)) for path in directories([tmp_path / "a" / "one"])}
    assert found == {tmp_path / "a", tmp_path / "b", tmp_path / "way", tmp_path / "d"}
    assert directories([tmp_path / "c" / "round"]) == {tmp_path / "c"}
    assert directories([tmp_path / "gone" / "file"]) == {tmp_path / "gone"}


def test_links_follow_the_keys(tmp_path: Path) -> None:
    """Only what changed is touched, and nothing else is there."""
    directory = tmp_path / "keys"
    assert place_keys(directory, {A: "alice", B: "bob"}) == (2, 0)
    inode = (directory / A).lstat().st_ino
    assert place_keys(directory, {A: "alice"}) == (0, 1)
    assert (directory / A).lstat().st_ino == inode
    assert place_keys(directory, {A: "ann"}) == (1, 0)
    assert {name: str((directory / name).readlink()) for name in os.listdir(directory)} == {A: "ann"}
    assert directory.stat().st_mode & 0o777 == 0o700
    withdraw_keys(directory)
    assert not directory.exists()


def test_a_certificate_is_placed_once(tmp_path: Path) -> None:
    """For the daemon's user alone, and never written over: a handshake may be reading it. Another service's stays."""
    place, other = tmp_path / "chat.pem", tmp_path / "chat.2.pem"
    assert place_certificate(other, b"other")
    place.write_bytes(b"x")  # As an earlier version left it.
    assert place_certificate(place, b"x")
    assert not place_certificate(place, b"x")
    assert place.stat().st_mode & 0o777 == 0o600
    first = place.resolve()
    assert place_certificate(place, b"y")
    assert (first.read_bytes(), place.read_bytes()) == (b"x", b"y")
    assert place_certificate(place, b"z")
    assert not first.exists()
    place.resolve().unlink()
    assert place_certificate(place, b"z")
    assert place.read_bytes() == b"z"
    withdraw_certificate(place)
    assert sorted(it.suffix for it in tmp_path.iterdir()) == [".certificate", ".pem"]
    assert other.read_bytes() == b"other"


def test_a_good_pair_is_taken(tmp_path: Path) -> None:
    """Its names are those that browsers will compare."""
    pem = certificate(tmp_path, "api.example.com", "*.x.example.com")
    found = read_certificate(pem, pem.with_suffix(".key"), time.time())
    assert found.covers("API.example.com")
    assert found.covers("a.x.example.com")
    assert not found.covers("a.b.x.example.com")
    assert not found.covers("example.com")
    assert abs(found.expires_at - time.time() - 90 * 86400) < 60


def test_a_certificate_for_another_name_does_not_take_the_place_of_the_right_one(tmp_path: Path) -> None:
    """The wrong file was put there, most likely. Where there is no better one it is served, and told."""
    right = certificate(tmp_path, "a.example.com", stem="right")
    wrong = certificate(tmp_path, "b.example.com", stem="wrong")

    def settings(pem: Path) -> FrontendSettings:
        tls = TlsSettings(certificate=pem, key=pem.with_suffix(".key"))
        return FrontendSettings(tls=tls, server_names=("a.example.com",))

    for place in (tmp_path / "1", tmp_path / "2"):
        FrontendFiles(tmp_path / "links", place, tmp_path / "ca").look(settings(right), time.time())
        files = FrontendFiles(tmp_path / "links", place, tmp_path / "ca")  # As after a restart of the daemon.
        found = files.look(settings(wrong), time.time())
        assert "wrong.pem: is not for a.example.com; " in str(found.certificate)
        assert place.read_bytes().startswith(right.read_bytes().rstrip())
    found = FrontendFiles(tmp_path / "links", tmp_path / "3", tmp_path / "ca").look(settings(wrong), time.time())
    assert isinstance(found.certificate, CertificateTaken)
    assert found.certificate.wrong_for == ("a.example.com",)


def test_what_is_wrong_with_a_pair_is_one_line(tmp_path: Path) -> None:
    """File, what is wrong, cure."""
    pem = certificate(tmp_path, "a")
    key = pem.with_suffix(".key")
    now = time.time()

    def said(certificate_file: Path = pem, key_file: Path = key, at: float = now) -> str:
        with pytest.raises(FrontendError) as caught:
            read_certificate(certificate_file, key_file, at)
        (line,) = caught.value.problems
        assert "; " in line
        return line

    assert "s.pem: no such file" in said(tmp_path / "s.pem")
    assert "is a directory" in said(tmp_path)
    assert "tls.key: holds no certificate in PEM" in said(key)
    assert "tls.pem: holds no private key in PEM" in said(key_file=_locked(pem, tmp_path / "again" / "tls.pem"))
    assert "is not the key of" in said(key_file=certificate(tmp_path, "b", stem="b").with_suffix(".key"))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate(tmp_path, "issuer", stem="issuer").read_bytes() + pem.read_bytes())
    assert "has the key's own certificate in place 2" in said(chain)
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
    assert "has a passphrase" in said(key_file=guarded)


def test_what_is_wrong_with_authorities_is_one_line(tmp_path: Path) -> None:
    """File, what is wrong, cure. What is taken is certificates alone, each once."""
    ca = Authority(tmp_path, "ca").certificate
    pem, now = ca.read_bytes(), time.time()
    file = tmp_path / "clients.pem"

    def said(content: bytes, at: float = now, mode: int = 0o644) -> str:
        file.write_bytes(content)
        file.chmod(mode)
        with pytest.raises(FrontendError) as caught:
            read_client_ca(file, at)
        (line,) = caught.value.problems
        assert "; " in line
        return line

    assert "clients.pem: holds no certificate in PEM" in said(b"rubbish")
    assert "holds no certificate in PEM" in said(b"")
    assert "holds no certificate in PEM" in said(pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"))
    assert "holds no certificate in PEM" in said(pem[:200])
    assert "expired at" in said(pem, now + 10 * 86400)
    assert "others may change it, and so let anybody in (mode 0664)" in said(pem, mode=0o664)
    assert "others may change it" in said(pem, mode=0o646)
    other = Authority(tmp_path, "other").certificate.read_bytes()
    beside = b"-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n"
    file.write_bytes(b"# ours\n" + pem + beside + other + pem)
    file.chmod(0o644)
    assert read_client_ca(file, now) == (pem + other, 2)


async def test_other_authorities_have_another_number(tmp_path: Path) -> None:
    """By it nginx is told; a file that turns bad, or is as it was, changes none."""
    file = tmp_path / "clients.pem"
    file.write_bytes(Authority(tmp_path, "one").certificate.read_bytes())
    pem = certificate(tmp_path, "a")
    tls = TlsSettings(certificate=pem, key=pem.with_suffix(".key"), client_ca=file)
    wanted = {"chat": FrontendSettings(tls=tls)}
    places = FrontendPlaces(tmp_path / "frontends")
    places.directory.mkdir()
    frontends = Frontends(places, lambda: wanted, lambda: wanted, Metrics(), rescan_interval_s=60)
    assert places.client_ca_number("chat") == ""
    await frontends.look()
    first = places.client_ca_number("chat")
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert places.client_ca("chat").stat().st_mode & 0o777 == 0o600
    file.write_bytes(Authority(tmp_path, "two").certificate.read_bytes())
    await frontends.look()
    second = places.client_ca_number("chat")
    assert second not in (first, "")
    places.client_ca("chat").unlink()
    assert frontends.client_ca("chat") == second, "whoever removed it has changed nothing"
    await frontends.look()
    file.write_bytes(b"rubbish" + b"x" * 2000)
    await frontends.look()
    assert places.client_ca_number("chat") == second
    wanted["chat"] = FrontendSettings()
    await frontends.look()
    assert places.services() == set()
    assert frontends.client_ca("chat") == ""
    assert frontends.problems == {}


def _locked(source: Path, target: Path) -> Path:
    target.parent.mkdir()
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)
    return target


async def test_a_pair_that_is_replaced_by_two_renames_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them certificate and key do not belong together. If it lasts longer than a moment it is told."""
    old, new = certificate(tmp_path, "a", stem="old"), certificate(tmp_path, "a", stem="new")
    live = tmp_path / "live.pem"
    shutil.copy(old, live)
    shutil.copy(old.with_suffix(".key"), live.with_suffix(".key"))
    tls = TlsSettings(certificate=live, key=live.with_suffix(".key"))
    frontends = frontends_of(tmp_path / "frontends", FrontendSettings(tls=tls))
    await frontends.look()
    monkeypatch.setattr("gateway_sidecar.control.edge.frontends._MOMENT_S", 3600.0)
    new.rename(live)
    await frontends.look()
    assert frontends.problems == {}
    new.with_suffix(".key").rename(live.with_suffix(".key"))
    await frontends.look()
    assert frontends.problems == {}
    assert live.read_bytes().strip() in (tmp_path / "frontends" / "chat.pem").read_bytes()
    shutil.copy(old, live)
    await frontends.look()
    assert frontends.problems == {}
    monkeypatch.setattr("gateway_sidecar.control.edge.frontends._MOMENT_S", 0.0)
    await frontends.look()
    [problem] = frontends.problems.values()
    assert "what was there before stays in force" in problem


async def test_what_was_never_good_does_not_stay_in_force(tmp_path: Path) -> None:
    """The first files of a frontend that cannot be used are told at once, and what that means."""
    auth = AuthSettings(keys_file=tmp_path / "no keys")
    tls = TlsSettings(certificate=tmp_path / "no.pem", key=tmp_path / "no.key")
    (tmp_path / "frontends").mkdir()
    frontends = frontends_of(tmp_path / "frontends", FrontendSettings(auth=auth, tls=tls))
    await frontends.look()
    assert len(frontends.problems) == 2
    assert all(problem.endswith("; no client gets in until it can be used") for problem in frontends.problems.values())


def frontends_of(directory: Path, settings: FrontendSettings) -> Frontends:
    """Those of one service, `chat`."""
    directory.mkdir(exist_ok=True)
    wanted = {"chat": settings}
    return Frontends(FrontendPlaces(directory), lambda: wanted, lambda: wanted, Metrics(), rescan_interval_s=60)
