"""Certificates of the store on a store in memory, in fake time: at every gateway, and only what can be served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway_sidecar.control.fleet.stored_files import StoredFiles
from gateway_sidecar.errors import FrontendError, StoreAway, StoreConflict, StoreError
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.problems import Problem
from tests.certificates import chain_and_key
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import Fleets, Site, fleets

NAME, KEY = "api.example.com", "tls/certificates/api"


def pair(*names: str, days: float = 90) -> str:
    """A certificate with its issuer's, and its key."""
    now = time.time()
    return chain_and_key(names or (NAME,), now - 86400, now + days * 86400).decode()


def there(them: Fleets, site: str, name: str = "api") -> str | None:
    file = them.directory / site / "certificates" / f"{name}.pem"
    return file.read_text() if file.exists() else None


async def put(site: Site, pem: str | None, name: str = "api") -> int:
    entry = site.fleet.certificates.entries().get(name)
    return await site.fleet.certificates.write(name, pem, None if entry is None else entry.revision)


@in_fake_time
async def test_a_certificate_that_is_put_at_one_gateway_is_at_all(tmp_path: Path) -> None:
    """The watch tells the others; no full read is waited for. It is gone when it is removed."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        one, two = pair(), pair()
        for site, pem in ((a, one), (b, two), (b, None)):
            await put(site, pem)
            await asyncio.sleep(0.1)
            assert there(them, "a") == there(them, "b") == pem
            if pem is not None:
                assert (tmp_path / "a" / "certificates" / "api.pem").stat().st_mode & 0o777 == 0o600
        assert not a.problems.told()


@in_fake_time
async def test_while_the_store_is_away_the_last_good_one_stays_and_none_is_put(tmp_path: Path) -> None:
    """Also for a daemon that starts meanwhile, one that has lost its files, and one that remembers nothing."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        one = pair()
        await put(a, one)
        await asyncio.sleep(1)
        a.store.failing = StoreAway("no answer in 2 s")
        await asyncio.sleep(60)
        with pytest.raises(StoreError):
            await put(a, pair())
        assert there(them, "a") == one
        await a.fleet.remembered.flush()
        assert (tmp_path / "a" / "fleet.json").stat().st_mode & 0o777 == 0o600
        await them.stop(a)
        (tmp_path / "a" / "certificates" / "api.pem").unlink()
        a = await them.start("a", failing=StoreAway("no answer in 2 s"))
        await a.fleet.certificates.load()
        assert there(them, "a") == one
        await them.stop(a)
        (tmp_path / "a" / "fleet.json").unlink()
        a = await them.start("a", failing=StoreAway("no answer in 2 s"))
        await a.fleet.certificates.load()
        assert there(them, "a") == one


@in_fake_time
async def test_what_cannot_be_served_changes_nothing_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once in the log, and in `status` until another one is there. No key is in either."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        good, other = pair(), pair()
        await put(a, good)
        end = "-----END CERTIFICATE-----\n"
        mixed = good.rpartition(end)[0] + end + other.rpartition(end)[2]
        for pem, why in (
            ("rubbish", "holds no certificate in PEM"),
            (good.rpartition(end)[0] + end, "holds no private key"),
            (mixed, "is not the key of"),
            (pair(days=-1), "expired at"),
        ):
            them.held.write(KEY, pem)
            await asyncio.sleep(12)
            assert there(them, "a") == good
            assert why in a.problems.told()["store: certificates"]
        for odd in ("../../etc/x", ".hidden", "a/b"):
            them.held.write(f"tls/certificates/{odd}", good)
        await asyncio.sleep(12)
        assert sorted(it.name for it in (tmp_path / "a" / "certificates").iterdir()) == ["api.pem"]
        assert not (tmp_path / "etc").exists()
        out = capsys.readouterr()
        told = out.out + out.err + str(a.problems.told())
        assert told.count("store.certificate_refused") == 4 + 3
        assert "PRIVATE KEY" not in told
        for odd in ("../../etc/x", ".hidden", "a/b"):
            them.held.write(f"tls/certificates/{odd}", None)
        await put(a, other)
        await asyncio.sleep(1)
        assert there(them, "a") == other
        assert "store: certificates" not in a.problems.told()


