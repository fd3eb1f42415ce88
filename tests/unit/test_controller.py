"""The loop of one service: a key in, a look at what it means, and a delay out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_sidecar.control.replicas.controller import Controller, soonest
from gateway_sidecar.control.workqueue import Key, Part, WorkerAt
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.test_service import Worlds, worlds
from tests.unit.world import World

__all__ = ["worlds"]


@pytest.mark.parametrize(
    ("delays", "shortest"), [((), None), ((None, None), None), ((2.0, None, 0.5), 0.5), ((0.0, 1.0), 0.0)]
)
def test_the_shortest_delay_counts(delays: tuple[float | None, ...], shortest: float | None) -> None:
    assert soonest(*delays) == shortest


@in_fake_time
async def test_a_key_that_means_nothing_any_more_is_dropped(tmp_path: Path) -> None:
    controller = World(tmp_path).service.controller
    for key in (77, WorkerAt("http://127.0.0.1:1"), Part.LISTING, Part.WORKERS, Part.HOLD):
        assert controller.reconcile(key) is None


@in_fake_time
async def test_to_look_again_at_a_tenure_that_serves_changes_nothing(worlds: Worlds) -> None:
    """And it need not be looked at again: the prober asks its engine when that is due."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(1)
        tenure, calls = world.tenure("r1"), list(world.router.calls)
        for _ in range(3):
            assert world.service.controller.reconcile(tenure.key) is None
        assert world.router.calls == calls


@in_fake_time
async def test_only_the_loop_begins_and_ends_tenures(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop stands still everything is observed, and nothing follows from it."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        calls, led = list(world.router.calls), dict(world.links.led)
        reconcile = Controller.reconcile
        missed: list[tuple[Controller, Key]] = []
        monkeypatch.setattr(Controller, "reconcile", lambda self, key: missed.append((self, key)))
        world.vanish("r1")
        world.appear("r2")
        await asyncio.sleep(10)
        assert list(world.states()) == ["r1"]
        assert (world.router.calls, world.links.led) == (calls, led)
        monkeypatch.setattr(Controller, "reconcile", reconcile)
        await world.until(lambda: world.serves("r2"), within_s=30)


@in_fake_time
async def test_what_is_written_down_is_written_when_it_changes_and_not_before(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(30)
        written = world.written
        await asyncio.sleep(300)
        assert world.written == written, "nothing happened"
        await world.service.drains.drain(ReplicaId("r1"), 10)
        assert world.written > written


@in_fake_time
async def test_who_waits_is_told_as_soon_as_something_was_planned(worlds: Worlds) -> None:
    async with worlds() as world:
        waiting = asyncio.create_task(
            world.service.until(lambda: world.states().get("r1") is ReplicaState.SERVING, 60.0)
        )
        await asyncio.sleep(10)
        began = awake.monotonic()
        world.appear("r1")
        assert await waiting
        assert awake.monotonic() - began < 0.2
        assert not await world.service.until(lambda: False, 5.0)
