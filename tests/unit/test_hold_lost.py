"""Which models requests wait for although the service answers for others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gateway_sidecar.domain.lost_models import REMEMBERED_S
from gateway_sidecar.domain.model import Loading, Ready, WorkerType
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, World, Worlds

LARGE = Ready(replace(FACTS, model="large"))
PREFILL = Ready(replace(FACTS, worker_type=WorkerType.PREFILL, bootstrap_port=8998, model="pair"))
DECODE = Ready(replace(FACTS, worker_type=WorkerType.DECODE, model="pair"))


def lost(world: World) -> set[str]:
    return set(world.links.models.values())


@in_fake_time
async def test_the_gate_is_closed_for_a_model_before_its_last_worker_leaves(worlds: Worlds) -> None:
    """Else requests in between would meet a router that knows it no more."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2", LARGE)
        await world.until(lambda: world.serves("r1", "r2") and not world.links.closed)
        url = str(world.tenure("r2").url)
        world.vanish("r2")
        await world.until(lambda: ("deregister", url) in world.router.calls)
        assert world.links.closed
        assert lost(world) == {"large"}
        world.appear("r3", LARGE)
        await world.until(lambda: not world.links.closed)
        assert lost(world) == set()
        world.vanish("r3")
        await world.until(lambda: world.links.closed)
        await asyncio.sleep(REMEMBERED_S + 60)
        assert not world.links.closed


@in_fake_time
async def test_a_model_is_waited_for_while_its_engine_is_there_and_ill(worlds: Worlds) -> None:
    """However long that takes."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2", LARGE)
        await world.until(lambda: world.serves("r1", "r2") and not world.links.closed)
        world.probe.answers["r2"] = Loading("connection refused", refused=True)
        await world.until(lambda: lost(world) == {"large"})
        await asyncio.sleep(2 * REMEMBERED_S)
        assert lost(world) == {"large"}
        world.probe.answers["r2"] = LARGE
        await world.until(lambda: not world.links.closed)


@in_fake_time
async def test_half_a_pair_of_one_of_several_models_is_waited_for(worlds: Worlds) -> None:
    """As where the service has that model alone."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("p1", PREFILL)
        await world.until(lambda: world.serves("r1", "p1"))
        await world.until(lambda: lost(world) == {"pair"})
        world.appear("d1", DECODE)
        await world.until(lambda: not world.links.closed)
