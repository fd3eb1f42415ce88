"""Windows and quantiles: right to within a bucket, nothing counted twice, and unknown is not zero."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.signals import (
    DIVERTED,
    WINDOWS_S,
    Growth,
    Level,
    Outcome,
    RequestEnd,
    Traffic,
    latency_over,
    quantile,
)


def end(took_s: float = 0.1, status: int = 200, first_s: float | None = None) -> RequestEnd:
    return RequestEnd("chat", status, took_s, first_s)


def over(growth: Growth, now_s: float, window_s: float) -> dict[float, float] | None:
    """The growth within the window, by key; None where nothing was read twice."""
    found: dict[float, float] = {}
    for step in (steps := growth.within(now_s, window_s)):
        for key, value in step.items():
            found[key] = found.get(key, 0.0) + value
    return found if steps else None


def test_a_steady_rate_is_the_same_in_every_window() -> None:
    """Ten a second for six minutes."""
    traffic = Traffic(0.0)
    for tick in range(3600):
        traffic.record(tick / 10, end())
    windows = traffic.windows(360.0)
    assert {s: round(w.rps or 0, 1) for s, w in windows.items()} == {30: 10.0, 60: 10.0, 300: 10.0}


def test_a_burst_leaves_the_short_window_first() -> None:
    """300 requests in the second 100; 45 s later they are in two windows of three."""
    traffic = Traffic(0.0)
    for _ in range(300):
        traffic.record(100.5, end())
    assert [w.requests for w in traffic.windows(100.9).values()] == [300, 300, 300]
    assert [w.requests for w in traffic.windows(145.0).values()] == [0, 300, 300]
    assert [w.requests for w in traffic.windows(401.0).values()] == [0, 0, 0]


def test_what_was_not_watched_is_not_counted_as_quiet() -> None:
    """Ten seconds after the beginning the rate is that of ten seconds, and at once it is not known."""
    traffic = Traffic(1000.0)
    assert traffic.windows(1000.5)[300].rps is None
    for tick in range(100):
        traffic.record(1000 + tick / 10, end())
    window = traffic.windows(1010.0)[300]
    assert window.covered_s == pytest.approx(10)
    assert window.rps == pytest.approx(10)


def test_outcomes() -> None:
    """A client's own mistake, and one that left, are no errors of the service; nor is their time its latency."""
    traffic = Traffic(0.0)
    for status in (200, 101, 404, 499, 500, 502, 503, DIVERTED):
        traffic.record(10, end(status=status, took_s=1.0))
    window = traffic.windows(20)[30]
    assert window.outcomes == {
        Outcome.OK: 2, Outcome.CLIENT_ERROR: 1, Outcome.CLIENT_LEFT: 1, Outcome.ERROR: 3, Outcome.DIVERTED: 1,
    }  # fmt: skip
    assert window.took is not None
    assert window.took.samples == 2
    assert window.first == {}


