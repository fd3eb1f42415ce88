"""What is kept of clients' use: each request once, whatever ends when, and bounded in what it is told apart by."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_sidecar.api.answers import Refused
from gateway_sidecar.api.usage import asked_in
from gateway_sidecar.config import parse_config
from gateway_sidecar.control.state.usage_store import HOUR_S, Asked, UsageStore
from gateway_sidecar.domain.usage import NONE, OTHERS, NamedSeries, Usage, UsageKey, total
from gateway_sidecar.errors import ConfigError, StateError
from gateway_sidecar.nginx.usage_counts import Counted, packed

ALICE = UsageKey("chat", "chat", "alice", "tiny")
BOB = UsageKey("api", "chat", "bob", "tiny")
NOW = 500_000 * HOUR_S


class Counts:
    """What nginx has counted: the files of its workers, which may come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, dict[UsageKey, Usage]] = {}
        self.dead: set[str] = set()

    def add(self, epoch: str, key: UsageKey, usage: Usage) -> None:
        rows = self.files.setdefault(epoch, {})
        rows[key] = total([rows.get(key, NONE), usage])

    def read(self) -> list[Counted]:
        return [
            Counted(epoch, epoch, b"".join(map(packed, rows.values())), list(rows))
            for epoch, rows in self.files.items()
        ]

    def remove(self, counted: Counted) -> bool:
        if counted.epoch in self.dead:
            del self.files[counted.epoch]
        return counted.epoch not in self.files


class World:
    """A clock, nginx's counts, and daemons one after the other."""

    def __init__(self, directory: Path) -> None:
        self.now = float(NOW)
        self.counts = Counts(directory)
        self.path = directory / "usage.db"
        self.stores: list[UsageStore] = []

    def store(self, keep_days: int = 400) -> UsageStore:
        self.stores.append(UsageStore(self.path, self.counts, keep_days, lambda: self.now))  # type: ignore[arg-type]
        return self.stores[-1]

    def close(self) -> None:
        for store in self.stores:
            store.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterable[World]:
    made = World(tmp_path)
    yield made
    made.close()


def used(tokens: int, requests: int = 1) -> Usage:
    return Usage(requests=requests, tokens_in=tokens, tokens_out=2 * tokens)


def test_each_request_counts_once_over_daemons_and_workers(world: World) -> None:
    """Counts only grow, and what was taken in is known to the next daemon; a new worker's file counts from zero."""
    world.counts.add("one", ALICE, used(3))
    first = world.store()
    assert first.collect() == [(ALICE, used(3))]
    assert first.collect() == []
    world.counts.add("one", ALICE, used(4))
    world.counts.add("two", BOB, used(5))
    second = world.store()
    assert sorted(second.collect()) == sorted([(ALICE, used(4)), (BOB, used(5))])
    assert dict(second.usage(Asked())) == {ALICE: used(7, 2), BOB: used(5)}


def test_a_file_goes_only_when_all_of_it_is_written_down(world: World) -> None:
    """A worker that has ended leaves nothing behind, and a file of the same name later counts from zero."""
    world.counts.add("one", ALICE, used(3))
    world.counts.dead.add("one")
    store = world.store()
    store.collect()
    assert world.counts.files == {}
    store.collect()
    world.counts.dead.clear()
    world.counts.add("one", ALICE, used(1))
    store.collect()
    assert dict(store.usage(Asked())) == {ALICE: used(4, 2)}


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_a_daemon_may_end_at_any_line(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """Whichever instruction of SQLite is its last, each request counts once."""
    world = World(tmp_path_factory.mktemp("usage"))
    sums = {ALICE: NONE, BOB: NONE}
    world.store().collect()
    for number, step in enumerate(steps):
        for key in (ALICE, BOB):
            world.counts.add(f"worker {number % 2}", key, used(step))
            sums[key] = total([sums[key], used(step)])
        store = world.store()
        store._opened().set_progress_handler(_ending_after(step), 1)
        with suppress(StateError):
            store.collect()
        store.close()
    last = world.store()
    last.collect()
    assert dict(last.usage(Asked())) == sums
    world.close()


def _ending_after(instructions: int) -> Callable[[], bool]:
    left = [instructions]

    def end() -> bool:
        left[0] -= 1
        return left[0] < 0

    return end


def test_a_clock_that_is_set_back_loses_nothing(world: World) -> None:
    """What comes then belongs to the earlier hour, and is added to what that has."""
    store = world.store()
    for jump_s in (0, -30 * 24 * HOUR_S, 5 * 24 * HOUR_S, -400 * 24 * HOUR_S):
        world.now += jump_s
        world.counts.add("one", ALICE, used(1))
        store.collect()
    assert dict(store.usage(Asked())) == {ALICE: used(4, 4)}


def test_old_hours_become_days_and_old_days_go(world: World) -> None:
    """The file is bounded, and a sum over whole days stays what it was."""
    store = world.store(keep_days=20)
    hours = []
    for _ in range(30 * 24 // 5):
        world.counts.add("one", ALICE, used(1))
        world.now += 5 * HOUR_S
        hours.append(int(world.now // HOUR_S))
        store.collect()
    database = sqlite3.connect(world.path)
    (rows,) = database.execute("SELECT count(*) FROM hourly").fetchone()
    database.close()
    assert rows <= 9 * 24 / 5 + 14
    day = hours[-1] - hours[-1] % 24
    for first in (hours[-3], day - 24, day - 15 * 24):
        ((_, usage),) = store.usage(Asked(first_hour=first))
        assert usage.requests == len([hour for hour in hours if hour >= first])
    ((_, kept),) = store.usage(Asked())
    assert kept.requests == len([hour for hour in hours if hour >= day - 20 * 24])


def test_usage_is_asked_for_by_whose_it_is_and_when(world: World) -> None:
    """By the service that answered or the address that was asked, the key, the model, and the hour."""
    store = world.store()
    world.counts.add("one", ALICE, used(1))
    store.collect()
    world.now += HOUR_S
    world.counts.add("one", BOB, used(9))
    store.collect()
    hour = NOW // HOUR_S

    def whose(asked: Asked) -> list[str]:
        return [key.key for key, _ in store.usage(asked)]

    assert whose(Asked(service="chat")) == ["bob", "alice"]
    assert whose(Asked(service="api")) == ["bob"]
    assert whose(Asked(key="alice")) == whose(Asked(end_hour=hour + 1)) == ["alice"]
    assert whose(Asked(first_hour=hour + 1)) == ["bob"]
    assert whose(Asked(model="tiny", key="")) == whose(Asked(model="none")) == []
    assert store.tokens_since("chat", NOW) == {"alice": 3}
    assert store.tokens_since("api", NOW + HOUR_S + 59) == {"bob": 27}
    assert store.tokens_since("api", NOW + 2 * HOUR_S) == {}


def test_a_damaged_file_is_put_aside(world: World) -> None:
    """It is kept for whoever can read it, and counting goes on with what nginx still has."""
    world.path.write_bytes(b"this is no database" * 100)
    world.counts.add("one", ALICE, used(3))
    store = world.store()
    with pytest.raises(StateError, match="cannot write"):
        store.collect()
    assert store.aside is not None
    assert store.aside.read_bytes().startswith(b"this is no database")
    assert store.collect() == [(ALICE, used(3))]


def test_a_file_that_cannot_be_written_loses_nothing(world: World) -> None:
    """nginx's counts stay what they are, and are taken in when it can be."""
    store = world.store()
    world.counts.add("one", ALICE, used(1))
    store.collect()
    store._opened().execute("PRAGMA query_only = ON")
    world.counts.add("one", ALICE, used(2))
    with pytest.raises(StateError, match="readonly"):
        store.collect()
    assert store.aside is None
    assert store.collect() == [(ALICE, used(2))]
    assert dict(store.usage(Asked())) == {ALICE: used(3, 2)}


def test_without_usage_nothing_is_written(world: World) -> None:
    """A gateway that counts nothing has no database."""
    store = world.store()
    assert store.collect() == []
    assert store.usage(Asked()) == []
    assert not world.path.exists()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 100)), max_size=60))
