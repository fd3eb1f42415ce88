"""What keys have used of their day and month is added up over the gateways of a fleet."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from gateway_sidecar.api.fleet import usage_view
from gateway_sidecar.api.table import render_fleet_usage
from gateway_sidecar.control.edge.used_up import periods
from gateway_sidecar.domain.fleet_usage import MOST_BYTES, UsedAt, used_elsewhere, used_in
from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.errors import StateError, StoreAway
from gateway_sidecar.frontend.certificate import today
from tests.unit.fake_time import in_fake_time
from tests.unit.test_api_models import check
from tests.unit.test_fleet import Site, fleets

DAY, MONTH = "tokens_per_day", "tokens_per_month"


def used_at(gateway: str, tokens: int = 5, day: str = "20270115", month: str = "202701") -> UsedAt:
    return UsedAt(gateway, {DAY: (day, {"chat": {"alice": tokens}}), MONTH: (month, {"chat": {"alice": 10 * tokens}})})


def test_what_others_have_used_in_this_very_period_is_added_up() -> None:
    """Not what this gateway told itself, and not what another one told of yesterday."""
    records = {"own": used_at("a", 100), "1": used_at("b", 5), "2": used_at("c", 7), "3": used_at("d", 9, "20270114")}
    assert used_elsewhere(records, "own", DAY, "20270115") == {"chat": {"alice": 12}}
    assert used_elsewhere(records, "own", MONTH, "202701") == {"chat": {"alice": 210}}
    assert used_elsewhere(records, "own", DAY, "20270116") == {}


def test_a_record_is_read_as_it_was_written_and_garbage_is_none() -> None:
    texts = [used_at("a").to_json(), "", "null", "[" * 100_000, '{"gateway": "a", "bounds": {"x": 1}, "cut": false}']
    entries = {f"usage/{number}": Entry(text, 3) for number, text in enumerate(texts)}
    assert used_in(Snapshot("one", 9, entries), "usage/") == {"0": used_at("a")}


def test_a_record_has_room_for_those_that_have_used_most() -> None:
    keys = {f"a-key-with-quite-a-long-name-{number}": number for number in range(1, 20_001)}
    whole = UsedAt("a", {DAY: ("20270115", {"chat": {"little": 1}}), MONTH: ("202701", {"chat": keys})})
    cut = whole.cut()
    assert cut.is_cut
    assert 0.8 * MOST_BYTES < len(cut.to_json()) < 1.1 * MOST_BYTES
    kept = cut.in_period(MONTH, "202701")["chat"]
    assert min(kept.values()) > max(keys.values()) - len(kept)
    assert cut.in_period(DAY, "20270115") == {}
    assert used_at("a").cut() == used_at("a")


def now_and_then(site: Site, key: str, tokens: int) -> None:
    site.counts = ["chat"]
    site.usage.used.append(("chat", today(), key, tokens))


def told(site: Site) -> dict[str, int]:
    """What nginx is told that keys have used elsewhere today."""
    number, *lines = (site.fleet.keys.place.with_name("used-elsewhere")).read_text().splitlines()
    assert number.startswith("# ")
    day = next(period for _, period, _ in periods(today()))
    words = [line.split() for line in lines]
    return {name: int(tokens) for service, name, bound, period, tokens in words if (bound, period) == (DAY, day)}


@in_fake_time
async def test_each_gateway_tells_what_it_has_counted_and_nginx_is_told_what_the_others_have(tmp_path: Path) -> None:
    """Within seconds, and as it was known last while the store is away."""
    async with fleets(tmp_path) as them:
        a, b, c = [await them.start(name) for name in "abc"]
        for site, tokens in ((a, 5), (b, 7), (c, 0)):
            now_and_then(site, "alice", tokens)
        now_and_then(a, "certificate:CN=x y", 3)
        await asyncio.sleep(15)
        assert [told(site) for site in (a, b, c)] == [{"alice": 7}, {"alice": 5}, {"alice": 12}]
        now_and_then(a, "bob", 2)
        await asyncio.sleep(11)
        assert told(c) == {"alice": 12, "bob": 2}
        c.store.failing = StoreAway("gone")
        now_and_then(b, "bob", 90)
        await asyncio.sleep(60)
        assert told(c) == {"alice": 12, "bob": 2}
        c.store.failing = None
        await asyncio.sleep(20)
        assert told(c) == {"alice": 12, "bob": 92}
        assert c.fleet.usage.elsewhere("chat", *next((bound, period) for bound, period, _ in periods(today()))) == {
            "alice": 12, "bob": 92,
        }  # fmt: skip


@in_fake_time
async def test_what_a_gateway_has_counted_outlives_it_and_counts_once_whatever_it_is_called(tmp_path: Path) -> None:
    """It is told by its instance, with a lease of its own."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        now_and_then(a, "alice", 5)
        b.counts = ["chat"]
        await asyncio.sleep(15)
        lease = a.fleet.membership.lease
        await a.fleet.remembered.flush()
        await them.stop(a)
        them.held.end(str(lease))
        await asyncio.sleep(60)
        assert told(b) == {"alice": 5}
        again = await them.start("a", called="another-name")
        now_and_then(again, "alice", 6)  # Its database has what it had counted before.
        await asyncio.sleep(15)
        assert told(b) == {"alice": 6}
        assert told(again) == {}


