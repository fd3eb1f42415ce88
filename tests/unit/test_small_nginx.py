"""A small nginx that is watched: what is said of its end, and what a fault then costs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.nginx.small import SmallNginx, SmallPlaces
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.processes import PlayedProcess


class Watched:
    """One that runs, and how often its end was told; the first `faults` times that fails."""

    def __init__(self, faults: int = 0) -> None:
        self.metrics = Metrics()
        self.told = 0
        self.faults = faults
        places = SmallPlaces(Path("/run"), Path("/run"), cast("Any", None), cast("Any", None), Tasks("-", self.metrics))
        self.nginx = SmallNginx(places, Path("/run/one"), "one")
        self.process = PlayedProcess(7)
        self.nginx.process = cast("Any", self.process)
        self.nginx.on_exit(self._tell)

    def _tell(self) -> None:
        self.told += 1
        if self.told <= self.faults:
            raise ZeroDivisionError("a fault of ours")


@in_fake_time
async def test_its_end_is_told_once() -> None:
    watched = Watched()
    await asyncio.sleep(60)
    assert watched.told == 0
    watched.process.end()
    await asyncio.sleep(60)
    assert watched.told == 1


@in_fake_time
async def test_a_fault_while_its_end_is_told_is_logged_and_it_is_told_again() -> None:
    """Law 15."""
    watched = Watched(faults=1)
    with capture_logs() as logs:
        watched.process.end()
        await asyncio.sleep(60)
    assert watched.told == 2
    assert [row["event"] for row in logs] == ["loop.failed"]
    assert watched.metrics.loop_failures.labels("-")._value.get() == 1


@in_fake_time
async def test_the_end_of_one_that_is_left_to_the_next_daemon_is_not_told() -> None:
    watched = Watched()
    await asyncio.sleep(1)
    watched.nginx.detach()
    watched.process.end()
    await asyncio.sleep(60)
    assert watched.told == 0
