"""Which stays a replica has while its source sends it elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_sidecar.domain.model import Loading, ProbeResult
from tests.unit.fake_time import in_fake_time
from tests.unit.world import READY, World, Worlds


def send(world: World, replica: str, place: str, answer: ProbeResult) -> None:
    """The inventory names this place, where an engine answers like this."""
    path = world.directory / "elsewhere" / f"{place}.sock"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    world.probe.answers[place] = answer
    world.source.named[replica] = path
    world.source.hint()


def places(world: World) -> set[str]:
    return {Path(tenure.sighting.socket).stem for tenure in world.service.tenures.values()}


@in_fake_time
async def test_a_replica_that_serves_stays_until_its_new_place_serves(worlds: Worlds) -> None:
    """Its requests have nowhere else to go."""
    async with worlds() as world:
        send(world, "r1", "old", READY)
        await world.until(lambda: world.serves("r1"))
        send(world, "r1", "new", Loading("503: loading"))
        await asyncio.sleep(60)
        assert places(world) == {"old", "new"}
        send(world, "r1", "new", READY)
        await world.until(lambda: places(world) == {"new"})


@in_fake_time
async def test_a_place_that_never_served_is_left_at_once(worlds: Worlds) -> None:
    """It would be shown beside the new one for as long as that loads, and be asked for nothing."""
    async with worlds() as world:
        send(world, "r1", "old", Loading("503: loading"))
        await world.until(lambda: places(world) == {"old"})
        await asyncio.sleep(5)
        send(world, "r1", "new", Loading("503: loading"))
        await world.until(lambda: places(world) == {"new"})
