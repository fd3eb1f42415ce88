"""Who stays behind a service's sockets: one stay for each occupant, until nobody holds a connection to it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from gateway_sidecar.domain.model import Ready, ReplicaId
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, World, Worlds

R1 = ReplicaId("r1")


def generations(world: World) -> list[int]:
    return sorted(tenure.generation for tenure in world.service.tenures.values())


@in_fake_time
async def test_a_socket_that_comes_back_is_a_new_stay(worlds: Worlds) -> None:
    """The same inode at the same path: the old stay may still be draining, and keeps its port."""
    async with worlds() as world:
        port = await world.in_use("r1")
        os.link(world.directory / "r1.sock", world.directory / "kept")
        world.vanish("r1")
        await asyncio.sleep(1)
        assert world.service.current(R1) is None
        (world.directory / "kept").rename(world.directory / "r1.sock")
        world.answer("r1", Ready(FACTS))
        world.source.hint()
        await world.until(lambda: world.serves("r1"))
        assert generations(world) == [0, 1]
        assert world.tenure("r1").bridge.port != port
        world.connections.clear()
        await world.until(lambda: generations(world) == [1])


@in_fake_time
async def test_whose_worker_it_is_is_known_by_its_url_until_nobody_is_behind_it(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        urls = {str(tenure.url) for tenure in world.service.tenures.values()}
        assert urls == world.router.ready()
        world.vanish("r1")
        await world.until(lambda: len(world.service.tenures) == 1)
        await asyncio.sleep(60)
        assert world.router.ready() == {str(world.tenure("r2").url)}


@in_fake_time
async def test_a_stay_that_is_over_is_forgotten_however_many_there_were(worlds: Worlds) -> None:
    """Nothing may grow: a replica that restarts a hundred times is one replica."""
    async with worlds() as world:
        for number in range(100):
            world.appear("r1", Ready(replace(FACTS, instance=str(number))))
            await world.until(lambda: world.serves("r1"))
        await world.until(lambda: len(world.service.tenures) == 1, within_s=300)
        await world.at_rest()
        assert len(world.leases.leased) == 1