def test_metrics_are_bounded_and_never_shrink(uses: list[tuple[int, int]]) -> None:
    """So many series have names of their own; whatever changes, each request counts in one of all."""
    series, most = NamedSeries(3), 3
    sums: dict[tuple[str, str, str], int] = {}
    before = 0
    for number, tokens in uses:
        key = UsageKey("chat", "chat", f"key{number}", "tiny")
        added, gone = series.note([(key, used(tokens))])
        gone_sum = sum(sums.pop(it, 0) for it in gone)
        for labels, usage in added:
            sums[labels] = sums.get(labels, 0) + usage.tokens_in
        assert sum(sums.values()) + gone_sum - tokens == before
        before = sum(sums.values())
        assert len([it for it in sums if OTHERS not in it]) <= most


def test_those_that_use_most_have_names() -> None:
    """A late one that uses twice as much takes the place of the one that uses least."""
    series = NamedSeries(2)
    small = [UsageKey("chat", "chat", name, "tiny") for name in ("a", "b")]
    series.note([(small[0], used(10)), (small[1], used(20))])
    large = UsageKey("chat", "chat", "large", "tiny")
    assert series.note([(large, used(12))]) == ([(("chat", OTHERS, OTHERS), used(12))], set())
    added, gone = series.note([(large, used(12))])
    assert added == [(("chat", "large", "tiny"), used(12))]
    assert gone == {("chat", "a", "tiny")}


def test_an_application_has_no_usage() -> None:
    """What says nothing of tokens cannot be counted, and whoever asks for it is told so."""
    web = "{name: web, listen: '127.0.0.1:1', replicas: {}, engine: http, router: {type: none}, frontend: {usage: {}}}"
    with pytest.raises(ConfigError) as refused:
        parse_config(f"services:\n  - {web}\n", "c")
    text = "an HTTP application (engine: http) reports no tokens, so nothing could be counted; leave usage out"
    assert refused.value.problems == [f"c:2: services[0].frontend.usage: {text}"]


def test_sums_add_up() -> None:
    """Field by field; of nothing the sum is nothing."""
    assert total([]) == NONE
    assert total([used(1), used(2)]) == used(3, 2)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            {"since": "2027-01-15T09:01"},
            "since: '2027-01-15T09:01' is in the future; use a time before now, such as 24h",
        ),
        (
            {"until": "7d"},
            "until: '7d' is not after since, which is 24h ago if it is not given; give an earlier since as well",
        ),
        (
            {"since": "1h", "until": "2d"},
            "until: '2d' is not after since, '1h'; use a later until, or an earlier since",
        ),
        ({"since": "2h", "until": "2h"}, None),
        ({"since": "0h"}, None),
        ({"until": "2h"}, None),
        ({"until": "2030-01-01"}, None),
    ],
)
def test_a_time_that_leaves_nothing_to_show_is_an_error(query: dict[str, str], expected: str | None) -> None:
    """It says which time that is, and the cure."""
    now = datetime.datetime(2027, 1, 15, 9, 0, 30, tzinfo=datetime.UTC).timestamp()
    if expected is None:
        asked_in(query, now)
        return
    with pytest.raises(Refused) as caught:
        asked_in(query, now)
    assert caught.value.body["error"] == expected
    assert caught.value.status == 400
