"""Keys of the store on a store in memory, in fake time: in force at every gateway, with its share of their limits."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.models import KeyStored, StoredKeys
from gateway_sidecar.commands.stored_keys import StoreOfKeys
from gateway_sidecar.errors import AdminRefused, FrontendError, StoreAway, StoreConflict, StoreError
from gateway_sidecar.frontend.edit_keys import add_key, change_key, change_plan, remove_plan, revoke_key, rotate_key
from gateway_sidecar.frontend.keys import read_keys
from gateway_sidecar.frontend.stored_keys import lines_of, read_stored, share_of
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import Fleets, Site, fleets

ONE, TWO = (hashlib.sha256(it).hexdigest() for it in (b"one", b"two"))


def names_at(them: Fleets, name: str) -> list[str]:
    return sorted(read_keys(them.directory / name / "keys").keys)


async def add(site: Site, name: str, words: str = "", digest: str = ONE) -> int:
    return await site.fleet.keys.write(name, f"{name}:{digest}{words}", None)


@in_fake_time
async def test_a_key_that_is_added_at_one_gateway_is_in_force_at_all_and_gone_when_it_is_revoked(
    tmp_path: Path,
) -> None:
    """The watch tells the others; no full read is waited for."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        assert names_at(them, "a") == names_at(them, "b") == []
        revision = await add(a, "alice")
        await asyncio.sleep(0.1)
        assert names_at(them, "a") == names_at(them, "b") == ["alice"]
        assert read_keys(tmp_path / "b" / "keys").keys["alice"].digest == ONE
        await b.fleet.keys.write("alice", None, revision)
        await asyncio.sleep(0.1)
        assert names_at(them, "a") == names_at(them, "b") == []
        assert (tmp_path / "a" / "keys").stat().st_mode & 0o777 == 0o600


@in_fake_time
async def test_while_the_store_is_away_keys_stay_and_none_is_added_or_revoked(tmp_path: Path) -> None:
    """Last good, also for a daemon that starts meanwhile, and one that has lost its file of keys."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        revision = await add(a, "alice")
        await asyncio.sleep(1)
        a.store.failing = StoreAway("no answer in 2 s")
        await asyncio.sleep(60)
        for name, line, seen in (("bob", f"bob:{TWO}", None), ("alice", None, revision)):
            with pytest.raises(StoreError):
                await a.fleet.keys.write(name, line, seen)
        assert names_at(them, "a") == ["alice"]
        await a.fleet.remembered.flush()
        await them.stop(a)
        (tmp_path / "a" / "keys").unlink()
        a = await them.start("a", failing=StoreAway("no answer in 2 s"))
        await a.fleet.keys.load()
        assert names_at(them, "a") == ["alice"]


@in_fake_time
async def test_a_gateway_that_knows_nothing_of_the_store_keeps_the_file_that_it_has(tmp_path: Path) -> None:
    """Unknown is not empty: its memory may be lost, and clients have keys all the same."""
    async with fleets(tmp_path) as them:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "keys").write_text(f"alice:{ONE}\n")
        (tmp_path / "a" / "keys").chmod(0o600)
        a = await them.start("a", failing=StoreAway("no answer in 2 s"))
        await a.fleet.keys.load()
        assert names_at(them, "a") == ["alice"]
        b = await them.start("b", failing=StoreAway("no answer in 2 s"))
        await b.fleet.keys.load()
        assert names_at(them, "b") == []


@in_fake_time
async def test_a_wiped_store_revokes_no_key_and_a_refill_puts_all_of_them_back(tmp_path: Path) -> None:
    """A store that comes back empty is not believed."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await add(a, "alice")
        await asyncio.sleep(1)
        them.held.entries.clear()
        await asyncio.sleep(20)
        assert a.state == "refused"
        assert names_at(them, "a") == ["alice"]
        assert await a.fleet.reflector.accept(refill=True) == 1
        await asyncio.sleep(1)
        assert them.held.entries["keys/alice"].value == f"alice:{ONE}"
        assert names_at(them, "a") == ["alice"]


