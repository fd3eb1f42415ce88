"""A clock that does not count the time in which this process did not run, and time-outs by it.

A process may be stopped, a virtual machine paused, or the CPU busy: meanwhile no answer could be sent, or heard.
Judgements by duration (a silence, a failed start, an operation that timed out) take the time from `now`. `monotonic` is
for display, for pauses, and for the order of events. The clock runs slower, in proportion, while the event loop is
late, because what starves the daemon starves the engines and routers too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_TICK_S = 0.25
"""To wake for nothing takes 70 us of CPU: four times a second that is 0.03 %."""
_MOST_S = 0.3
"""What a tick counts at the most: as long as it should take, and what a healthy machine is late by."""
_STALLED_S = 1.0
"""A tick that is as late as this is a stall, and counts as nothing."""
_MOMENT_S = 1.0
"""So long after a stall the clock stands: those who were stopped with us have not answered yet, and timers of the event
loop come before what lies in its sockets."""
_LEAST_WAIT_S = 0.01  # A time-out that a stall has prolonged looks a hundred times a second at the most.
_NEAR = 1e-3
"""Of a tick: so close to one is at it. Sums of floating-point seconds do not meet exactly."""


class Clock:
    """Seconds in which this process ran. For the event loop's thread alone."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._seen = self._awake = self._stands_until = 0.0
        self._is_watched = False
        self._timer: asyncio.TimerHandle | None = None
        self.stalls = 0
        """How often nothing ran for a second and longer."""

    def now(self) -> float:
        """Awake seconds. Without `watched` no stall is known, and these are those of `time.monotonic`."""
        at = self.monotonic()
        gap_s, self._seen = at - self._seen, at
        if self._is_watched and gap_s >= _STALLED_S:
            self.stalls += 1
            self._stands_until = at + _MOMENT_S
        elif at >= self._stands_until:
            self._awake += min(gap_s, _MOST_S) if self._is_watched else gap_s
        return self._awake

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notices stalls of the running event loop from now on."""
        self.now()
        self._is_watched = True
        self._tick()
        try:
            yield
        finally:
            assert self._timer is not None
            self._timer.cancel()
            self._is_watched = False

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(_tick_after(loop.time()), self._tick)
        self.now()


def _tick_after(instant: float) -> float:
    """The next multiple of a tick that is at least half of one away."""
    return (math.floor(instant / _TICK_S + 0.5) + 1) * _TICK_S


_clock = Clock()


@contextmanager
def using(clock: Clock) -> Iterator[None]:
    """Everything here tells the time by `clock` meanwhile: tests move it."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def now() -> float:
    """Seconds in which this process ran: to judge others by."""
    return _clock.now()


def monotonic() -> float:
    """Seconds that passed, whether this process ran or not: for what is shown, and for pauses."""
    return _clock.monotonic()


def watched() -> AbstractContextManager[None]:
    """Notices stalls of the running event loop from now on."""
    return _clock.watched()


def to_monotonic(instant: float) -> float:
    """When `monotonic` will be there, if nothing stalls: for what outlives the process."""
    return monotonic() + (instant - now())


def from_monotonic(instant: float) -> float:
    """The awake seconds of an instant to come that was written down by `monotonic`."""
    return now() + (instant - monotonic())


def to_tick_s(seconds: float) -> float:
    """Seconds until the first tick after so many seconds."""
    now = asyncio.get_running_loop().time()
    return math.ceil((now + seconds) / _TICK_S - _NEAR) * _TICK_S - now


async def rest(seconds: float) -> None:
    """A pause that need not be punctual: it ends with the first tick after so many seconds.

    So the loops that look at something now and then wake the process when it wakes anyway.
    """
    await asyncio.sleep(to_tick_s(seconds))


async def until_set(event: asyncio.Event, most_s: float) -> None:
    """Waits for the event; where it does not come, for `most_s` seconds. A second and longer end with a tick."""
    with suppress(TimeoutError):
        async with asyncio.timeout(to_tick_s(most_s) if most_s >= 1 else most_s):
            await event.wait()


def stalls() -> int:
    """How often nothing of this process ran for a second and longer. What was asked across one is asked again."""
    _clock.now()
    return _clock.stalls


async def asked_again(ask: Callable[[], Awaitable[T]], failure: type[Exception]) -> T:
    """What `ask` returns. A failure across a stall proves nothing: it is asked again then."""
    while True:
        before = stalls()
        try:
            return await ask()
        except failure:
            if stalls() == before:
                raise


class within:  # noqa: N801 - reads as asyncio.timeout does, in whose place it stands
    """`async with within(seconds)`: TimeoutError after so many awake seconds, and never for a stall alone."""

    def __init__(self, seconds: float) -> None:
        self._until = now() + seconds
        self._bound = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._bound.__aenter__()
        self._wait(self._until - now())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        await self._bound.__aexit__(kind, error, trace)

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._look)

    def _look(self) -> None:
        left_s = self._until - now()
        if left_s > 0:
            self._wait(max(left_s, _LEAST_WAIT_S))
        else:
            self._bound.reschedule(0.0)
