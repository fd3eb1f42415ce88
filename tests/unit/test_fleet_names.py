"""Two gateways of one name: both are seen, and a drain waits for both."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import Site, fleets
from tests.unit.test_fleet_drains import KEY, SAFE, busy, drain

BUSY = {KEY: busy(2)}


def alias(site: Site) -> str:
    return f"same@{site.fleet.remembered.instance[:8]}"


def names_seen_by(site: Site) -> set[str]:
    return {it.name for it in site.fleet.membership.others}


def told(site: Site) -> str:
    return site.problems.told().get("store: gateway", "")


@in_fake_time
async def test_a_second_gateway_of_a_name_goes_by_one_of_its_own_until_the_name_is_free(tmp_path: Path) -> None:
    """It is told so. The next daemon of the first one takes its name up at once: instances are remembered."""
    async with fleets(tmp_path) as them:
        a = await them.start("a", called="same")
        b = await them.start("b", called="same")
        assert f"another gateway is called 'same', too, and this one goes by '{alias(b)}'" in told(b)
        assert told(a) == ""
        assert (names_seen_by(a), names_seen_by(b)) == ({alias(b)}, {"same"})
        await asyncio.sleep(60)
        await them.stop(a)
        a = await them.start("a", called="same")
        assert (told(a), names_seen_by(a), names_seen_by(b)) == ("", {alias(b)}, {"same"})
        lease = a.fleet.membership.lease
        assert lease is not None
        await them.stop(a)
        them.held.end(lease)
        await asyncio.sleep(20)
        assert (told(b), b.fleet.membership.name, names_seen_by(b)) == ("", "same", set())
        third = await them.start("c")
        assert names_seen_by(third) == {"same"}
        assert third.fleet.membership.gone_s.keys() <= {"same"}, "whoever took the name has not died under the other"


@in_fake_time
async def test_a_drain_waits_for_every_gateway_of_a_name_wherever_it_is_asked(tmp_path: Path) -> None:
    """Each of them sends requests, whatever it is called."""
    async with fleets(tmp_path) as them:
        first = await them.start("a", called="same")
        second = await them.start("b", called="same", says=BUSY)
        third = await them.start("c")
        for asked in (first, third):
            report = await drain(asked, 10.0)
            assert (report.drained, report.reason) == (False, f"{alias(second)}: 2 connections in flight")
        first.says[KEY], second.says[KEY] = busy(1), SAFE
        assert (await drain(second, 10.0)).reason == "same: 1 connection in flight"
        first.says[KEY] = SAFE
        for asked in (first, second, third):
            assert (await drain(asked)).drained


@in_fake_time
async def test_a_machine_that_was_copied_with_its_memory_is_another_gateway(tmp_path: Path) -> None:
    """Who has written its name, and sees that somebody else writes as itself, takes another instance."""
    async with fleets(tmp_path) as them:
        first = await them.start("a", called="same")
        await first.fleet.remembered.flush()
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        copy = await them.start("b", called="same")
        third = await them.start("c")
        assert first.fleet.remembered.instance != copy.fleet.remembered.instance
        assert names_seen_by(third) == {"same", alias(first)}
        assert (f"goes by '{alias(first)}'" in told(first), told(copy)) == (True, "")
        first.says[KEY] = busy(1)
        assert (await drain(third, 10.0)).reason == f"{alias(first)}: 1 connection in flight"
        first.says[KEY], copy.says[KEY] = SAFE, busy(1)
        assert (await drain(third, 10.0)).reason == "same: 1 connection in flight"
        await them.stop(first)  # What it is now it still is with the next daemon.
        again = await them.start("a", called="same")
        assert again.fleet.remembered.instance == first.fleet.remembered.instance
        assert names_seen_by(third) == {"same", alias(again)}


@in_fake_time
async def test_a_copy_with_a_name_of_its_own_is_another_gateway_and_one_that_was_renamed_is_not(
    tmp_path: Path,
) -> None:
    """What both of them told by one instance, such as what keys have used, the one would write over the other's."""
    async with fleets(tmp_path) as them:
        first = await them.start("a")
        await first.fleet.remembered.flush()
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        copy = await them.start("b")
        before = first.fleet.remembered.instance
        await asyncio.sleep(120)
        assert (first.fleet.remembered.instance == before, copy.fleet.remembered.instance == before) == (True, False)
        assert (told(first), told(copy)) == ("", "")
        assert (names_seen_by(first), names_seen_by(copy)) == ({"b"}, {"a"})
        lease, before = copy.fleet.membership.lease, copy.fleet.remembered.instance
        await copy.fleet.remembered.flush()
        await them.stop(copy)
        renamed = await them.start("b", called="z")
        await asyncio.sleep(20)
        them.held.end(str(lease))
        await asyncio.sleep(120)
        assert renamed.fleet.remembered.instance == before


@in_fake_time
async def test_a_gateway_that_leaves_takes_no_other_ones_name_with_it(tmp_path: Path) -> None:
    """It was cut off, and another gateway has its name since."""
    async with fleets(tmp_path) as them:
        first = await them.start("a", called="same")
        lease = first.fleet.membership.lease
        assert lease is not None
        them.held.end(lease)
        them.held.write("gateways/same", json.dumps({"instance": "another", "drains": {KEY: BUSY[KEY].said()}}))
        await first.fleet.close(leaves=True)
        assert json.loads(them.held.entries["gateways/same"].value)["instance"] == "another"
