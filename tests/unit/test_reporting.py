"""Where each replica stands is told to the operator: one event for each change, and what `status` says of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway_sidecar.domain.model import Foreign, Loading, Overrides, ReplicaId, ReplicaState, Unknown, WorkerType
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, READY, World, Worlds

R1 = ReplicaId("r1")


def told(world: World) -> list[Any]:
    """The story of r1, in order."""
    return [each for each in world.log if each.get("replica") == "r1" and each["event"].startswith("replica.")]


def count(world: World, state: ReplicaState) -> float:
    return float(world.metrics.replicas.labels("chat", state.value)._value.get())


@in_fake_time
async def test_a_life_is_one_event_for_each_change(worlds: Worlds) -> None:
    """The first time that it serves says how long that took; when it goes, what was in flight."""
    async with worlds() as world:
        world.appear("r1", Loading("503: loading"))
        await asyncio.sleep(10)
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(100)
        world.vanish("r1")
        await world.until(lambda: not world.service.tenures)
        events = told(world)
        names = [each["event"] for each in events]
        assert names[:2] == ["replica.seen", "replica.loading"]
        assert names[-3:] == ["replica.serving", "replica.draining", "replica.gone"]
        serving = events[-3]
        assert serving["worker_id"] == "w1"
        assert serving["model"] == "tiny"
        assert 10 <= serving["since_seen_s"] <= 13
        assert events[-2]["for_s"] >= 100


@in_fake_time
async def test_each_state_has_its_number_and_nobody_is_counted_twice(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        world.appear("r3", Foreign("it speaks Redis"))
        await world.until(lambda: count(world, ReplicaState.SERVING) == 2)
        assert count(world, ReplicaState.FOREIGN) == 1
        assert sum(count(world, state) for state in ReplicaState) == 3
        world.vanish("r2")
        await world.until(lambda: len(world.service.tenures) == 2)
        assert sum(count(world, state) for state in ReplicaState) == 2
        serving = world.metrics.replica_serving._metrics
        assert [labels[1] for labels in serving] == ["r1"], "one that is gone has no series"


@in_fake_time
async def test_the_reason_says_what_is_missing(worlds: Worlds) -> None:
    """What an engine says of itself, and what only the router knows."""
    async with worlds() as world:

        def reason() -> str:
            return next((tenure.status.reason for tenure in world.service.tenures.values()), "")

        world.appear("r1", Foreign("it speaks Redis"))
        await world.until(lambda: reason() == "it speaks Redis")
        world.answer("r1", Unknown("no answer"))
        await world.until(lambda: reason() == "no answer")
        world.router.ready_after_s = 1000.0
        world.answer("r1", READY)
        await world.until(lambda: reason() == "the router says pending")
        world.process.end()
        await world.until(lambda: world.serves("r1"))
        assert reason() == ""
        await world.service.drains.drain(R1, 60.0)
        await world.until(lambda: reason().endswith("; drained, safe to stop"))


@in_fake_time
async def test_one_that_drains_says_how_many_it_waits_for(worlds: Worlds) -> None:
    async with worlds() as world:
        port = await world.in_use("r1", 2)
        drain = asyncio.create_task(world.service.drains.drain(R1, 60.0))
        await world.until(lambda: world.tenure("r1").status.reason.endswith("; 2 connections in flight"))
        world.connections[port] = 0
        await drain


@in_fake_time
async def test_a_worker_without_a_model_is_told_how_to_get_one(worlds: Worlds) -> None:
    """It serves, and no request for a model reaches it."""
    async with worlds() as world:
        world.appear("r1", replace(READY, facts=replace(FACTS, model=None)))
        await world.until(lambda: world.serves("r1"))
        assert "it names no model" in world.tenure("r1").status.reason


@in_fake_time
async def test_trouble_is_a_warning_and_all_else_is_not(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1", Foreign("it speaks Redis"))
        await asyncio.sleep(1)
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1"))
        levels = {each["event"]: each["log_level"] for each in told(world)}
        assert levels["replica.foreign"] == "warning"
        assert levels["replica.serving"] == "info"


@pytest.mark.parametrize(
    ("connector", "notes", "said"),
    [
        ("NixlConnector", Overrides(), "it has a KV connector (NixlConnector) and does not say its role"),
        ("NixlConnector", Overrides(kv_role="kv_producer"), ""),
        ("NixlConnector", Overrides(worker_type=WorkerType.DECODE), ""),
        (None, Overrides(worker_type=WorkerType.PREFILL), "it is a prefill worker whose KV connector is not known"),
        (None, Overrides(kv_role="kv_both"), "it is a regular worker whose KV connector is not known"),
        (None, Overrides(kv_role="kv_consumer", kv_connector="NixlConnector"), ""),
        (None, Overrides(), ""),
    ],
)
@in_fake_time
async def test_a_vllm_that_transfers_no_kv_says_why_and_what_to_write(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch, connector: str | None, notes: Overrides, said: str
) -> None:
    """It serves, and each prompt is computed twice."""
    monkeypatch.setattr(World, "_read_notes", lambda *_: notes)
    async with worlds() as world:
        (world.directory / "r1.yaml").touch()
        world.appear("r1", replace(READY, facts=replace(FACTS, kv_connector=connector)))
        await world.until(lambda: world.serves("r1"))
        reason = world.tenure("r1").status.reason
        assert reason.startswith(said)
        assert bool(reason) is bool(said)
        if said:
            assert "so no KV is transferred; write `kv_" in reason
            assert reason.endswith("in its .yaml or inventory entry, or start it with VLLM_SERVER_DEV_MODE=1")


@in_fake_time
async def test_one_that_takes_its_time_over_what_it_is_loads(worlds: Worlds) -> None:
    """Neither out of reach nor registered: a real vLLM's first answer about itself takes over 5 s."""
    slow = Unknown("no answer to /server_info within 5 s; asked again", begun=True)
    async with worlds() as world:
        world.appear("r1", slow)
        await asyncio.sleep(20)
        assert world.tenure("r1").status.state is ReplicaState.LOADING
        assert world.router.ready() == set()
        world.answer("r1", READY)
        await world.until(lambda: world.serves("r1"))
        assert "replica.unreachable" not in [each["event"] for each in told(world)]
