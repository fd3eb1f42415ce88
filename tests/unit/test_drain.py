"""A replica is taken out of rotation, and is safe to stop when nobody needs it any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway_sidecar.domain.model import Overrides, Ready, ReplicaId, WorkerType
from gateway_sidecar.routers.base import MeshMember
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, World, Worlds

R1 = ReplicaId("r1")
PREFILL = Ready(replace(FACTS, worker_type=WorkerType.PREFILL, kv_connector="Nixl", bootstrap_port=8998))
DECODE = Ready(replace(FACTS, worker_type=WorkerType.DECODE))


def port_of(world: World, replica: str) -> int:
    port = world.tenure(replica).bridge.port
    assert port is not None
    return port


def drained(world: World) -> float:
    return float(world.metrics.drains.labels("chat", "drained")._value.get())


@in_fake_time
async def test_nobody_who_is_there_can_be_drained_under_another_name(worlds: Worlds) -> None:
    async with worlds() as world:
        with pytest.raises(KeyError):
            await world.service.drains.drain(R1, 1.0)
        with pytest.raises(KeyError):
            world.service.drains.resume(R1)


@in_fake_time
async def test_one_that_is_quiet_is_safe_at_once_and_stays_out(worlds: Worlds) -> None:
    """Until it is taken back: its answers do not bring it back."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        report = await world.service.drains.drain(R1, 60.0)
        assert report.drained
        assert report.took_s < 2
        assert report.unanswered == {}
        await asyncio.sleep(600)
        assert world.router.ready() == {str(world.tenure("r2").url)}
        assert drained(world) == 1


@in_fake_time
async def test_a_drain_means_the_engine_that_had_taken_the_place_of_another_before_it(worlds: Worlds) -> None:
    """Also if that is not known yet: what was asked before the drain is answered after it, and brings nobody back."""
    async with worlds() as world:
        world.appear("r1", Ready(replace(FACTS, instance="one")))
        await world.until(lambda: world.serves("r1"))
        before = world.tenure("r1")
        world.probe.takes_s = 3.0
        world.answer("r1", Ready(replace(FACTS, instance="two")))
        world.service.prober.suspect(before)
        asked = len(world.probe.asked)
        await world.until(lambda: len(world.probe.asked) > asked)
        assert (await world.service.drains.drain(R1, 60.0)).drained
        await asyncio.sleep(60)
        assert world.router.ready() == set()
        world.service.drains.resume(R1)
        await world.until(lambda: world.serves("r1"))
        assert world.tenure("r1") is not before


