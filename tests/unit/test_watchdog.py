"""systemd is told that the daemon is well while all of its loops make progress, and the loop that does not is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.control.process.watchdog import Watchdog
from gateway_sidecar.supervision.loops import Tasks, cancelled, heartbeat
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time


class Site:
    """A watchdog that runs, beside a loop that beats as long as it is well."""

    def __init__(self) -> None:
        self.is_well = True
        self.pings = 0
        self.said = ""
        self.log: list[Any] = []
        router = SimpleNamespace(state=SimpleNamespace(value="up"))
        settings = SimpleNamespace(router=SimpleNamespace(api_timeout_s=5.0))
        tenure = SimpleNamespace(status=SimpleNamespace(state=SimpleNamespace(value="serving")))
        service = SimpleNamespace(settings=settings, router=router, tenures={1: tenure, 2: tenure})
        services = SimpleNamespace(by_name=lambda: {"chat": service})
        reload = SimpleNamespace(settings=SimpleNamespace(rescan_interval_s=2.0))
        notifier = SimpleNamespace(watchdog_s=4.0, status=self._say, alive=self._ping)
        self.watchdog = Watchdog(cast("Any", services), cast("Any", reload), cast("Any", notifier), Metrics())

    def _say(self, text: str) -> None:
        self.said = text

    def _ping(self) -> None:
        self.pings += 1

    async def work(self) -> None:
        """A loop of the daemon's."""
        while True:
            if self.is_well:
                heartbeat()
            await asyncio.sleep(1)


@asynccontextmanager
async def running() -> AsyncIterator[Site]:
    site, tasks = Site(), Tasks("chat", Metrics())
    with capture_logs() as site.log:
        loops = [tasks.run_forever(site.work), tasks.run_forever(site.watchdog.run)]
        try:
            yield site
        finally:
            await cancelled(*loops)


@in_fake_time
async def test_a_daemon_whose_loops_move_is_well() -> None:
    async with running() as site:
        await asyncio.sleep(60.5)
        assert site.pings == 60
        assert site.watchdog.behind is None
        assert site.said == "chat: 2 serving; router up"


@in_fake_time
async def test_a_loop_that_stands_still_is_named_and_systemd_hears_nothing() -> None:
    """After ten seconds, a rescan and what a router may take; and all is well again as soon as it moves."""
    async with running() as site:
        await asyncio.sleep(5.5)
        site.is_well = False
        await asyncio.sleep(15)
        assert site.log == [], "it may have waited for a router"
        await asyncio.sleep(20)
        pings = site.pings
        assert {(each["event"], each["loop"]) for each in site.log} == {("daemon.wedged", "chat: Site.work")}
        await asyncio.sleep(10)
        assert site.pings == pings
        site.is_well = True
        await asyncio.sleep(5)
        assert site.pings > pings