@in_fake_time
async def test_limits_are_shared_out_over_the_gateways_that_are_alive(tmp_path: Path) -> None:
    """Each gets its part, 1 at least, and more when one goes. Days, months and `none` are not shared out."""
    words = " plan=team requests_per_minute=10 tokens_per_minute=none tokens_per_day=2M concurrent=1"
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.keys.write("@team", "plan team tokens_per_minute=1k models=m", None)
        await add(a, "alice", words)
        await asyncio.sleep(1)

        def said(site: str) -> tuple[dict[str, str], dict[str, str]]:
            file = read_keys(tmp_path / site / "keys")
            return dict(file.keys["alice"].words), dict(file.plans["team"])

        assert said("a")[0]["requests_per_minute"] == "10"
        await them.start("b")
        c = await them.start("c")
        for site in ("a", "b", "c"):
            key, plan = said(site)
            assert (key["requests_per_minute"], key["tokens_per_minute"], key["concurrent"]) == ("3", "none", "1")
            assert (key["tokens_per_day"], plan["tokens_per_minute"], plan["models"]) == ("2M", "333", "m")
        await them.stop(c)
        await c.fleet.close(leaves=True)
        await asyncio.sleep(6)
        assert said("a")[0]["requests_per_minute"] == said("b")[0]["requests_per_minute"] == "5"
        assert them.held.entries["keys/alice"].value == f"alice:{ONE}{words}", "the store has the whole"


@in_fake_time
async def test_a_broken_entry_of_the_store_refuses_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named in the log once, and in `status` until it is gone."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await add(a, "alice")
        them.held.write("keys/bob", "sk-a-secret-that-somebody-put-there")
        them.held.write("keys/carol", f"dave:{TWO}")
        them.held.write("keys/twin", f"twin:{ONE}")
        them.held.write("keys/lost", f"lost:{TWO} plan=nowhere")
        them.held.write("keys/@odd", "plan team")
        await asyncio.sleep(12)
        assert names_at(them, "a") == ["alice"]
        assert sorted(a.fleet.keys.refused) == ["@odd", "bob", "carol", "lost", "twin"]
        problem = a.problems.told()["store: keys"]
        assert "'bob' is not NAME:SHA256" in problem
        assert "sk-a" not in problem
        out = capsys.readouterr()
        assert (out.out + out.err).count("store.key_refused") == 5
        for name in ("bob", "carol", "twin", "lost", "@odd"):
            await a.fleet.keys.write(name, None, a.fleet.keys.entries()[name][1])
        assert not a.problems.told().get("store: keys")


@in_fake_time
async def test_what_cannot_count_is_not_written(tmp_path: Path) -> None:
    """Nor is what would take another entry out of force, or what somebody else has changed meanwhile."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        revision = await a.fleet.keys.write("@team", "plan team concurrent=4", None)
        await add(a, "alice", " plan=team")
        for name, line, why in (
            ("bob", "sk-secret", "is not NAME:SHA256"),
            ("bob", f"bob:{ONE}", "is the same key as 'alice'"),
            ("aaron", f"aaron:{ONE}", "alice: is the same key"),
            ("bob", f"bob:{TWO} plan=x", "there is no plan"),
            ("bob", f"carol:{TWO}", "is the line of 'carol'"),
        ):
            with pytest.raises(ValueError, match=why):
                await a.fleet.keys.write(name, line, None)
        with pytest.raises(ValueError, match="there is no plan"):
            await a.fleet.keys.write("@team", None, revision)
        await asyncio.sleep(0.2)
        with pytest.raises(StoreConflict):
            await b.fleet.keys.write("alice", f"alice:{TWO}", None)
        assert {key for key in them.held.entries if key.startswith("keys/")} == {"keys/@team", "keys/alice"}


@in_fake_time
async def test_a_disk_that_does_not_take_the_keys_is_told_and_tried_again(tmp_path: Path) -> None:
    """The keys before stay in force, and the next look brings the new ones."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        place = tmp_path / "a" / "keys"
        place.unlink()
        place.mkdir()
        (place / "x").touch()
        await add(a, "alice")
        await asyncio.sleep(1)
        assert "the keys before stay in force" in a.problems.told()["store: keys"]
        (place / "x").unlink()
        place.rmdir()
        await asyncio.sleep(3)
        assert names_at(them, "a") == ["alice"]
        assert not a.problems.told().get("store: keys")


