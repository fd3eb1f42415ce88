"""Routers that no service has any more, in fake time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import Identity, Process
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time


class Stubborn:
    """A process that ends only when it is made to; the first time it is asked there is a fault of ours."""

    def __init__(self, faults: int = 0) -> None:
        self.pid, self.identity = 7, Identity(7, 1, "boot")
        self.running = True
        self.is_let_go = False
        self.faults = faults

    async def stop(self, *, grace_s: float) -> None:
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a fault of ours")
        await asyncio.sleep(grace_s)
        self.running = False

    def detach(self) -> None:
        self.is_let_go = True


def as_process(stubborn: Stubborn) -> Process:
    return cast("Process", cast("Any", stubborn))


@in_fake_time
async def test_one_that_ends_is_written_down_until_it_is_gone() -> None:
    changes: list[int] = []
    retired = RetiredRouters(Tasks("-", Metrics()), lambda: changes.append(len(retired.identities)))
    router = Stubborn()
    with capture_logs():
        retired.end("chat", as_process(router))
        assert retired.identities == [("chat", router.identity)]
        await asyncio.sleep(11)
    assert retired.identities == []
    assert changes == [1, 0]
    assert not router.running


@in_fake_time
async def test_fault_while_one_is_ended_does_not_keep_it() -> None:
    metrics = Metrics()
    retired = RetiredRouters(Tasks("-", metrics), lambda: None)
    router = Stubborn(faults=1)
    with capture_logs():
        retired.end("chat", as_process(router))
        await asyncio.sleep(12)
    assert not router.running
    assert metrics.loop_failures.labels("-")._value.get() == 1


@in_fake_time
async def test_at_the_end_they_are_ended_at_once_or_left_to_the_next_daemon() -> None:
    retired = RetiredRouters(Tasks("-", Metrics()), lambda: None)
    first, second = Stubborn(), Stubborn()
    with capture_logs():
        retired.end("chat", as_process(first))
        await retired.close()
        assert not first.running
        again = RetiredRouters(Tasks("-", Metrics()), lambda: None)
        again.end("chat", as_process(second))
        await again.detach()
    assert second.running
    assert second.is_let_go
