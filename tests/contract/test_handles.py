"""Sockets are opened by a thread that may hang, and no descriptor is lost over it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from gateway_sidecar.control.replicas.notes import Handles, open_path
from gateway_sidecar.supervision import awake


class HangingFileSystem:
    """Opens a path whose name says so only when it may."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.may_go_on = threading.Event()
        self.came_late: list[int] = []

    def open(self, path: Path) -> int:
        if path.name == "hung":
            self.is_asked.set()
            assert self.may_go_on.wait(60)
            self.came_late.append(open_path(path))
            return self.came_late[-1]
        return open_path(path)


async def until_closed(descriptor: int) -> None:
    async with asyncio.timeout(60):
        while Path(f"/proc/self/fd/{descriptor}").exists():
            await asyncio.sleep(0.01)


async def test_what_is_there_is_opened_and_what_is_not_is_told(tmp_path: Path) -> None:
    """In the order of the paths, the same one twice for two."""
    (tmp_path / "there").touch()
    first, gone, second = await Handles("chat").open([tmp_path / "there", tmp_path / "gone", tmp_path / "there"])
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(first, int)
    assert isinstance(second, int)
    assert first != second
    assert os.fstat(first).st_ino == (tmp_path / "there").stat().st_ino
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_hangs_is_not_waited_for_and_closed_when_it_comes(tmp_path: Path, *, cancelled: bool) -> None:
    """The event loop goes on, and what was opened before is had."""
    for name in ("there", "hung"):
        (tmp_path / name).touch()
    disk = HangingFileSystem()
    handles = Handles("chat", opened_by=disk.open, patience_s=0.2)
    clock = awake.Clock(lambda: 0.0 if cancelled else 1.0 * disk.is_asked.is_set())  # Nothing else takes time.
    with awake.using(clock):
        opening = asyncio.create_task(handles.open([tmp_path / "there", tmp_path / "hung"]))
        if cancelled:
            while not disk.is_asked.is_set():
                await asyncio.sleep(0.01)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        else:
            (there,) = await opening
            assert isinstance(there, int)
            os.close(there)
    disk.may_go_on.set()
    async with asyncio.timeout(60):
        while not disk.came_late:
            await asyncio.sleep(0.01)
    await until_closed(disk.came_late[0])
