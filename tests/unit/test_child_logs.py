"""What nginx and the routers write is passed on once a second, in fake time; their logs are files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.process import child_logs
from gateway_sidecar.control.process.child_logs import ChildLogs
from gateway_sidecar.routers.base import LogLine
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.unit.fake_time import in_fake_time


class Site:
    """nginx, the nginx of peers and one router, each with a log that the test writes."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(child_logs, "rss_bytes", lambda _: 4096)
        self.nginx, self.peers, self.chat = (ChildLog(directory / name) for name in ("nginx", "peers", "chat"))
        self.repaired = self.looks = 0
        self.memory: list[int] = []
        self.problems = Problems()
        self.problems.of("disk").set("of another part")
        self.metrics = Metrics()
        self.log: list[Any] = []
        self.router = SimpleNamespace(
            service="chat", slot="chat", pid=7, log=self.chat, setup=SimpleNamespace(read_log_line=self._read)
        )
        service = SimpleNamespace(
            routers=[self.router], router=self.router, slots=SimpleNamespace(note_memory=self.memory.append)
        )
        nginx = SimpleNamespace(log=self.nginx, keep_up_temp=self._repair, access_log=self)
        self.logs = ChildLogs(
            lambda: cast("Any", {"chat": service}), cast("Any", nginx), self.peers, self.problems, self.metrics
        )

    @property
    def said(self) -> list[tuple[str, str, str]]:
        return [(each["event"], each["log_level"], each.get("text", "")) for each in self.log]

    trouble = ""
    """Of the access log, which this is, too."""

    async def look(self) -> None:
        self.looks += 1

    async def _repair(self) -> None:
        self.repaired += 1

    def _read(self, line: str) -> LogLine | None:
        return LogLine("warning", line.removeprefix("W ")) if line.startswith("W ") else None


@asynccontextmanager
async def site(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    with capture_logs() as log:
        made = Site(directory, patch)
        made.log = log
        task = asyncio.create_task(made.logs.run())
        await asyncio.sleep(0.5)
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def write(log: ChildLog, *lines: str) -> None:
    with log.path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


@in_fake_time
async def test_a_line_is_passed_on_once_with_its_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is of no interest is not: it is in the log."""
    async with site(tmp_path, monkeypatch) as it:
        write(it.chat, "W a worker is unhealthy", "a request came")
        write(it.nginx, "1#1: reconfiguring", "[alert] 1#1: worker exited on signal 9")
        write(it.peers, "[emerg] 2#2: no such file")
        await asyncio.sleep(60)
        assert sorted(it.said) == [
            ("nginx.said", "error", "[alert] 1#1: worker exited on signal 9"),
            ("nginx.said", "error", "[emerg] 2#2: no such file"),
            ("nginx.said", "info", "1#1: reconfiguring"),
            ("router.said", "warning", "a worker is unhealthy"),
        ]


@in_fake_time
async def test_a_router_that_has_much_to_say_is_passed_on_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path, monkeypatch) as it:
        write(it.chat, *["W again"] * 1500)
        await asyncio.sleep(2)
        assert len(it.said) == 1001
        assert it.log[-1]["lines"] == 500


@in_fake_time
async def test_a_log_that_cannot_be_had_is_a_problem_until_its_child_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And other parts' problems are not touched."""
    async with site(tmp_path, monkeypatch) as it:
        it.nginx.trouble = it.chat.trouble = "no space left"
        await asyncio.sleep(2)
        assert it.problems.told() == {
            "disk": "of another part",
            "log of nginx": "no space left",
            "log of router chat": "no space left",
        }
        it.nginx.trouble = ""
        await asyncio.sleep(2)
        assert it.problems.told().keys() == {"disk", "log of router chat"}


@in_fake_time
async def test_the_routers_memory_is_looked_at_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as it:
        await asyncio.sleep(10)
        assert set(it.memory) == {4096}
        assert it.metrics.router_rss.labels("chat")._value.get() == 4096
        it.router.pid = None
        it.memory.clear()
        await asyncio.sleep(10)
        assert it.memory == []


@in_fake_time
async def test_directories_of_nginx_are_put_back_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as it:
        await asyncio.sleep(60)
        assert 28 <= it.repaired <= 31
        assert 28 <= it.looks <= 31
