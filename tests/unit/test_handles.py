"""Sockets are opened by a thread that may hang, and no descriptor is lost over it. Here the thread is played."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.control.replicas.notes import Handles, open_path
from gateway_sidecar.supervision.own_thread import OwnThread
from tests.unit.fake_time import in_fake_time


class LateThread:
    """Its work takes longer than anybody waits; the test does it when it pleases."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.work: list[Callable[[], Any]] = []
        patch.setattr(OwnThread, "run", self._run)
        patch.setattr(OwnThread, "hangs", property(lambda _: bool(self.work)))

    async def _run(self, work: Callable[[], Any], *, patience_s: float) -> Any:
        self.work.append(work)
        await asyncio.sleep(patience_s)
        raise TimeoutError


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@in_fake_time
async def test_what_is_there_is_opened_and_what_is_not_is_told(tmp_path: Path) -> None:
    """In the order of the paths; a link itself, not what it leads to."""
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("gone")
    first, gone, link = await Handles("chat").open([tmp_path / name for name in ("there", "gone", "link")])
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(first, int)
    assert isinstance(link, int)
    assert os.fstat(first).st_ino == (tmp_path / "there").stat().st_ino
    assert os.fstat(link).st_ino == (tmp_path / "link").lstat().st_ino
    os.close(first)
    os.close(link)


@in_fake_time
async def test_what_hangs_is_missing_and_closed_when_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").touch()
    thread, before = LateThread(monkeypatch), open_descriptors()
    assert await Handles("chat").open([tmp_path / "there"]) == []
    thread.work[0]()
    assert open_descriptors() == before


@in_fake_time
async def test_while_one_hangs_no_other_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, handles = LateThread(monkeypatch), Handles("chat")
    await handles.open([tmp_path])
    began = asyncio.get_running_loop().time()
    assert await handles.open([tmp_path]) == []
    assert asyncio.get_running_loop().time() == began
    assert len(thread.work) == 1


@in_fake_time
async def test_who_is_cancelled_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what came before nor what comes after."""
    for name in ("one", "other"):
        (tmp_path / name).touch()
    thread, before = LateThread(monkeypatch), open_descriptors()
    opened: list[Path] = []

    def opening(path: Path) -> int:
        opened.append(path)
        if len(opened) == 2:
            task.cancel()
        return open_path(path)

    task = asyncio.create_task(Handles("chat", opened_by=opening).open([tmp_path / "one", tmp_path / "other"]))
    await asyncio.sleep(0)
    thread.work[0]()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(opened) == 2
    assert open_descriptors() == before
