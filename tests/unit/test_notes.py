"""Sockets are opened and notes are read beside the loop; a disk that hangs holds up nobody but whom it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from gateway_sidecar.control.replicas import notes
from gateway_sidecar.control.replicas.notes import Handles, open_path
from gateway_sidecar.domain.model import ReplicaState, WorkerType
from gateway_sidecar.supervision.own_thread import OwnThread
from tests.unit.fake_time import in_fake_time
from tests.unit.world import READY, World, Worlds

T = TypeVar("T")


@in_fake_time
async def test_a_replica_whose_notes_are_not_read_is_not_told_of(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine may want a key. Who has no notes is served meanwhile, and it is once the disk is back."""
    async with worlds() as world:
        at_once, hangs = OwnThread.run, [True]

        async def run(self: OwnThread, work: Callable[[], T], *, patience_s: float) -> T:
            if hangs[0]:
                await asyncio.sleep(patience_s)
                raise TimeoutError
            return await at_once(self, work, patience_s=patience_s)

        monkeypatch.setattr(Handles, "open", _open_here)
        monkeypatch.setattr(OwnThread, "run", run)
        (world.directory / "r1.yaml").write_text("named")
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.states().get("r2") is ReplicaState.SERVING)
        await asyncio.sleep(60)
        assert world.states()["r1"] is ReplicaState.SEEN
        assert "does not answer" in str(world.tenure("r1").notes.problem)
        hangs[0] = False
        await world.until(lambda: world.serves("r1", "r2"), within_s=10)
        assert {str(row.model_id) for row in world.router.workers.values()} == {"named", "tiny"}


@in_fake_time
async def test_the_next_daemon_tells_nobody_what_was_noted_before(worlds: Worlds) -> None:
    """A daemon that is killed right after notes came has not written them down: the first look tells of them."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        saved = world.service.saved()
        (world.directory / "r1.yaml").write_text("prefill")
        world.source.hint()
        await world.until(lambda: world.serves("r1") and _types(world) == [WorkerType.PREFILL])
        router, told = world.router, len(world.router.calls)
        world.source.takes_s = 1.0
        await world.restart(saved)
        assert world.router is router
        await world.until(lambda: world.serves("r1"))
        await world.at_rest()
        assert router.calls[told:] == []
        assert _types(world) == [WorkerType.PREFILL]


@in_fake_time
async def test_what_was_noted_counts_where_the_next_daemon_cannot_look(worlds: Worlds) -> None:
    """Unknown is not empty: the replicas of a blind source are served as they were, by a new router, too."""
    async with worlds() as world:
        (world.directory / "r1.yaml").write_text("named")
        world.appear("r1")
        world.appear("r2")
        await world.until(lambda: world.serves("r1", "r2"))
        world.source.trouble = "the directory cannot be read"
        world.process.end()
        await world.restart()
        await world.until(lambda: world.serves("r1", "r2") and _models(world) == {"named", "tiny"})


@in_fake_time
async def test_who_has_no_notes_is_told_of_by_the_next_daemon_though_a_disk_hangs(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs delays only its owner: the first look has shown that there is nothing to read."""
    async with worlds() as world:
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))

        async def hang(_: Handles, paths: Any) -> list[int | OSError]:
            await asyncio.sleep(3600)
            return []

        monkeypatch.setattr(Handles, "open", hang)
        world.process.end()
        await world.restart()
        await world.until(lambda: bool(world.router.ready()), within_s=2)


def _types(world: World) -> list[WorkerType]:
    """Of the router's workers."""
    return [row.worker_type for row in world.router.workers.values()]


def _models(world: World) -> set[str | None]:
    """Of the router's workers."""
    return {row.model_id for row in world.router.workers.values()}


@in_fake_time
async def test_a_socket_that_cannot_be_opened_says_why_and_is_tried_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as world:
        opened = Handles.open

        async def refuse(_: Handles, paths: Any) -> list[int | OSError]:
            return [PermissionError(13, "Permission denied") for _ in paths]

        monkeypatch.setattr(Handles, "open", refuse)
        world.appear("r1")
        await world.until(lambda: world.states() == {"r1": ReplicaState.SEEN})
        await asyncio.sleep(1)
        assert world.tenure("r1").status.reason == f"cannot open {world.directory}/r1.sock: Permission denied"
        monkeypatch.setattr(Handles, "open", opened)
        await world.until(lambda: world.serves("r1"), within_s=10)
        assert world.tenure("r1").notes.handle_problem is None


@in_fake_time
async def test_who_is_replaced_while_it_is_opened_is_looked_at_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is not what was seen: it is closed, and the next look begins a new tenure."""
    async with worlds() as world:
        judged: list[bool] = []
        is_at = notes.is_at

        def once_another(handle: int, sighting: Any) -> bool:
            judged.append(is_at(handle, sighting) and bool(judged))
            return judged[-1]

        monkeypatch.setattr(notes, "is_at", once_another)
        world.appear("r1", READY)
        await world.until(lambda: world.serves("r1"), within_s=2)
        assert judged[:2] == [False, True]


async def _open_here(_: Handles, paths: Any) -> list[int | OSError]:
    return [open_path(path) for path in paths]
