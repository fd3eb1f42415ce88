"""The soak's judgement: what grows is found, what only moves is not."""

from __future__ import annotations

import random

import pytest

from tests.chaos.growth import Tolerance, judge, judge_all, slope

FLAT = Tolerance(5.0)


def series(value_at: object, seconds: int = 600) -> list[tuple[float, float]]:
    assert callable(value_at)
    return [(float(at), float(value_at(at))) for at in range(0, seconds, 5)]


def test_what_stays_is_flat() -> None:
    verdict = judge("x", series(lambda _at: 100), FLAT)
    assert verdict.flat
    assert (verdict.first, verdict.last, verdict.per_hour) == (100, 100, 0)


def test_what_only_moves_is_flat() -> None:
    """Scale churn moves everything, all the time."""
    draw = random.Random(1)
    assert judge("x", series(lambda _at: 100 + draw.uniform(-20, 20)), Tolerance(10.0)).flat
    assert judge("x", series(lambda at: 100 + 30 * (at % 60 < 20)), Tolerance(5.0)).flat


def test_what_grows_is_found() -> None:
    """Also in noise, and the slope says how fast."""
    draw = random.Random(1)
    verdict = judge("x", series(lambda at: 100 + at / 10 + draw.uniform(-20, 20)), Tolerance(10.0))
    assert not verdict.flat
    assert verdict.per_hour == pytest.approx(360, rel=0.2)
    assert "GROWS" in str(verdict)


def test_the_warm_up_does_not_count() -> None:
    """Caches and pools fill at first."""
    assert judge("x", series(lambda at: min(at, 140)), FLAT).flat
    assert not judge("x", series(lambda at: min(at, 400)), FLAT).flat


def test_what_shrinks_is_flat() -> None:
    assert judge("x", series(lambda at: 1000 - at), FLAT).flat


def test_a_bound_is_a_bound_at_any_time() -> None:
    """One zombie is one too many, even if it is gone at the end."""
    assert not judge("x", series(lambda at: float(at == 200)), Tolerance(0.0, most=0.0)).flat
    assert not judge("x", series(lambda at: float(at == 5)), Tolerance(0.0, most=0.0)).flat, "in the warm-up too"
    assert judge("x", series(lambda _at: 0.0), Tolerance(0.0, most=0.0)).flat


def test_tolerance_is_the_larger_of_the_two() -> None:
    grown = series(lambda at: 1000 + 40 * (at > 350))
    assert judge("x", grown, Tolerance(1.0, share=0.05)).flat
    assert judge("x", grown, Tolerance(50.0, share=0.0)).flat
    assert not judge("x", grown, Tolerance(1.0, share=0.03)).flat


def test_too_few_samples_prove_nothing() -> None:
    assert not judge("x", [(0.0, 1.0), (5.0, 1.0)], FLAT).flat
    assert not judge("x", [], FLAT).flat


def test_every_series_with_a_tolerance_is_judged() -> None:
    """One that was never sampled does not pass by being absent."""
    verdicts = judge_all({"a": series(lambda _at: 1)}, {"a": FLAT, "b": FLAT})
    assert [(one.name, one.flat) for one in verdicts] == [("a", True), ("b", False)]


def test_slopes() -> None:
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == pytest.approx(2.0)
    assert slope([(1.0, 1.0), (1.0, 3.0)]) == 0.0
