"""The clock that stands while we do."""

from __future__ import annotations

import asyncio

import pytest

from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import Clock
from tests.unit.fake_time import in_fake_time


class Time:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def test_nobody_is_blamed_for_a_stall() -> None:
    """Neither the stall counts nor the moment after it; then the clock goes on, and it never goes back."""
    time_ = Time()
    clock = Clock(time_)
    with clock.watched():
        began = clock.now()
        time_.at += 0.1
        assert clock.now() == pytest.approx(began + 0.1)
        time_.at += 30.0
        assert clock.now() == pytest.approx(began + 0.1)
        assert clock.stalls == 1
        for _ in range(10):
            time_.at += 0.1
            assert clock.now() == pytest.approx(began + 0.1), "those who were stopped with us get a moment"
        for _ in range(10):
            time_.at += 0.1
            clock.now()
        assert clock.now() == pytest.approx(began + 1.1)
        assert clock.stalls == 1


async def test_a_starved_loop_counts_slower() -> None:
    """Ten ticks that should have taken two and a half seconds and took eight are three."""
    time_ = Time()
    clock = Clock(time_)
    with clock.watched():
        began = clock.now()
        for _ in range(10):
            time_.at += 0.8
            clock.now()
        assert clock.now() - began == pytest.approx(3.0)
        assert clock.stalls == 0


async def test_unwatched_it_is_the_monotonic_clock() -> None:
    time_ = Time()
    clock = Clock(time_)
    assert clock.now() == 1000.0
    time_.at += 3600
    assert clock.now() == 4600.0


async def test_a_failure_across_a_stall_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again as often as the daemon was stopped; a failure while it ran is one."""
    stalls = asked = 0

    async def ask() -> None:
        nonlocal stalls, asked
        asked += 1
        stalls += asked < 3
        raise ConnectionError("silent")

    monkeypatch.setattr(awake, "stalls", lambda: stalls)
    with pytest.raises(ConnectionError):
        await awake.asked_again(ask, ConnectionError)
    assert asked == 3


@in_fake_time
async def test_pauses_that_end_about_the_same_time_end_together_and_none_too_soon() -> None:
    """One wake-up serves all of them."""
    ended: list[float] = []

    async def rest(after_s: float, seconds: float) -> None:
        await asyncio.sleep(after_s)
        began = awake.monotonic()
        await awake.rest(seconds)
        ended.append(awake.monotonic())
        assert seconds - 1e-6 <= awake.monotonic() - began <= seconds + 0.25 + 1e-6

    await asyncio.gather(rest(0.01, 0.4), rest(0.03, 0.4), rest(0.09, 0.4), rest(0.07, 1.0))
    assert ended == pytest.approx([0.5, 0.5, 0.5, 1.25])
