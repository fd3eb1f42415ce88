"""Requests wait while nobody can answer them, and no longer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.routers.replacement import MOST_PATIENCE_S
from gateway_sidecar.domain.model import Loading, Ready, WorkerType
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, World, Worlds

PREFILL = Ready(replace(FACTS, worker_type=WorkerType.PREFILL, bootstrap_port=8998))
DECODE = Ready(replace(FACTS, worker_type=WorkerType.DECODE))


async def serving(world: World, *replicas: str) -> None:
    for replica in replicas:
        world.appear(replica)
    await world.until(lambda: world.serves(*replicas) and not world.links.closed)


@in_fake_time
async def test_the_gate_opens_with_the_first_that_can_answer(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", Loading("503: loading"))
        await asyncio.sleep(60)
        assert world.links.closed
        world.appear("r2")
        await world.until(lambda: not world.links.closed)
        assert world.router.ready() == {str(world.tenure("r2").url)}


@in_fake_time
async def test_half_a_pair_answers_nothing(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", PREFILL)
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(10)
        assert world.links.closed
        world.appear("r2", DECODE)
        await world.until(lambda: not world.links.closed)
        world.vanish("r1")
        await world.until(lambda: world.links.closed)


@in_fake_time
async def test_a_router_that_was_started_again_gets_everybody_first(worlds: Worlds) -> None:
    """The first that is back would get all the requests."""
    async with worlds() as world:
        await serving(world, "r1", "r2")
        world.process.end()
        await world.until(lambda: world.links.closed)
        await world.until(lambda: world.process.up)
        world.router.ready_after_s = 5.0
        await world.until(lambda: not world.links.closed)
        assert len(world.router.ready()) == 2


@in_fake_time
async def test_one_that_does_not_come_back_keeps_the_others_for_so_long_and_no_longer(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as world:
        await serving(world, "r1", "r2")
        slow = str(world.tenure("r2").url)
        became_ready = type(world.router)._become_ready
        monkeypatch.setattr(
            type(world.router),
            "_become_ready",
            lambda router, row: None if row.url == slow else became_ready(router, row),
        )
        world.process.end()
        await world.until(lambda: world.links.closed)
        began = awake.monotonic()
        await world.until(lambda: not world.links.closed)
        assert MOST_PATIENCE_S - 2 < awake.monotonic() - began < MOST_PATIENCE_S + 2


@in_fake_time
async def test_a_router_that_is_only_slow_costs_a_moments_wait_and_nobody_its_worker(worlds: Worlds) -> None:
    async with worlds() as world:
        await serving(world, "r1")
        router, calls = world.router, list(world.router.calls)
        router.silent = True
        await world.until(lambda: world.links.closed)
        router.silent = False
        await world.until(lambda: not world.links.closed)
        assert world.router is router
        assert router.calls == calls


@in_fake_time
async def test_the_models_last_served_are_known_while_it_sleeps_and_to_the_next_daemon(worlds: Worlds) -> None:
    async with worlds() as world:
        await serving(world, "r1")
        assert list(world.service.hold_policy.models) == []
        world.vanish("r1")
        await world.until(lambda: world.links.closed)
        assert list(world.service.hold_policy.models) == ["tiny"]


@in_fake_time
async def test_who_stays_is_found_out_once_until_a_tenure_is_looked_at(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At rest, with 1,000 replicas, it would take the daemon as long as all their health does."""
    looked_at = []
    look = Registry.at_url

    def note(tenures: Registry, url: str) -> Tenure | None:
        looked_at.append(url)
        return look(tenures, url)

    async with worlds() as world:
        await serving(world, "r1")
        await world.until(lambda: not world.service.controller.pending())
        monkeypatch.setattr(Registry, "at_url", note)
        await asyncio.sleep(300)
        assert 0 < len(looked_at) <= 300 / 30 + 1  # With the looks that are for what was missed.
        world.vanish("r1")
        await world.until(lambda: world.links.closed)
