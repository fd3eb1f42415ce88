"""The journal over restarts, in fake time, on a disk that may be full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.state import event_file
from gateway_sidecar.control.state.event_file import EventFile
from gateway_sidecar.telemetry.journal import Journal
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem
from tests.unit.fake_time import beside, in_fake_time
from tests.unit.test_journal import Noted


class Kept(Noted):
    """A journal with its file."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "state" / "events.jsonl"
        self.problem = Problem()
        self.file = EventFile(self.path.parent, self.journal, self.problem, Metrics())

    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines()


@asynccontextmanager
async def kept(directory: Path) -> AsyncIterator[Kept]:
    """One whose file is being written."""
    with capture_logs():
        made = Kept(directory)
        await made.file.load()
        async with beside(made.file.run()):
            yield made


async def names_after_a_restart(directory: Path) -> list[str]:
    with capture_logs():
        later = Kept(directory)
        await later.file.load()
    return later.names()


@in_fake_time
async def test_events_outlive_the_daemon(tmp_path: Path) -> None:
    """A moment after they were logged, without anything that the daemon does at its end: it may be killed."""
    async with kept(tmp_path) as it:
        it.note("replica.seen", service="chat", replica="r1")
        await asyncio.sleep(1)
        it.note("replica.serving", service="chat", replica="r1")
        await asyncio.sleep(1)
        assert len(it.lines()) == 2
        assert it.path.stat().st_mode & 0o777 == 0o600
    assert await names_after_a_restart(tmp_path) == ["replica.seen", "replica.serving"]


@in_fake_time
async def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    """The machine lost its power in the middle of a line."""
    async with kept(tmp_path) as it:
        it.note("replica.seen", service="chat", replica="r1")
        it.note("replica.serving", service="chat", replica="r1")
        await asyncio.sleep(1)
        it.path.write_bytes(it.path.read_bytes()[:-7])
    async with kept(tmp_path) as later:
        later.note("replica.gone", service="chat", replica="r1")
        await asyncio.sleep(1)
        assert len(later.lines()) == 2
    assert await names_after_a_restart(tmp_path) == ["replica.seen", "replica.gone"]


@in_fake_time
async def test_the_file_is_replaced_once_it_has_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the journal still has: however much is logged, it stays small."""
    monkeypatch.setattr(event_file, "_LEAST_BYTES", 4096)
    async with kept(tmp_path) as it:
        it.note("replica.seen", service="chat", replica="quiet")
        sizes = set()
        for number in range(300):
            for _ in range(10):
                it.note("replica.names", service="chat", replica="r1", number=number)
            await asyncio.sleep(0.5)
            sizes.add(it.path.stat().st_size)
        assert max(sizes) < 3 * 4096
    assert (await names_after_a_restart(tmp_path))[0] == "replica.seen"


@in_fake_time
async def test_a_full_disk_is_told_once_and_nothing_is_lost_after_it(tmp_path: Path) -> None:
    """The journal has it meanwhile."""
    (tmp_path / "state").touch()
    async with kept(tmp_path) as it:
        it.note("replica.seen", service="chat", replica="r1")
        await asyncio.sleep(3)
        assert "cannot write" in it.problem.text
        (tmp_path / "state").unlink()
        await asyncio.sleep(3)
        assert it.problem.text == ""
    assert await names_after_a_restart(tmp_path) == ["replica.seen"]


@in_fake_time
async def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Whoever planted it has neither his file read nor written."""
    (tmp_path / "state").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "state" / "events.jsonl").symlink_to(tmp_path / "theirs")
    async with kept(tmp_path) as it:
        it.note("replica.seen", service="chat", replica="r1")
        await asyncio.sleep(1)
        assert not it.path.is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_journal_without_a_file_is_empty() -> None:
    """As on a new machine."""
    assert Journal().entries() == []