@in_fake_time
async def test_a_disk_that_does_not_say_what_was_used_changes_nothing(tmp_path: Path) -> None:
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        now_and_then(a, "alice", 5)
        b.counts = ["chat"]
        await asyncio.sleep(15)
        for fault in StateError("full"), PermissionError("of another user"):
            a.usage.fault = fault
            await asyncio.sleep(60)
            assert (told(a), told(b)) == ({}, {"alice": 5})
        now_and_then(b, "bob", 2)
        await asyncio.sleep(15)
        assert told(a) == {"bob": 2}, "what others have used it knows all the same"
        a.usage.fault = None
        now_and_then(a, "alice", 5)
        await asyncio.sleep(15)
        assert told(b) == {"alice": 10}


@in_fake_time
async def test_what_is_told_is_what_stands_there_and_nothing_is_written_where_nothing_is_new(tmp_path: Path) -> None:
    """Whatever becomes of the key; a gateway that counts nothing for keys of the store tells nothing."""
    async with fleets(tmp_path) as them:
        a, _ = await them.start("a"), await them.start("b")
        now_and_then(a, "alice", 5)
        await asyncio.sleep(30)
        (key,) = (it for it in them.held.entries if it.startswith("usage/"))
        written = them.held.entries[key]
        await asyncio.sleep(60)
        assert them.held.entries[key] is written
        them.held.write(key, None)
        await asyncio.sleep(15)
        assert json.loads(them.held.entries[key].value) == json.loads(written.value)


@in_fake_time
async def test_what_a_gateways_disk_has_lost_counts_on_until_the_period_ends(tmp_path: Path) -> None:
    """It was told: a damaged database, or one that somebody removed, gives no key its quota back."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        now_and_then(a, "alice", 5)
        b.counts = ["chat"]
        await asyncio.sleep(15)
        a.usage.used.clear()
        now_and_then(a, "bob", 1)
        await asyncio.sleep(15)
        assert told(b) == {"alice": 5, "bob": 1}
        now_and_then(a, "alice", 7)
        await asyncio.sleep(15)
        assert told(b) == {"alice": 7, "bob": 1}


def test_of_another_period_nothing_is_kept() -> None:
    """Whatever was told of it."""
    now = used_at("a", 1, "20270201", "202702")
    assert now.at_least(used_at("a", 9)) == now.at_least(None) == now


@in_fake_time
async def test_numbers_that_no_gateway_counts_stop_nothing(tmp_path: Path) -> None:
    """Their sums, with too many digits, would be no text and no share of a quota."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        now_and_then(a, "alice", 5)
        day, month = (period for _, period, _ in periods(today()))
        for number in "12":
            huge = used_at("x", 1, day, month).to_json().replace(":1}", f":{'9' * 4300}}}")
            them.held.write(f"usage/{number}", huge)
        await asyncio.sleep(12)
        assert told(a)["alice"] > 10**15
        assert a.fleet.usage.elsewhere("chat", DAY, day)["alice"] / 5 > 10**15


@in_fake_time
async def test_what_others_have_used_counts_only_where_keys_are_of_the_store(tmp_path: Path) -> None:
    """Elsewhere a key of the same name is another one; also once the settings have changed."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        now_and_then(a, "alice", 5)
        b.counts = ["embed"]
        day = next(period for _, period, _ in periods(today()))
        for counts, expected in (["embed"], {}), (["chat"], {"alice": 5}), ([], {}):
            b.counts = counts
            await asyncio.sleep(15)
            assert (told(b), b.fleet.usage.elsewhere("chat", DAY, day)) == (expected, expected)


def test_what_all_have_used_is_answered_as_it_is_described_and_shown_by_gateway() -> None:
    """Two instances of one name are one gateway, one after the other."""
    records = {"1": used_at("gw-1", 5), "2": used_at("gw-2", 7), "3": used_at("gw-1", 1, "20270114")}
    answer = usage_view(records, "20270115", "202701")
    check(answer, "FleetUsage")
    assert render_fleet_usage(answer).splitlines() == [
        "service  key    day 20270115  month 202701  gw-1  gw-2",
        "chat     alice  12            130           60    70",
    ]
    cut = usage_view({"1": UsedAt("gw-1", is_cut=True)}, "20270115", "202701")
    assert (cut["rows"], cut["cut"]) == ([], ["gw-1"])
    assert render_fleet_usage(cut) == "no key of the store has used tokens in 202701, as far as gateways have told"
