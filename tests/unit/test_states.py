"""The states of a replica: every way that docs/architecture.md draws is walked, in fake time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway_sidecar.domain.model import Foreign, Loading, ProbeResult, ReplicaId, ReplicaState, Unknown
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, READY, REFUSED, World, running_world

Way = tuple[str, str]
ANSWERS: dict[str, ProbeResult] = {
    "loading": Loading("503: loading"),
    "foreign": Foreign("it speaks Redis"),
    "unreachable": Unknown("no answer"),
    "registering": READY,
    "serving": READY,
    "dead": Loading("/health answers 503", FACTS),
}


def drawn(heading: str) -> set[Way]:
    """The ways of the table of transitions after `heading`."""
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    table = page[page.index(heading) :]
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.+) \|$", table[: table.index("\n\n", table.index("| --- |"))])
    return {(start, end) for start, ends in rows for end in re.findall(r"`(\w+)`", ends)}


REPLICA_WAYS = drawn("## States")
assert len(REPLICA_WAYS) > 20


def walked(world: World, replica: str = "r1") -> set[Way]:
    """The ways that a replica has gone, as its events tell."""
    states = {state.value for state in ReplicaState}
    return {
        (entry["was"], entry["event"].removeprefix("replica."))
        for entry in world.log
        if entry.get("replica") == replica and entry["event"].removeprefix("replica.") in states and "was" in entry
    }


async def into(world: World, state: str, *, was_engine: bool = False) -> None:
    """Brings a replica into a state, and keeps it there; with `was_engine` one that was identified before."""
    if state == "seen":
        return
    if was_engine and state in ("loading", "unreachable"):
        world.router.ready_after_s = 1000.0 if state == "loading" else 0.02
        world.appear("r1", READY)
        await world.until(lambda: "r1" in world.states() and world.states()["r1"] in ("registering", "serving"))
        world.answer("r1", ANSWERS["dead" if state == "loading" else state])
        await world.until(lambda: world.states() == {"r1": ReplicaState(state)}, within_s=60.0)
        return
    if state == "registering":
        world.router.ready_after_s = 1000.0
    if state in ("draining", "dead"):
        await world.in_use("r1")
    if state == "dead":
        world.answer("r1", ANSWERS["dead"])
    elif state == "draining":
        await world.service.drains.drain(ReplicaId("r1"), 0.0)
    else:
        world.appear("r1", ANSWERS[state])
    await world.until(lambda: world.states() == {"r1": ReplicaState(state)})


async def onward(world: World, start: str, end: str) -> None:
    """Goes one way on from there."""
    world.router.ready_after_s = 1000.0 if end == "registering" else 0.02
    if start == "seen":
        if end == "draining":
            world.probe.takes_s = 10.0
            world.appear("r1")
            await world.until(lambda: world.service.current(ReplicaId("r1")) is not None)
            await world.service.drains.drain(ReplicaId("r1"), 0.0)
        else:
            world.appear("r1", ANSWERS[end])
    elif end == "draining":
        await world.service.drains.drain(ReplicaId("r1"), 0.0)
    elif start == "draining":
        if end == "seen":
            await world.until(lambda: not world.router.workers)
        world.service.drains.resume(ReplicaId("r1"))
    elif (start, end) == ("serving", "registering"):
        world.process.end()
    elif (start, end) == ("registering", "serving"):
        (row,) = world.router.workers.values()
        world.router._become_ready(row)
    elif end == "unreachable" and start in ("serving", "dead"):
        world.answer("r1", REFUSED)
    else:
        world.answer("r1", ANSWERS[end])
    await world.until(lambda: (start, end) in walked(world), within_s=300.0)


@pytest.mark.parametrize(("start", "end"), sorted(REPLICA_WAYS))
def test_every_way_that_is_drawn_can_be_gone(
    start: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with running_world(tmp_path, monkeypatch) as world:
            await into(world, start, was_engine=end == "dead")
            await onward(world, start, end)
            assert walked(world) <= REPLICA_WAYS

    in_fake_time(go)()
