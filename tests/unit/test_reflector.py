"""Follows a source, however slow it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.workqueue import Key, Part, WorkQueue
from gateway_sidecar.domain.model import ReplicaId, SocketIdentity
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import HEARTBEATS, run_forever
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time

_PATH = Path("/run/replicas/chat/r1.sock")


class PlayedSource:
    """Each look takes `took_s`. Hints come when `news` is set; without inotify there is an error in their place."""

    def __init__(self, took_s: float = 0.0) -> None:
        self.took_s = took_s
        self.began: list[float] = []
        self.listing = Listing()
        self.news = asyncio.Event()
        self.hints_fail = False

    async def look(self) -> Listing:
        self.began.append(awake.monotonic())
        await asyncio.sleep(self.took_s)
        return self.listing

    async def hints(self) -> AsyncIterator[None]:
        if self.hints_fail:
            raise OSError(24, "no inotify left")
        while True:
            await self.news.wait()
            self.news.clear()
            yield


class Reflecting:
    """A reflector of the source that runs, and the listings that it enqueued a key for."""

    def __init__(self, source: PlayedSource, rescan_interval_s: float = 60.0) -> None:
        self.taken: list[Listing] = []
        self.reflector = Reflector(
            "chat", source, Metrics(), cast("WorkQueue[Key]", cast("Any", self)), rescan_interval_s=rescan_interval_s
        )
        self.look_during = 0

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """As a queue has it."""
        assert (key, urgent) == (Part.LISTING, True)
        assert self.reflector.listing is not None
        self.taken.append(self.reflector.listing)
        if self.look_during > 0:
            self.look_during -= 1
            self.reflector.look_soon()  # Seen while it was taken in: to be looked at after the rest.

    async def __aenter__(self) -> Reflecting:
        self._tasks = [
            asyncio.create_task(run_forever("chat", self.reflector.look, Metrics())),
            asyncio.create_task(self.reflector.follow_hints()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@in_fake_time
async def test_after_a_slow_look_a_hint_is_heeded_at_once() -> None:
    """The rest after a look is bounded, however long the look took; then a hint ends it, and the loop has beaten."""
    source = PlayedSource(took_s=25.0)
    reflecting = Reflecting(source)
    reflecting.look_during = 4
    async with reflecting:
        await asyncio.sleep(4 * 25.2 + 1)
        assert source.began == [pytest.approx(25.2 * number) for number in range(5)]
        stalest = HEARTBEATS.stalest()
        assert stalest is not None
        assert awake.now() - stalest.at < 2


@in_fake_time
async def test_a_crowd_of_hints_does_not_keep_it_looking_all_the_time() -> None:
    """A look of 50 ms is rested from for twice as long: a third of the time at the most is spent looking."""
    source = PlayedSource(took_s=0.05)
    async with Reflecting(source):
        for _ in range(1000):
            source.news.set()
            await asyncio.sleep(0.01)
        assert 50 <= len(source.began) <= 10 / 0.15 + 1


@in_fake_time
async def test_without_hints_it_looks_every_so_often() -> None:
    """The rescan is the truth; hints only hurry it."""
    source = PlayedSource()
    source.hints_fail = True
    async with Reflecting(source, rescan_interval_s=5.0):
        await asyncio.sleep(61)
        assert 12 <= len(source.began) <= 13


@in_fake_time
async def test_a_blind_look_changes_nothing_and_says_why() -> None:
    source = PlayedSource()
    there = Listing({ReplicaId("r1"): Sighting(ReplicaId("r1"), _PATH, SocketIdentity(1, 2, 3), "sockets")})
    source.listing = there
    async with Reflecting(source) as reflecting:
        await asyncio.sleep(1)
        source.listing = Listing(blind="it cannot be read")
        source.news.set()
        await asyncio.sleep(1)
        assert reflecting.reflector.listing is not None
        assert reflecting.reflector.listing.present == there.present
        assert reflecting.reflector.listing.blind == "it cannot be read"


@in_fake_time
async def test_another_source_is_followed_at_once() -> None:
    first, second = PlayedSource(), PlayedSource()
    async with Reflecting(first) as reflecting:
        await asyncio.sleep(1)
        reflecting.reflector.use(second)
        await asyncio.sleep(1)
        looks = len(first.began)
        assert len(second.began) == 1
        second.news.set()
        await asyncio.sleep(1)
        assert (len(first.began), len(second.began)) == (looks, 2)
