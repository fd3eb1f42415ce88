"""Records are written when something changed, in fake time, on a disk that may be full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.state.writer import Record, RecordWriter
from gateway_sidecar.errors import StateError
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem
from tests.unit.fake_time import beside, in_fake_time


class Disk:
    """The directory of one record, and its writer, which runs."""

    def __init__(self, directory: Path) -> None:
        self.content: Mapping[str, object] = {"number": 1}
        self.record = Record("leases", directory / "state" / "leases.json", lambda: self.content)
        self.problem = Problem()
        self.metrics = Metrics()
        self.writer = RecordWriter(self.record, self.problem, self.metrics)
        self.log: list[Any] = []

    def fill(self) -> None:
        """From now on nothing can be written: a file is where the directory has to be."""
        self.record.path.unlink(missing_ok=True)
        if self.record.path.parent.is_dir():
            self.record.path.parent.rmdir()
        self.record.path.parent.touch()

    def clear(self) -> None:
        self.record.path.parent.unlink()

    def write(self, number: int) -> None:
        self.content = {"number": number}
        self.writer.touch()

    async def number(self) -> object:
        return (await self.record.read()).get("number")

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.log]

    def is_up(self) -> bool:
        return bool(self.metrics.record_up.labels("leases")._value.get())


@asynccontextmanager
async def disk(directory: Path) -> AsyncIterator[Disk]:
    with capture_logs() as log:
        made = Disk(directory)
        made.log = log
        async with beside(made.writer.run()):
            yield made


@in_fake_time
async def test_a_change_is_on_disk_a_moment_later(tmp_path: Path) -> None:
    async with disk(tmp_path) as it:
        it.write(2)
        await asyncio.sleep(0.01)
        assert await it.number() == 2
        it.write(3)
        it.write(4)
        await asyncio.sleep(0.3)
        assert await it.number() == 4
        assert it.is_up()


@in_fake_time
async def test_one_write_serves_all_who_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds when one asks is on disk when he is answered, though a write was under way that began before."""
    written: list[object] = []

    async def write(record: Record, content: Mapping[str, object] | None = None) -> None:
        content = record.content()
        await asyncio.sleep(1)
        written.append(content["number"])

    monkeypatch.setattr(Record, "write", write)
    it = Disk(tmp_path)

    async def change(number: int) -> bool:
        it.content = {"number": number}
        await it.writer.flush()
        return number <= max(int(str(it)) for it in written)

    assert await asyncio.gather(*(change(number) for number in range(50))) == [True] * 50
    assert len(written) == 2


@in_fake_time
async def test_a_record_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    async with disk(tmp_path) as it:
        it.write(2)
        await asyncio.sleep(1)
        it.record.path.unlink()
        await asyncio.sleep(7)
        assert await it.number() == 2


@in_fake_time
async def test_what_cannot_be_written_is_told_once_and_again_when_it_could_be(tmp_path: Path) -> None:
    async with disk(tmp_path) as it:
        it.write(1)
        await asyncio.sleep(1)
        assert it.is_up()
        it.fill()
        it.write(2)
        await asyncio.sleep(60)
        assert it.events == ["state.not_written"]
        assert "cannot write" in it.problem.text
        assert not it.is_up()
        it.clear()
        await asyncio.sleep(2)
        assert await it.number() == 2
        assert it.events == ["state.not_written", "state.written_again"]
        assert it.problem.text == ""
        assert it.is_up()


@in_fake_time
async def test_a_disk_that_becomes_full_is_told_of_before_it_matters(tmp_path: Path) -> None:
    """Nothing changes, and it is written anew each minute all the same."""
    async with disk(tmp_path) as it:
        it.write(2)
        await asyncio.sleep(1)
        is_there = it.record.is_there

        async def hidden() -> bool:
            return True

        it.record.is_there = hidden  # type: ignore[method-assign]
        it.fill()
        await asyncio.sleep(50)
        assert it.events == []
        await asyncio.sleep(20)
        assert it.events == ["state.not_written"]
        it.record.is_there = is_there  # type: ignore[method-assign]


@in_fake_time
async def test_a_disk_that_hangs_is_an_error_and_nothing_is_taken_for_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record("leases", tmp_path / "leases.json", dict)

    async def hang(*_: object, patience_s: float) -> None:
        await asyncio.sleep(patience_s)
        raise TimeoutError

    monkeypatch.setattr(OwnThread, "run", hang)
    with pytest.raises(StateError, match=r"cannot read .*: the file system does not answer"):
        await record.read()
    with pytest.raises(StateError, match=r"cannot write .*: the file system does not answer"):
        await record.write()
    assert await record.is_there()


@in_fake_time
async def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert await Record("leases", tmp_path / "leases.json", dict).read() == {}
