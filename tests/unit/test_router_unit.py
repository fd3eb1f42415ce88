"""A router with its book: one in service and, while it is replaced, one that only finishes what it has begun."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway_sidecar.control.routers import replacement
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.domain.model import WorkerSpec, WorkerStatus
from gateway_sidecar.errors import RouterRefused, RouterUnavailable
from gateway_sidecar.routers.base import MeshMember
from tests.unit.fake_time import in_fake_time
from tests.unit.world import PlayedRouter, World, Worlds


@asynccontextmanager
async def of_two(worlds: Worlds) -> AsyncIterator[World]:
    """Two replicas that serve."""
    async with worlds() as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        yield world


@asynccontextmanager
async def replaced(worlds: Worlds, patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[World, RouterUnit, PlayedRouter]]:
    """Two replicas, and a router that was replaced and still has a stream."""
    async with of_two(worlds) as world:
        patch.setattr(replacement, "open_connections", lambda ports: Counter(dict.fromkeys(ports, 1)))
        unit, client = world.service.slots.active, world.router
        await world.service.slots.replace()
        await world.until(lambda: unit.retiring)
        yield world, unit, client


def in_book(unit: RouterUnit) -> set[str]:
    return set(unit.book.workers)


@in_fake_time
async def test_a_router_that_retires_loses_those_that_leave_and_gets_nobody(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not try one that is gone; whoever comes is the new router's."""
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        url = str(world.tenure("r1").url)
        world.vanish("r1")
        world.appear("r3")
        await world.until(lambda: world.serves("r2", "r3"))
        await world.until(lambda: url not in old.workers)
        assert url not in in_book(unit)
        assert set(old.workers) == {str(world.tenure("r2").url)}
        assert unit.is_ready(str(world.tenure("r2").url))
        assert not unit.is_ready(str(world.tenure("r3").url))
        assert not unit.is_ready(None)


