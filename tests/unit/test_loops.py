"""A fault of ours in the background is logged, counted and survived, and what it was about is looked at again."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import (
    HEARTBEATS,
    PAUSE_S,
    Tasks,
    beating,
    cancelled,
    heartbeat,
    run_forever,
    survived,
    watch_event_loop,
)
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time


class Faulty:
    """Work with a fault in its first tries."""

    def __init__(self, faults: int = 1) -> None:
        self.faults = faults
        self.tries: list[float] = []

    async def work(self) -> None:
        self.tries.append(awake.monotonic())
        if len(self.tries) <= self.faults:
            raise ZeroDivisionError("a fault of ours")


def failures(metrics: Metrics, service: str = "chat") -> float:
    """What is counted of a service."""
    return float(metrics.loop_failures.labels(service)._value.get())


@in_fake_time
async def test_what_is_tried_once_says_what_to_look_at_again() -> None:
    """After a pause, so that a fault that comes at once does not take the CPU."""
    metrics, faulty, again = Metrics(), Faulty(), asyncio.Event()
    with capture_logs() as logs:
        await Tasks("chat", metrics).spawn(faulty.work(), again=again.set)
    assert again.is_set()
    assert awake.monotonic() == PAUSE_S
    assert [(log["event"], log["loop"], log["log_level"]) for log in logs] == [("loop.failed", "Faulty.work", "error")]
    assert failures(metrics) == 1


@in_fake_time
async def test_what_went_well_is_not_looked_at_again() -> None:
    metrics, faulty, again = Metrics(), Faulty(faults=0), asyncio.Event()
    await Tasks("chat", metrics).spawn(faulty.work(), again=again.set)
    assert not again.is_set()
    assert failures(metrics) == 0


@in_fake_time
async def test_fault_in_looking_again_is_survived_too() -> None:
    metrics = Metrics()
    await Tasks("chat", metrics).spawn(Faulty().work(), again=lambda: 1 // 0)
    assert failures(metrics) == 2


@in_fake_time
async def test_what_a_timer_calls_is_guarded_too() -> None:
    """A fault there goes no further, is counted by service, and has its subject looked at again."""
    metrics, again = Metrics(), asyncio.Event()
    tasks = Tasks("chat", metrics)
    with capture_logs() as logs:
        asyncio.get_running_loop().call_later(5, tasks.guarded(partial(divmod, 1, 0), again=again.set))
        await again.wait()
    assert awake.monotonic() == 5 + PAUSE_S
    assert [(log["event"], log["loop"]) for log in logs] == [("loop.failed", "divmod")]
    assert failures(metrics) == 1
    tasks.guarded(again.clear, again=again.set)()
    await asyncio.sleep(2 * PAUSE_S)
    assert not again.is_set()


@in_fake_time
async def test_what_has_to_succeed_is_tried_until_it_does() -> None:
    metrics, faulty = Metrics(), Faulty(faults=3)
    await Tasks("chat", metrics).until_done(partial(faulty.work))
    assert faulty.tries == [0, PAUSE_S, 2 * PAUSE_S, 3 * PAUSE_S]
    assert failures(metrics) == 3


@in_fake_time
async def test_loop_goes_on_after_a_fault() -> None:
    metrics, faulty = Metrics(), Faulty()

    async def loop() -> None:
        await faulty.work()
        await asyncio.sleep(10)

    tasks = Tasks("chat", metrics)
    tasks.run_forever(loop)
    await asyncio.sleep(25)
    await tasks.close()
    assert faulty.tries == [0, PAUSE_S, PAUSE_S + 10, PAUSE_S + 20]
    assert failures(metrics) == 1


@in_fake_time
async def test_closing_cancels_and_counts_nothing() -> None:
    """An end that was asked for is no fault."""
    metrics, ended = Metrics(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tasks = Tasks("chat", metrics)
    task = tasks.spawn(work(), again=lambda: pytest.fail("it was not a fault"))
    await asyncio.sleep(0)
    await tasks.close()
    assert (ended.is_set(), task.cancelled(), failures(metrics)) == (True, True, 0)


@in_fake_time
async def test_cancellation_is_no_fault() -> None:
    metrics = Metrics()
    task = asyncio.create_task(run_forever("chat", partial(asyncio.sleep, 100), metrics))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncio.CancelledError), survived("chat", "x", metrics):
        raise asyncio.CancelledError
    assert failures(metrics) == 0


@in_fake_time
async def test_what_no_guard_caught_is_told_all_the_same() -> None:
    """A callback's fault, and a task that nobody awaits."""
    metrics = Metrics()
    watch_event_loop(metrics)
    loop = asyncio.get_running_loop()
    with capture_logs() as logs:
        loop.call_soon(lambda: 1 // 0)
        lost = loop.create_task(Faulty().work())
        await asyncio.sleep(1)
        del lost
        gc.collect()
        await asyncio.sleep(0)
    assert [log["event"] for log in logs] == ["loop.failed", "loop.failed"]
    assert "work" in logs[1]["loop"]
    assert failures(metrics, "-") == 2


@in_fake_time
async def test_waiting_for_others_is_progress() -> None:
    async def loop() -> None:
        await beating(asyncio.sleep(100))

    task = asyncio.create_task(run_forever("chat", loop, Metrics()))
    await asyncio.sleep(50.5)
    stalest = HEARTBEATS.stalest()
    assert stalest is not None
    assert awake.now() - stalest.at == pytest.approx(0.5)
    await cancelled(task)


@in_fake_time
async def test_the_loop_that_is_most_behind_is_named() -> None:
    """One that never tells of its progress may wait for as long as it likes; one that ended is behind no more."""

    async def comes_round() -> None:
        while True:
            heartbeat()
            await asyncio.sleep(1)

    async def hangs() -> None:
        heartbeat()
        await asyncio.Event().wait()

    async def waits() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(run_forever("chat", loop, Metrics())) for loop in (comes_round, hangs, waits)]
    await asyncio.sleep(60)
    stalest = HEARTBEATS.stalest()
    assert stalest is not None
    assert stalest.name.startswith("chat: ")
    assert stalest.name.endswith("hangs")
    assert awake.now() - stalest.at == pytest.approx(60)
    await cancelled(*tasks)
    assert HEARTBEATS.stalest() is None
