"""Whom a scaling hook tells of what, and when, in fake time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

import pytest

from gateway_sidecar.config import HookSettings
from gateway_sidecar.control.autoscaling import hook
from gateway_sidecar.control.autoscaling.hook import HookFailedError, Notice, ScalingHook
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time


def notice(desired: int, role: str = "regular") -> Notice:
    return Notice("chat", role, desired, 1, "rps", "because")


class Told:
    """What was told, and when; the first calls fail, and each takes a while."""

    def __init__(self, patch: pytest.MonkeyPatch, *, failures: int = 0, takes_s: float = 1.0) -> None:
        self.failures = failures
        self.takes_s = takes_s
        self.calls: list[tuple[float, str, int]] = []
        patch.setattr(hook, "call", self._call)
        self.hook = ScalingHook("chat", Metrics())
        self.hook.reconfigure(cast("HookSettings", cast("Any", object())))

    async def _call(self, _: HookSettings, told: Notice) -> None:
        self.calls.append((awake.monotonic(), told.role, told.desired))
        await asyncio.sleep(self.takes_s)
        if self.failures:
            self.failures -= 1
            raise HookFailedError("it ended with 1")


@in_fake_time
async def test_only_the_newest_of_a_role_is_told() -> None:
    """While one is told others come: what they wanted in between is nobody's wish any more."""
    with pytest.MonkeyPatch.context() as patch:
        told = Told(patch)
        for desired in (2, 3, 4):
            told.hook.tell(notice(desired))
        told.hook.tell(notice(9, "decode"))
        await asyncio.sleep(0.5)
        told.hook.tell(notice(5))
        await asyncio.sleep(10)
        assert [(role, desired) for _, role, desired in told.calls] == [("regular", 4), ("regular", 5), ("decode", 9)]
        assert told.hook.problem is None
        await told.hook.close()


@in_fake_time
async def test_a_hook_that_fails_is_told_again_and_news_does_not_wait_for_that() -> None:
    with pytest.MonkeyPatch.context() as patch:
        told = Told(patch, failures=6, takes_s=0.0)
        told.hook.tell(notice(2))
        await asyncio.sleep(20)
        tries = [at for at, _, _ in told.calls]
        pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert pauses == sorted(pauses)
        assert "the hook did not receive that regular wants 2" in str(told.hook.problem)
        began, before = awake.monotonic(), len(told.calls)
        told.hook.tell(notice(3))
        await asyncio.sleep(0.01)
        at, role, desired = told.calls[before]
        assert (role, desired) == ("regular", 3)
        assert at == pytest.approx(began)
        await asyncio.sleep(600)
        assert told.hook.problem is None
        assert told.calls[-1][2] == 3
        await told.hook.close()


@in_fake_time
async def test_a_hook_that_is_taken_away_is_told_nothing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        told = Told(patch)
        told.hook.reconfigure(None)
        told.hook.tell(notice(2))
        await asyncio.sleep(10)
        assert told.calls == []
        await told.hook.close()