@in_fake_time
async def test_two_who_drain_the_same_one_are_told_the_same(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        world.connections[port_of(world, "r1")] = 1
        first = asyncio.create_task(world.service.drains.drain(R1, 600.0))
        await asyncio.sleep(5)
        second = asyncio.create_task(world.service.drains.drain(R1, 600.0))
        await asyncio.sleep(5)
        world.connections.clear()
        reports = await asyncio.gather(first, second)
        assert [report.drained for report in reports] == [True, True]
        assert drained(world) == 1
        assert (await world.service.drains.drain(R1, 0.0)).drained, "whoever comes later, too"


@in_fake_time
async def test_what_the_service_cannot_answer_without_it_is_said_before(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert world.service.drains.unanswered_without(R1) == {"tiny": "it is the model's only replica"}
        report = await world.service.drains.drain(R1, 60.0)
        assert report.unanswered == {"tiny": "it is the model's only replica"}


@in_fake_time
async def test_one_that_is_resumed_while_it_drains_goes_on(worlds: Worlds) -> None:
    """On the same port, and what was counted counts no more."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        port = port_of(world, "r1")
        world.connections[port] = 1
        drain = asyncio.create_task(world.service.drains.drain(R1, 20.0))
        await asyncio.sleep(5)
        world.service.drains.resume(R1)
        await world.until(lambda: world.serves("r1"))
        assert port_of(world, "r1") == port
        world.connections.clear()
        assert not (await drain).drained, "it is not safe to stop"
        world.service.drains.resume(R1)
        assert world.serves("r1")


@in_fake_time
async def test_a_prefill_engine_is_needed_until_its_blocks_are_fetched(worlds: Worlds) -> None:
    """vLLM's answers before the decode engine has them: nobody is connected, and it must not be stopped."""
    async with worlds(drain={"handover_s": 30.0}) as world:
        world.appear("r1", PREFILL)
        world.appear("r2", DECODE)
        await world.until(lambda: world.serves("r1", "r2"))
        began = awake.monotonic()
        assert FACTS.runtime_type == "vllm"
        assert (await world.service.drains.drain(R1, 600.0)).drained
        assert 30 <= awake.monotonic() - began < 33
        began = awake.monotonic()
        assert (await world.service.drains.drain(ReplicaId("r2"), 600.0)).drained
        assert awake.monotonic() - began < 3


@in_fake_time
async def test_one_that_is_a_prefill_engine_by_its_notes_is_needed_as_long(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM over HTTP does not say it itself."""
    notes = Overrides(worker_type=WorkerType.PREFILL, kv_connector="NixlConnector")
    monkeypatch.setattr(World, "_read_notes", lambda *_: notes)
    async with worlds(drain={"handover_s": 30.0}) as world:
        (world.directory / "r1.yaml").touch()
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        began = awake.monotonic()
        assert (await world.service.drains.drain(R1, 600.0)).drained
        assert 30 <= awake.monotonic() - began < 33


@in_fake_time
async def test_a_drain_outlives_the_daemon(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        await world.service.drains.drain(R1, 60.0)
        await world.restart()
        await asyncio.sleep(60)
        assert world.router.ready() == {str(world.tenure("r2").url)}
        assert (await world.service.drains.drain(R1, 60.0)).drained


@in_fake_time
async def test_one_whose_socket_is_replaced_is_another_and_serves(worlds: Worlds) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        await world.service.drains.drain(R1, 60.0)
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_an_engine_whose_socket_was_away_is_safe_to_stop_when_its_earlier_requests_are_done(
    worlds: Worlds,
) -> None:
    """The socket that comes back is a new stay of the same engine, which still works on what the old one was sent."""
    async with worlds() as world:
        port = await world.in_use("r1")
        socket, away = world.directory / "r1.sock", world.directory / "away"
        socket.rename(away)
        world.source.hint()
        await world.until(lambda: world.states() == {})
        away.rename(socket)
        world.source.hint()
        await world.until(lambda: world.serves("r1"))
        assert port_of(world, "r1") != port
        report = await world.service.drains.drain(R1, 5.0)
        assert (report.drained, report.in_flight) == (False, 1)
        draining = asyncio.create_task(world.service.drains.drain(R1, 60.0))
        await asyncio.sleep(1)
        assert not draining.done()
        world.connections[port] = 0
        report = await draining
        assert report.drained
        assert report.took_s < 5


@in_fake_time
async def test_an_engine_that_took_anothers_place_does_not_wait_for_its_requests(worlds: Worlds) -> None:
    async with worlds() as world:
        port = await world.in_use("r1")
        world.answer("r1", Ready(replace(FACTS, model="other")))
        world.service.prober.suspect(world.tenure("r1"))
        await world.until(lambda: world.serves("r1") and port_of(world, "r1") != port)
        assert (await world.service.drains.drain(R1, 5.0)).drained
        assert world.connections[port] == 1


@in_fake_time
async def test_in_a_mesh_a_request_that_came_while_its_bridge_was_closed_is_waited_for(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router may have learnt of the worker from another gateway after its own was gone: what it sent then counts."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        port, unlink = port_of(world, "r1"), world.links.unlink

        def slip_in(at: int) -> None:
            unlink(at)
            world.connections[at] = 1

        monkeypatch.setattr(world.links, "unlink", slip_in)
        process: Any = world.service.router
        process.mesh = MeshMember("gw-1.chat.1", "10.0.0.1", 23003, "", "/ca", "/certificate", "/key", 1.9e9)
        draining = asyncio.create_task(world.service.drains.drain(R1, 600.0))
        await asyncio.sleep(60)
        assert world.connections[port] == 1
        assert not draining.done()
        world.connections[port] = 0
        assert (await draining).drained
