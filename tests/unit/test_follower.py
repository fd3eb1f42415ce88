"""Follows a source, however slow it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from gateway_sidecar.control import follower
from gateway_sidecar.control.follower import SourceFollower
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.telemetry.metrics import Metrics


class SlowSource:
    """Each look takes 25 s by the clock that it is given, or the machine stood still for as long."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.looks = 0

    async def look(self) -> Listing:
        self.looks += 1
        self.now += 25.0
        return Listing()

    async def hints(self) -> AsyncIterator[None]:
        yield


async def test_after_a_slow_look_a_hint_is_heeded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest after a look is bounded, however long the look took; then a hint ends it, and the loop has beaten."""
    source, rests = SlowSource(), list[float]()
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    async def take_in(_listing: Listing) -> None:
        if source.looks < 5:
            following.look_soon()  # Seen while it was taken in: to be looked at after the rest.

    monkeypatch.setattr(follower, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": note}))
    monkeypatch.setattr(follower, "time", SimpleNamespace(monotonic=lambda: source.now))
    following = SourceFollower("chat", source, Metrics(), rescan_interval_s=60, take_in=take_in)
    looking = asyncio.create_task(following.look())
    async with asyncio.timeout(10):
        while source.looks < 5:
            await sleep(0)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert rests == [pytest.approx(0.2)] * len(rests)