def test_a_share_is_never_nothing_and_one_gateway_has_the_whole() -> None:
    """The lines of a file come back as they were."""
    stored = read_stored({"@p": "plan p concurrent=2", "k": f"k:{ONE} plan=p requests_per_minute=5"})
    assert share_of(stored.file, 1) is stored.file
    assert lines_of(stored.file) == {"@p": "plan p concurrent=2", "k": f"k:{ONE} plan=p requests_per_minute=5"}
    assert lines_of(share_of(stored.file, 9))["@p"] == "plan p concurrent=1"


class Daemon(Client):
    """A daemon that `key --store` asks, with entries of its own."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[str, int]] = {}
        self.away: str | None = None
        self.revision = 1

    def stored_keys(self) -> StoredKeys:
        refused = read_stored({name: line for name, (line, _) in self.lines.items()}).refused
        return {
            "away": self.away,
            "gateways": 2,
            "keys": [
                {"name": name, "line": line, "revision": revision, "refused": refused.get(name)}
                for name, (line, revision) in sorted(self.lines.items())
            ],
        }

    def store_key(self, name: str, line: str | None, seen: int | None) -> KeyStored:
        if (self.lines[name][1] if name in self.lines else None) != seen:
            raise AdminRefused(409, f"nothing was changed: '{name}' was changed meanwhile; look again", [], None)
        self.revision += 1
        if line is None:
            del self.lines[name]
        else:
            self.lines[name] = line, self.revision
        return {"revision": self.revision}


def test_every_change_of_a_file_of_keys_can_be_made_in_the_store() -> None:
    """One entry is written for each, and no secret is in it."""
    daemon = Daemon()
    change_plan(StoreOfKeys(daemon), "team", {"tokens_per_day": "2M"})
    secret = add_key(StoreOfKeys(daemon), "alice", plan="team", concurrent="3")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert daemon.lines["alice"][0] == f"alice:{digest} plan=team concurrent=3"
    change_key(StoreOfKeys(daemon), "alice", {"paused": "", "note": "of Alice"})
    fresh, _ = rotate_key(StoreOfKeys(daemon), "alice", keep_old_s=60, now=0)
    assert f"old={digest}" in daemon.lines["alice"][0]
    assert "paused old" in daemon.lines["alice"][0]
    assert not any(it in str(daemon.lines) for it in (secret, fresh))
    with pytest.raises(FrontendError, match="is that of alice"):
        remove_plan(StoreOfKeys(daemon), "team")
    with pytest.raises(FrontendError, match="has a key 'alice' already"):
        add_key(StoreOfKeys(daemon), "alice")
    StoreOfKeys(daemon).revoke("alice")
    remove_plan(StoreOfKeys(daemon), "team")
    assert daemon.lines == {}
    with pytest.raises(FrontendError, match="the store: has no key 'alice'"):
        revoke_key(StoreOfKeys(daemon), "alice")


def test_an_entry_that_does_not_count_hinders_no_change_and_can_be_revoked() -> None:
    """And what somebody else changes meanwhile is not overwritten."""
    daemon = Daemon()
    daemon.lines["bob"] = "nonsense", 1
    daemon.away = "no answer in 2 s"
    place = StoreOfKeys(daemon)
    add_key(place, "alice")
    assert list(place.notes()) == [
        "the store cannot be read: no answer in 2 s; what was known last stays in force",
        "'bob' in the store does not count: is not NAME:SHA256; make it with `gateway-sidecar key add NAME`",
        "bounds per minute, and concurrent, are shared out over 2 gateways",
    ]
    place.revoke("bob")
    assert list(daemon.lines) == ["alice"]
    with pytest.raises(FrontendError, match="was changed meanwhile"):
        add_key(place, "alice")
