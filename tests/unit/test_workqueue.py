"""The work queue: level-triggered, so a key waits at most once, and is due when it is due earliest."""

from __future__ import annotations

import asyncio

from gateway_sidecar.control.workqueue import WorkQueue
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time


def new_queue() -> WorkQueue[str]:
    return WorkQueue(awake.monotonic)


async def all_of(queue: WorkQueue[str]) -> list[str]:
    """What is to be looked at now, in order."""
    found = []
    while (key := await queue.get(0)) is not None:
        found.append(key)
    return found


@in_fake_time
async def test_a_key_waits_once_and_in_order() -> None:
    """However often something changed, it is looked at once."""
    queue = new_queue()
    for key in "abcab":
        queue.add(key)
    assert queue.pop() == "a"
    assert await all_of(queue) == ["b", "c"]
    assert queue.pop() is None


@in_fake_time
async def test_what_is_urgent_goes_first() -> None:
    """A replica that is gone waits behind no crowd, and is not looked at a second time for it."""
    queue = new_queue()
    for key in "abcd":
        queue.add(key)
    queue.add("c", urgent=True)
    queue.add("e", urgent=True)
    queue.add("c")
    assert await all_of(queue) == ["c", "e", "a", "b", "d"]


@in_fake_time
async def test_the_earlier_of_two_times_counts() -> None:
    """A later appointment never pushes an earlier one away."""
    queue = new_queue()
    queue.add_after("a", 5)
    queue.add_after("a", 1)
    queue.add_after("a", 9)
    await asyncio.sleep(0.5)
    assert await all_of(queue) == []
    await asyncio.sleep(0.6)
    assert await all_of(queue) == ["a"]
    await asyncio.sleep(100)
    assert await all_of(queue) == [], "and once it was looked at, the other appointments are void"


@in_fake_time
async def test_waiting_ends_with_the_first_key() -> None:
    """Nobody waits for the clock when there is something to do."""
    queue = new_queue()
    getting = asyncio.create_task(queue.get(60))
    await asyncio.sleep(10)
    queue.add("a")
    assert await getting == "a"
    assert awake.monotonic() == 10
    queue.add_after("b", 2)
    assert await queue.get(60) == "b"
    assert awake.monotonic() == 12
    assert await queue.get(60) is None
    assert awake.monotonic() == 72
