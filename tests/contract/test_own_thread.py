"""What hangs holds up its owner alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.sources.socket_pattern import SocketPattern
from gateway_sidecar.supervision.own_thread import OwnThread


async def test_work_is_done_and_its_errors_are_raised() -> None:
    """One thread for all of it."""
    thread = OwnThread("mine")
    idents = {await thread.run(threading.get_ident, patience_s=60) for _ in range(3)}
    assert len(idents - {threading.get_ident()}) == 1
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0, patience_s=60)


async def test_while_it_hangs_nothing_more_is_begun() -> None:
    """Never more than one thread, never more than one piece of work; when it is over, all goes on."""
    thread, release, begun = OwnThread("mine"), threading.Event(), []

    def hang() -> None:
        begun.append(1)
        release.wait()

    for _ in range(3):
        with pytest.raises(TimeoutError):
            await thread.run(hang, patience_s=0.02)
    while not begun:
        await asyncio.sleep(0.001)
    assert begun == [1]
    release.set()
    assert await thread.run(lambda: "on again", patience_s=60) == "on again"


async def test_a_thread_ends_with_its_owner() -> None:
    """Nobody has to close it."""
    thread = OwnThread("to be gone")
    await thread.run(lambda: None, patience_s=60)
    there = next(t for t in threading.enumerate() if t.name == "to be gone")
    del thread
    gc.collect()
    await asyncio.to_thread(there.join, 60)
    assert not there.is_alive()


def test_a_hung_thread_does_not_keep_the_process() -> None:
    """A daemon on a dead disk can be stopped."""
    program = """if True:
        import asyncio, threading
        from gateway_sidecar.supervision.own_thread import OwnThread
        thread = OwnThread("hung")
        async def main():
            try:
                await thread.run(threading.Event().wait, patience_s=0.1)
            except TimeoutError:
                print("gave up")
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "gave up\n"


class HungPattern(SocketPattern):
    """A pattern on a file system that does not answer until it is released."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern, OwnSockets())
        self.released = threading.Event()
        self.looks = 0

    def look_now(self) -> Listing:
        self.looks += 1
        self.released.wait()
        return super().look_now()


async def test_many_hung_sources_starve_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More hung file systems than the event loop's pool has threads: another source is as quick as ever."""

    def patience(seconds: float) -> None:
        monkeypatch.setattr("gateway_sidecar.sources.socket_pattern.DISK_S", seconds)

    patience(0.5)
    hung = [HungPattern(f"{tmp_path}/{number}/{{replica}}.sock") for number in range(40)]
    looks = [asyncio.create_task(source.look()) for source in hung]
    while sum(source.looks for source in hung) < len(hung):
        await asyncio.sleep(0.001)
    patience(60)
    well = SocketPattern(f"{tmp_path}/{{replica}}.sock", OwnSockets())
    async with asyncio.timeout(60):
        assert (await well.look()).blind is None
        assert await asyncio.to_thread(lambda: "free") == "free"
    listings = await asyncio.gather(*looks)
    assert all(listing.blind is not None and "does not answer" in listing.blind for listing in listings)
    patience(0.5)
    assert [(await source.look()).blind is not None for source in hung[:2]] == [True, True]
    assert [source.looks for source in hung[:2]] == [1, 1], "no second look behind a hung one"
    for source in hung:
        source.released.set()
    patience(60)
    assert all(listing.blind is None for listing in await asyncio.gather(*(source.look() for source in hung)))


async def test_ended_thread_is_gone() -> None:
    """Whoever has no more to ask leaves none behind."""
    thread = OwnThread("to be ended")
    await thread.run(lambda: None, patience_s=60)
    (running,) = [one for one in threading.enumerate() if one.name == "to be ended"]
    thread.end()
    await asyncio.to_thread(running.join, 60)
    assert not running.is_alive()
