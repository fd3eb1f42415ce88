"""Turns of probes: few at a time, and the silent hold nobody up."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway_sidecar.control.replicas.probe_turns import ProbeTurns


async def settled() -> None:
    """Whatever is due now has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def asking(turns: ProbeTurns, names: str) -> tuple[list[str], dict[str, asyncio.Event], dict[str, asyncio.Task[None]]]:
    """Probes that last until their event is set; in which order they began."""
    begun: list[str] = []
    ends = {name: asyncio.Event() for name in names}

    async def probe(name: str) -> None:
        async with turns.turn():
            begun.append(name)
            await ends[name].wait()

    return begun, ends, {name: asyncio.create_task(probe(name)) for name in names}


async def test_few_at_a_time_and_the_latest_first() -> None:
    """Who came before a crowd of silent ones is asked already; who comes after it does not wait for all of it."""
    turns = ProbeTurns(2, most_s=60)
    begun, ends, tasks = asking(turns, "abcde")
    await settled()
    assert begun == ["a", "b"]
    ends["a"].set()
    await settled()
    assert begun == ["a", "b", "e"]
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    assert begun == ["a", "b", "e", "d", "c"]
    again, ends, tasks = asking(turns, "fgh")
    await settled()
    assert again == ["f", "g"], "no turn was lost, and none was given twice"
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())


async def test_a_silent_one_goes_on_without_its_turn() -> None:
    """Its turn is another's after a while; that it ends later gives no further one."""
    turns = ProbeTurns(1, most_s=0.01)
    begun, ends, tasks = asking(turns, "abc")
    async with asyncio.timeout(30):
        while begun != ["a", "c", "b"]:
            await asyncio.sleep(0.001)
    assert not any(task.done() for task in tasks.values())
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    begun, ends, tasks = asking(turns, "de")
    await asyncio.sleep(0)  # Each has taken a turn if there was one, and no time is up yet.
    assert begun == ["d"], "what ended after its time gave a second turn"
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())
    patient = ProbeTurns(1, most_s=math.inf)
    begun, ends, tasks = asking(patient, "ab")
    await asyncio.sleep(0.05)
    assert begun == ["a"]
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks.values())


@pytest.mark.parametrize("is_its_turn", [False, True])
async def test_a_probe_that_is_given_up_keeps_no_turn(is_its_turn: bool) -> None:
    """Neither while it waits, nor in the moment that its turn comes."""
    turns = ProbeTurns(1, most_s=60)
    begun, ends, tasks = asking(turns, "abc")
    await settled()
    if is_its_turn:
        ends["a"].set()
        await asyncio.sleep(0)  # It has ended, and `c` does not know yet.
    tasks["c"].cancel()
    ends["a"].set()
    await settled()
    assert begun == ["a", "b"]
    ends["b"].set()
    await asyncio.gather(tasks["a"], tasks["b"])
    assert tasks["c"].cancelled()
