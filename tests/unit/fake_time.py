"""Unit tests in fake time: an event loop whose clock jumps to the next timer when there is nothing else to do.

A test of an hour takes milliseconds, and its seconds are the same on a machine that is busy. (`looptime` does this too;
with it a simulated minute of a service took 20 s.)
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import pytest

from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import OwnThread

P = ParamSpec("P")
T = TypeVar("T")

_RESOLUTION_S = 1e-6
"""Timers that are this close are due: sums of floating-point seconds do not meet exactly."""


class _Jumping(selectors.DefaultSelector):
    """Does not wait: time passes instead. Nothing that a kernel could tell of takes part in such a test."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left that could happen: the test would wait for ever"
        self.now += max(timeout, 0.0)
        return []


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Tells its own time, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self._clock_resolution = _RESOLUTION_S

    def time(self) -> float:
        return self._jumping.now

    def pass_by(self, seconds: float) -> None:
        self._jumping.now += seconds


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Runs it as a task for as long as the block takes."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def stall(seconds: float) -> None:
    """Time passes in which nothing of this process runs: it was stopped, or its machine was."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    loop.pass_by(seconds)


def in_fake_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test in such a loop, and the daemon's clock by it. What blocks is done at once, and not in a thread.

    A test that has a `monkeypatch` of its own may put something else in place of threads: that is undone first.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner, pytest.MonkeyPatch.context() as own:
            patch = kwargs.get("monkeypatch", own)
            assert isinstance(patch, pytest.MonkeyPatch)
            patch.setattr(asyncio, "to_thread", _here)
            patch.setattr(OwnThread, "run", _at_once)
            loop = runner.get_loop()
            with awake.using(awake.Clock(loop.time)):
                runner.run(test(*args, **kwargs))

    return run


async def _here(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return work(*args, **kwargs)


async def _at_once(_: OwnThread, work: Callable[[], T], *, patience_s: float) -> T:
    return work()