@given(st.lists(st.floats(0.00101, 3000), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_right_to_within_a_bucket(values: list[float], share: float) -> None:
    """Whatever the distribution: a tenth off at the most, above nginx's own resolution of a millisecond."""
    traffic = Traffic(0.0)
    for value in values:
        traffic.record(5, end(took_s=value))
    took = traffic.windows(6)[30].took
    assert took is not None
    found = {0.5: took.p50, 0.9: took.p90, 0.99: took.p99}[share]
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert exact / 1.11 <= found <= exact * 1.11


@given(st.lists(st.tuples(st.floats(0, 900), st.floats(0, 4000), st.integers(200, 599)), max_size=200))
def test_no_window_counts_more_than_there_was(rows: list[tuple[float, float, int]]) -> None:
    """Longer windows hold all that shorter ones hold."""
    traffic = Traffic(0.0)
    rows.sort()
    for at, took, status in rows:
        traffic.record(at, end(took, status))
    now = rows[-1][0] if rows else 900.0
    counts = [w.requests for w in traffic.windows(now).values()]
    assert counts == sorted(counts)
    assert counts == [sum(int(at) > int(now) - s for at, _, _ in rows) for s in WINDOWS_S]


def test_quantile_of_a_scraped_histogram_is_prometheus_own() -> None:
    """Linear within a bucket, and never beyond the last finite bound."""
    assert quantile({0.1: 0, 0.2: 10, math.inf: 0}, 0.5) == pytest.approx(0.15)
    assert quantile({0.1: 5, math.inf: 5}, 0.99) == pytest.approx(0.1)
    assert quantile({0.1: 0}, 0.5) is None


def test_growth_survives_a_restart_of_what_is_read() -> None:
    """A counter that falls began anew; the first reading is only a beginning."""
    growth = Growth()
    growth.take(0, "a", {1.0: 1000})
    assert over(growth, 0, 60) is None
    growth.take(5, "a", {1.0: 1010})
    growth.take(10, "a", {1.0: 4})
    assert over(growth, 10, 60) == {1.0: 14}
    assert growth.rate(10, 60) == pytest.approx(1.4)
    assert over(growth, 200, 60) is None, "nothing was read in that window: unknown"


def test_growth_of_several_sources_adds_up() -> None:
    """Two replicas that are read at the same moments have their rates added, not averaged."""
    growth = Growth()
    for at in (0, 5, 10):
        for source in "ab":
            growth.take(at, source, {0.0: at * 2})
    assert growth.rate(10, 60) == pytest.approx(4)
    growth.keep_only({"a"})
    growth.take(15, "b", {0.0: 1000})
    assert over(growth, 15, 60) == {0.0: 40}, "one that comes back begins anew"


@given(st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=20))
def test_a_histogram_read_in_pieces_is_the_whole(steps: list[list[int]]) -> None:
    """However often it is read, the quantiles are those of all that was observed."""
    bounds = (0.1, 0.5, 1.0, math.inf)
    totals = [0, 0, 0, 0]
    growth = Growth()
    for at, step in enumerate([[0, 0, 0, 0], *steps]):
        totals = [total + more for total, more in zip(totals, step, strict=True)]
        cumulative = [sum(totals[: index + 1]) for index in range(4)]
        growth.take(float(at), "x", dict(zip(bounds, map(float, cumulative), strict=True)))
    found = latency_over([growth], float(len(steps)), 300)
    exact = quantile(dict(zip(bounds, map(float, totals), strict=True)), 0.9)
    assert (found.p90 if found else None) == (pytest.approx(exact) if exact is not None else None)


def test_histograms_of_several_makes_are_one_though_their_bounds_are_not() -> None:
    """Half of the observations are below a second, and half between two and four."""
    one, other = Growth(), Growth()
    for at, much in ((0.0, 0.0), (1.0, 100.0)):
        one.take(at, "x", {0.5: 0.0, 1.0: much, math.inf: much})
        other.take(at, "y", {2.0: 0.0, 4.0: much, math.inf: much})
    found = latency_over([one, other], 1.0, 30)
    assert found is not None
    assert found.samples == 200
    assert 0.5 < found.p50 <= 1.0
    assert 2.0 < found.p90 <= 4.0


def test_a_level_gets_old() -> None:
    """An old reading says nothing of now."""
    level = Level()
    assert level.latest(0, 10) is None
    level.take(0, 4)
    level.take(5, 8)
    assert level.latest(6, 10) == 8
    assert level.latest(16, 10) is None
    assert level.mean(6, 30) == 6
    assert level.mean(100, 30) is None


def test_a_thousand_a_second_take_little_room() -> None:
    """The ring holds seconds and buckets, not requests."""
    chance = random.Random(1)
    traffic = Traffic(0.0)
    for tick in range(60_000):
        traffic.record(tick / 1000 * 6, end(chance.expovariate(1.0)))
    assert len(traffic._seconds) <= 300
    assert max(len(second.took) for second in traffic._seconds) <= 161
