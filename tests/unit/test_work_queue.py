"""The work queue: level-triggered, so a key waits at most once, and is due when it is due earliest."""

from __future__ import annotations

import asyncio

from gateway_sidecar.control.work_queue import WorkQueue


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_waits_once_and_in_order() -> None:
    """However often something changed, it is looked at once."""
    queue: WorkQueue[str] = WorkQueue(Clock())
    for key in "abcab":
        queue.add(key)
    assert await queue.take(0) == ["a", "b", "c"]
    assert await queue.take(0) == []


async def test_the_earlier_of_two_times_counts() -> None:
    """A later appointment never pushes an earlier one away."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 5)
    queue.add_after("a", 1)
    queue.add_after("a", 9)
    clock.now += 0.5
    assert await queue.take(0) == []
    clock.now += 0.6
    assert await queue.take(0) == ["a"]
    clock.now += 100
    assert await queue.take(0) == [], "and once it was looked at, the other appointments are void"


async def test_waiting_ends_with_the_first_key() -> None:
    """Nobody waits for the clock when there is something to do."""
    queue: WorkQueue[str] = WorkQueue(asyncio.get_running_loop().time)
    taking = asyncio.create_task(queue.take(60))
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(taking, 5) == ["a"]
    queue.add_after("b", 0.01)
    assert await asyncio.wait_for(queue.take(60), 5) == ["b"]