@in_fake_time
async def test_a_router_that_retires_and_answers_nothing_hangs(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be expected of it: its last streams do not keep it."""
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        old.silent = True
        world.vanish("r1")
        await asyncio.sleep(3)
        assert not unit.hangs.is_set(), "it may only be slow"
        await world.until(unit.hangs.is_set)
        await world.until(lambda: len(world.service.routers) == 1)


@in_fake_time
async def test_a_router_that_was_silent_for_a_moment_is_asked_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        url, faults = str(world.tenure("r1").url), [RouterUnavailable("no answer"), RouterUnavailable("no answer")]
        deregister = old.deregister

        async def stumble(worker_id: str) -> None:
            if faults:
                raise faults.pop()
            await deregister(worker_id)

        old.deregister = stumble  # type: ignore[method-assign]
        world.vanish("r1")
        await world.until(lambda: url not in old.workers)
        assert not unit.hangs.is_set()


@in_fake_time
async def test_a_router_that_refuses_to_let_one_go_is_believed_to_have_none(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the others are gone on with."""
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        url = str(world.tenure("r1").url)

        async def refuse(worker_id: str) -> None:
            raise RouterRefused("no such worker", 404)

        old.deregister = refuse  # type: ignore[method-assign]
        world.vanish("r1")
        await world.until(lambda: url not in in_book(unit))
        assert "worker.operation_failed" in [each["event"] for each in world.log]
        await world.until(lambda: len(world.service.tenures) == 1)


@in_fake_time
async def test_who_is_still_being_taken_out_of_a_router_that_ends_is_asked_for_no_more(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened to ask a router that has ended would be closed by nobody."""
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        old.silent = True
        world.vanish("r1")
        await world.until(lambda: any(client.is_open for client in world.routers[0].clients))
        monkeypatch.setattr(replacement, "open_connections", lambda _: Counter())
        await world.until(lambda: unit not in world.service.slots.units, within_s=1.0)
        assert not any(client.is_open for client in world.routers[0].clients)


@in_fake_time
async def test_a_worker_that_the_retiring_router_lists_by_another_id_is_taken_out_by_that(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine with ranks goes by an id that only the client knows which registered it."""
    async with replaced(worlds, monkeypatch) as (world, unit, old):
        url = str(world.tenure("r1").url)
        old.workers[url] = replace(old.workers[url], worker_id="w7")
        world.vanish("r1")
        await world.until(lambda: url not in old.workers)
        assert url not in in_book(unit)


@in_fake_time
async def test_a_replacement_that_fails_names_the_worker_that_the_new_router_refuses(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator reads in the answer to a reload what keeps another kind of router out."""
    async with of_two(worlds) as world:
        url, register = str(world.tenure("r2").url), PlayedRouter.register

        async def refuse(router: PlayedRouter, spec: WorkerSpec) -> str:
            if spec.url == url:
                raise RouterRefused("it speaks HTTP only", 400)
            return await register(router, spec)

        monkeypatch.setattr(PlayedRouter, "register", refuse)
        with pytest.raises(RouterUnavailable) as failed:
            await world.service.slots.replace()
        why = f"1 of its workers did not become ready in time; {url}: it speaks HTTP only"
        assert str(failed.value) == f"the new router was not put in place: {why}"
        assert world.serves("r1", "r2")


@in_fake_time
async def test_a_router_has_ended_though_run_dir_is_missing_just_then(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next replacement waits for nobody: the switch file is made again with all else of run_dir."""
    async with replaced(worlds, monkeypatch) as (world, unit, _):
        asked = 0

        def refuse(_slots: RouterSlots) -> None:
            nonlocal asked
            asked += 1
            raise FileNotFoundError(2, "No such file or directory", "gates/chat.next")

        monkeypatch.setattr(RouterSlots, "prepare", refuse)
        monkeypatch.setattr(replacement, "open_connections", lambda _: Counter())
        await world.until(lambda: asked == 1 and not world.service.slots.is_replacing)
        assert unit not in world.service.slots.units
        await world.service.slots.replace()


@in_fake_time
async def test_a_new_router_that_does_not_make_a_worker_ready_is_told_of_it_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMG never asks an engine again that told no model just as it was added: the replacement would wait in vain."""
    async with of_two(worlds) as world:
        url, register, told = str(world.tenure("r2").url), PlayedRouter.register, 0

        async def leave_out(router: PlayedRouter, spec: WorkerSpec) -> str:
            nonlocal told
            worker_id = await register(router, spec)
            if spec.url == url:
                told += 1
                if told <= 2:
                    router.workers[url] = replace(router.workers[url], status=WorkerStatus.NOT_READY)
            return worker_id

        monkeypatch.setattr(PlayedRouter, "register", leave_out)
        await world.service.slots.replace()
        assert told == 3
        assert world.serves("r1", "r2")


@in_fake_time
async def test_a_replacement_that_fails_says_what_the_new_router_makes_of_a_worker(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        monkeypatch.setattr(PlayedRouter, "_become_ready", lambda *_: None)
        with pytest.raises(RouterUnavailable) as failed:
            await world.service.slots.replace()
        assert str(failed.value).endswith(f"did not become ready in time; {world.tenure('r1').url}: pending")


@in_fake_time
async def test_a_router_is_being_replaced_from_when_that_is_due_until_the_old_one_has_ended(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who replaces routers for the mesh waits for it."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        slots, old = world.service.slots, world.process
        await world.until(lambda: not slots.is_replacing)
        monkeypatch.setattr(replacement, "open_connections", lambda ports: Counter(dict.fromkeys(ports, 1)))
        slots.note_memory(1 << 50)
        assert slots.is_replacing
        await world.until(lambda: world.process is not old)
        await asyncio.sleep(60)
        assert slots.is_replacing, "the old one has a stream"
        monkeypatch.setattr(replacement, "open_connections", lambda _ports: Counter[int]())
        await world.until(lambda: not slots.is_replacing)


@in_fake_time
async def test_a_router_that_is_replaced_for_the_mesh_stays_if_the_new_one_gets_no_place(worlds: Worlds) -> None:
    """It would lose its prefix tree for nothing. Why there is no place, the mesh itself says."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        slots, process = world.service.slots, world.process
        with pytest.raises(RouterUnavailable) as failed:
            await slots.replace(only_in_mesh=True)
        assert str(failed.value) == "the new router was not put in place: it has no place in the mesh"
        assert (world.process, slots.problem) == (process, "")
        assert [unit.router.slot for unit in slots.units] == ["chat"]
        world.place = place = MeshMember("gw-1.chat.1", "10.0.0.1", 23003, "", "/ca", "/certificate", "/key", 1.9e9)
        await slots.replace(only_in_mesh=True)
        assert world.process is not process
        assert world.process.mesh == place
        world.process.end()  # One in service begins again in its place, outside of the mesh.
        await world.until(lambda: world.process.epoch == 2)
        world.place = None
        await slots.replace()
        assert world.process.mesh is None, "for anything else it is replaced all the same"


@in_fake_time
async def test_what_is_said_of_settings_that_failed_ends_when_they_are_wanted_no_more(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement that failed with the settings in force is still to be told of."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))

        async def refuse(router: PlayedRouter, spec: WorkerSpec) -> str:
            raise RouterRefused("it is full", 400)

        monkeypatch.setattr(PlayedRouter, "register", refuse)
        slots, settings = world.service.slots, world.service.slots.settings
        with pytest.raises(RouterUnavailable):
            await slots.replace()
        slots.note_kept()
        assert "it is full" in slots.problem
        changed = settings.router.model_copy(update={"api_timeout_s": 7.0})
        slots.reconfigure(settings.model_copy(update={"router": changed}))
        with pytest.raises(RouterUnavailable):
            await slots.replace()
        slots.reconfigure(settings)
        assert "it is full" in slots.problem
        slots.note_kept()
        assert slots.problem == ""


@in_fake_time
async def test_a_worker_is_ready_when_the_router_says_so_and_not_before(worlds: Worlds) -> None:
    async with worlds() as world:
        unit: RouterUnit = world.service.slots.active
        world.router.ready_after_s = 10.0
        world.appear("r1")
        await world.until(lambda: len(world.router.workers) == 1)
        (url,) = world.router.workers
        await asyncio.sleep(5)
        assert not unit.is_ready(url)
        await world.until(lambda: unit.is_ready(url))
        assert world.router.workers[url].status is WorkerStatus.READY
