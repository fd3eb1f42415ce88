"""The loop of one service: a key in, a look at what it means, and a delay out."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from gateway_sidecar.control.replicas.controller import Controller, soonest
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.workqueue import Key, Part, WorkerAt
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.world import World, Worlds


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
async def test_a_look_at_a_tenure_that_is_as_it_should_be_asks_for_no_other(worlds: Worlds) -> None:
    """When its engine is to be asked next the prober sees to; and to look twice changes nothing."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(1)
        tenure, calls = world.tenure("r1"), list(world.router.calls)
        for _ in range(3):
            assert world.service.controller.reconcile(tenure.key) is None
        assert world.router.calls == calls


@in_fake_time
async def test_a_replica_of_a_crowd_is_looked_at_a_few_times_until_it_serves(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen, opened, identified, accepted by the router, ready: each look costs CPU, and a thousand come at once."""
    looks: Counter[Key] = Counter()
    reconcile = Controller.reconcile

    def counted(controller: Controller, key: Key) -> float | None:
        looks[key] += 1
        return reconcile(controller, key)

    monkeypatch.setattr(Controller, "reconcile", counted)
    async with worlds() as world:
        names = [f"r{number}" for number in range(20)]
        for name in names:
            world.appear(name)
        await world.until(lambda: world.serves(*names))
        assert max(looks[world.tenure(name).key] for name in names) <= 5


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


@in_fake_time
async def test_at_rest_nothing_is_to_be_done_and_nothing_is_written_down(worlds: Worlds) -> None:
    """Looking again changes nothing."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await world.at_rest()
        await asyncio.sleep(1)
        written, calls = world.written, list(world.router.calls)
        for _ in range(10):
            world.service.controller.reconsider()
            await asyncio.sleep(0.1)
        assert world.service.controller.pending() == []
        assert world.written == written
        assert world.router.calls == calls


@in_fake_time
async def test_a_fault_while_one_is_looked_at_is_no_other_ones(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and that one is looked at again after a pause."""
    update, faults = Reporting.update, [ZeroDivisionError("a fault of ours")]

    def stumble(self: Reporting, tenure: object) -> None:
        if faults and getattr(tenure, "replica", "") == "r1":
            raise faults.pop()
        update(self, tenure)  # type: ignore[arg-type]

    monkeypatch.setattr(Reporting, "update", stumble)
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        assert world.faults() == 1
        assert "loop.failed" in [each["event"] for each in world.log]


@in_fake_time
async def test_what_nobody_said_is_seen_all_the_same(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level, not edge: hints only hurry the loop."""
    async with worlds() as world:
        monkeypatch.setattr(type(world.source), "hint", lambda _: None)
        world.appear("r1")
        await world.until(lambda: world.serves("r1"), within_s=6)
        world.vanish("r1")
        await world.until(lambda: world.states() == {}, within_s=6)


@in_fake_time
async def test_what_the_next_look_would_do_is_said_and_not_done(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.tenure("r1").drain.requested = True
        ((replica, action),) = world.service.controller.pending()[:1]
        assert ReplicaId(replica) == "r1"
        assert action
        assert [call for call, _ in world.router.calls] == ["register"]
