"""The points of the plots, taken in fake time from what was measured."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway_sidecar.control.autoscaling.last_hour import LastHour
from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals
from gateway_sidecar.domain.history import POINTS
from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import beside, in_fake_time


def signals_of(name: str) -> ServiceSignals:
    stub = SimpleNamespace(name=name, tenures={}, hold=SimpleNamespace(waiting=3))
    signals = ServiceSignals(cast("Any", stub), Metrics())
    signals.watch(awake.monotonic(), is_told=True)
    return signals


@in_fake_time
async def test_each_point_has_what_ended_since_the_last_one() -> None:
    """No request is lost between two of them, and none is counted twice."""
    chat = signals_of("chat")
    last_hour = LastHour({"chat": chat})
    async with beside(last_hour.run()):
        await asyncio.sleep(0.1)
        for number in range(600):
            status = 500 if number % 10 == 0 else 200
            chat.record(awake.monotonic(), RequestEnd("chat", status, 0.5, first_s=0.1))
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
    columns = last_hour.history.columns()["chat"]
    assert len(columns["requests"]) == 6
    assert all(9.5 < (value or 0) < 10.5 for value in columns["requests"])
    assert all(0.9 < (value or 0) < 1.1 for value in columns["errors"])
    assert columns["waiting"] == [3.0] * 6
    assert columns["in_flight"] == [None] * 6, "no router was read"
    assert all(0.09 < (value or 0) < 0.11 for value in columns["ttft_p99"])
    assert all(0.45 < (value or 0) < 0.55 for value in columns["took_p50"])
    assert [round(at) for at in last_hour.history.times] == [10, 20, 30, 40, 50, 60]


@in_fake_time
async def test_an_hour_is_kept_and_a_service_that_goes_is_forgotten() -> None:
    """Whatever comes and goes meanwhile."""
    there = {"chat": signals_of("chat"), "code": signals_of("code")}
    last_hour = LastHour(there)
    async with beside(last_hour.run()):
        await asyncio.sleep(5000)
        assert len(last_hour.history.columns()["chat"]["waiting"]) == POINTS
        del there["code"]
        await asyncio.sleep(10)
    assert set(last_hour.history.columns()) == {"chat"}


@in_fake_time
async def test_what_nginx_does_not_tell_is_not_known() -> None:
    """It is no zero."""
    chat = signals_of("chat")
    chat.watch(0.0, is_told=False)
    point = chat.point(100.0)
    assert (point.requests, point.errors, point.took_p50) == (None, None, None)
    assert point.waiting == 3.0