@in_fake_time
async def test_what_was_refused_since_the_clock_was_wrong_is_taken_once_the_clock_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a minute, and without another entry: a machine begins before it knows the time of day."""
    right, wrong_by_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by_s[0])
    good = pair()
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        for name, days, why in (("behind", -2, "is not valid before"), ("ahead", 365, "expired at")):
            wrong_by_s[0] = days * 86400.0
            them.held.write(f"tls/certificates/{name}", good)
            await asyncio.sleep(300)
            assert there(them, "a", name) is None
            assert why in a.problems.told()["store: certificates"]
            wrong_by_s[0] = 0.0
            await asyncio.sleep(65)
            assert there(them, "a", name) == good
            assert not a.problems.told()
        assert capsys.readouterr().out.count("store.certificate_refused") == 2


@in_fake_time
async def test_what_is_put_is_proved_before(tmp_path: Path) -> None:
    """The order of the chain counts, too: clients could not follow it. What others changed meanwhile stays."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        good, end = pair(), "-----END CERTIFICATE-----\n"
        leaf, issuer, key = good.partition(end)[0] + end, *good.partition(end)[2].rpartition(end)[::2]
        stranger = pair().partition(end)[2].rpartition(end)[0] + end
        for pem, why in (
            (issuer + end + leaf + key, "has the key's own certificate in place 2"),
            (leaf + stranger + key, "certificate 2 did not sign the one before it"),
            (pair(days=-1), "expired at"),
            ("", "holds no certificate"),
        ):
            with pytest.raises(FrontendError, match=why):
                await a.fleet.certificates.prove(pem)
        assert (await a.fleet.certificates.prove(good)).covers(NAME)
        with pytest.raises(FrontendError, match="is no name"):
            await put(a, good, "../x")
        await put(a, good)
        await asyncio.sleep(0.2)
        with pytest.raises(StoreConflict):
            await b.fleet.certificates.write("api", pair(), None)
        assert them.held.entries[KEY].value == good


@in_fake_time
async def test_what_somebody_else_put_there_by_no_name_is_told_and_can_be_removed(tmp_path: Path) -> None:
    """At any gateway."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        name = "../\x1bx"
        them.held.write(f"tls/certificates/{name}", pair())
        await asyncio.sleep(1)
        assert "is no name" in a.fleet.certificates.refused[name]
        assert a.problems.told()["store: certificates"].isprintable()
        await put(a, None, name)
        await asyncio.sleep(1)
        assert (dict(a.fleet.certificates.refused), a.problems.told()) == ({}, {})


@in_fake_time
async def test_a_wiped_store_takes_no_certificate_away_and_a_refill_puts_it_back(tmp_path: Path) -> None:
    """A store that comes back empty is not believed."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        good = pair()
        await put(a, good)
        await asyncio.sleep(1)
        them.held.entries.clear()
        await asyncio.sleep(20)
        assert (a.state, there(them, "a")) == ("refused", good)
        assert await a.fleet.reflector.accept(refill=True) == 1
        assert them.held.entries[KEY].value == good


@in_fake_time
async def test_a_disk_that_does_not_take_it_is_told_and_tried_again(tmp_path: Path) -> None:
    """The one before stays in force."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        place = tmp_path / "a" / "certificates"
        place.rmdir()
        place.write_text("in the way")
        good = pair()
        await put(a, good)
        await asyncio.sleep(1)
        assert "what was there before stays in force" in a.problems.told()["store: certificates"]
        place.unlink()
        await asyncio.sleep(3)
        assert there(them, "a") == good
        assert not a.problems.told()


@in_fake_time
async def test_texts_are_taken_when_they_change_and_a_refusal_is_heard_once(tmp_path: Path) -> None:
    """What does not change is not taken again, and a reason is told for as long as it holds."""
    taken: list[dict[str, str]] = []
    heard: list[tuple[str, str]] = []

    def take(texts: Mapping[str, str]) -> Mapping[str, str]:
        taken.append(dict(texts))
        return {name: "is bad" for name, text in texts.items() if text == "bad"}

    async with fleets(tmp_path) as them:
        a = await them.start("a")
        problem, tasks = Problem(), Tasks("-", a.metrics)
        files = StoredFiles(a.fleet.reflector, "tls/x/", take, problem, lambda *it: heard.append(it))
        tasks.run_forever(files.run)
        for name, text in (("one", "good"), ("two", "bad"), ("three", "good")):
            them.held.write(f"tls/x/{name}", text)
            await asyncio.sleep(20)
        assert taken == [{"one": "good"}, {"one": "good", "two": "bad"}, {"one": "good", "two": "bad", "three": "good"}]
        assert (heard, problem.text) == ([("two", "is bad")], "'two': is bad")
        assert files.taken == taken[-1]
        them.held.write("tls/x/two", None)
        await asyncio.sleep(20)
        assert (files.refused, problem.text) == ({}, "")
        await tasks.close()
