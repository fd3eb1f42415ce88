"""The clock that stands while we do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop

from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import Clock, within
from tests.unit.fake_time import in_fake_time

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


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
    """Ten ticks that should have taken a second and took four are a second and a half."""
    time_ = Time()
    clock = Clock(time_)
    with clock.watched():
        began = clock.now()
        for _ in range(10):
            time_.at += 0.4
            clock.now()
        assert clock.now() - began == pytest.approx(1.5)
        assert clock.stalls == 0


async def test_unwatched_it_is_the_monotonic_clock() -> None:
    time_ = Time()
    clock = Clock(time_)
    assert clock.now() == 1000.0
    time_.at += 3600
    assert clock.now() == 4600.0


def test_an_answer_that_came_during_a_stall_is_heard(pair: Pair) -> None:
    """The loop runs its timers first when it is late: a time-out must not win over what lies in the socket."""

    async def ask() -> None:
        ours, theirs = pair
        with awake.watched():
            await asyncio.sleep(0.2)
            before = awake.stalls()
            asking = asyncio.create_task(_received(ours, within_s=0.5))
            await asyncio.sleep(0)
            theirs.send(b"x")
            time.sleep(1.2)  # noqa: ASYNC251 - the stall
            assert await asking == b"x"
            assert awake.stalls() == before + 1

    uvloop.run(ask())


def test_an_answer_that_comes_a_moment_after_a_stall_is_heard(pair: Pair) -> None:
    """Who was stopped with us has to wake up first."""

    async def ask() -> None:
        ours, theirs = pair
        with awake.watched():
            await asyncio.sleep(0.2)
            asking = asyncio.create_task(_received(ours, within_s=0.3))
            await asyncio.sleep(0)
            time.sleep(1.2)  # noqa: ASYNC251 - the stall
            await asyncio.sleep(0.4)
            theirs.send(b"x")
            assert await asking == b"x"

    uvloop.run(ask())


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


async def test_silence_ends_in_time(pair: Pair) -> None:
    began = time.monotonic()
    with awake.watched(), pytest.raises(TimeoutError):
        await _received(pair[0], within_s=0.2)
    assert time.monotonic() - began >= 0.2
    with pytest.raises(TimeoutError):
        await _received(pair[0], within_s=0.0)


async def test_cancellation_is_no_time_out(pair: Pair) -> None:
    task = asyncio.create_task(_received(pair[0], within_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _received(sock: socket.socket, *, within_s: float) -> bytes:
    async with within(within_s):
        return await asyncio.get_running_loop().sock_recv(sock, 10)


@in_fake_time
async def test_pauses_that_end_about_the_same_time_end_together_and_none_too_soon() -> None:
    """One wake-up serves all of them."""
    ended: list[float] = []

    async def rest(after_s: float, seconds: float) -> None:
        await asyncio.sleep(after_s)
        began = awake.monotonic()
        await awake.rest(seconds)
        ended.append(awake.monotonic())
        assert seconds - 1e-6 <= awake.monotonic() - began <= seconds + 0.1 + 1e-6

    await asyncio.gather(rest(0.01, 0.2), rest(0.03, 0.2), rest(0.09, 0.2), rest(0.07, 1.0))
    assert ended == pytest.approx([0.3, 0.3, 0.3, 1.1])
