"""systemd is told that the daemon is well while all of its loops make progress, in fake time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.control.process.watchdog import Watchdog
from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.supervision.loops import Tasks, heartbeat
from tests.unit.fake_time import in_fake_time, stall
from tests.unit.services import CHAT, CODE, Fleet


class PlayedSystemd:
    """Counts the signs of life."""

    def __init__(self, watchdog_s: float | None) -> None:
        self.watchdog_s = watchdog_s
        self.signs = 0
        self.line = ""

    def alive(self) -> None:
        self.signs += 1

    def status(self, line: str) -> None:
        self.line = line


class Loop:
    """A loop of the daemon's that may get stuck."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()

    async def run(self) -> None:
        while True:
            heartbeat()
            await asyncio.sleep(0.5)
            await self.free.wait()


class Site:
    def __init__(self, watchdog_s: float | None) -> None:
        self.fleet = Fleet(CHAT, CODE)
        self.systemd = PlayedSystemd(watchdog_s)
        self.loop = Loop()
        reload = SimpleNamespace(settings=self.fleet.settings)
        self.watchdog = Watchdog(
            self.fleet.services, cast("Any", reload), cast("Any", self.systemd), self.fleet.metrics
        )
        self.log: list[Any] = []

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.log]


@asynccontextmanager
async def site(watchdog_s: float | None = 20.0) -> AsyncIterator[Site]:
    with capture_logs() as log:
        made = Site(watchdog_s)
        made.log = log
        tasks = Tasks("-", made.fleet.metrics)
        tasks.run_forever(made.loop.run)
        tasks.run_forever(made.watchdog.run)
        try:
            yield made
        finally:
            await tasks.close()


@in_fake_time
async def test_while_all_loops_come_round_systemd_hears_of_it() -> None:
    async with site() as it:
        await asyncio.sleep(100)
        assert it.systemd.signs >= 99
        assert it.watchdog.behind is None
        assert it.events == []


@in_fake_time
async def test_a_short_watchdog_is_petted_twice_in_its_time() -> None:
    async with site(watchdog_s=0.5) as it:
        await asyncio.sleep(10)
        assert it.systemd.signs >= 39


@in_fake_time
async def test_a_loop_that_is_stuck_is_named_and_systemd_hears_no_more() -> None:
    """It is started again then; and a router that is waited for is no fault of ours."""
    async with site() as it:
        await asyncio.sleep(1)
        it.loop.free.clear()
        router_s = max(s.router.api_timeout_s for s in it.fleet.settings.services)
        await asyncio.sleep(9 + router_s)
        assert it.watchdog.behind is None
        await asyncio.sleep(30)
        signs = it.systemd.signs
        assert it.watchdog.behind is not None
        await asyncio.sleep(30)
        assert it.systemd.signs == signs
        assert set(it.events) == {"daemon.wedged"}
        assert "Loop.run" in it.log[0]["loop"]
        it.loop.free.set()
        await asyncio.sleep(3)
        assert it.watchdog.behind is None
        assert it.systemd.signs > signs


@in_fake_time
async def test_a_daemon_that_was_stopped_says_for_how_long() -> None:
    async with site() as it:
        await asyncio.sleep(10.5)
        stall(30.0)
        await asyncio.sleep(5)
        (entry,) = [each for each in it.log if each["event"] == "daemon.stalled"]
        assert 29 <= entry["for_s"] <= 31


@in_fake_time
async def test_one_line_says_what_runs() -> None:
    async with site() as it:
        it.fleet.of("chat").has(ReplicaState.SERVING)
        it.fleet.of("chat").has(ReplicaState.SERVING)
        it.fleet.of("chat").has(ReplicaState.LOADING)
        await asyncio.sleep(2)
        assert it.systemd.line == "chat: 1 loading, 2 serving; router up | code: no replicas; router up"
