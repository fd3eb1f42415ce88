"""What the live page is told, in fake time: once for all viewers, only while there are any, and in bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway_sidecar.api.page_feed import MOST_BEHIND, MOST_EVENTS, MOST_VIEWERS, Feed, TooManyViewers, Viewer
from gateway_sidecar.domain.history import History, Point
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.test_journal import Noted

POINT = Point(1.0, 0.0, 2.0, 0.0, 0.2, 0.3, None, None)


class Site(Noted):
    """A state that changes when the test says so, and how often it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {"services": {"chat": {"serving": 1, "age_s": 0.0}}}
        self.looks = 0
        self.history = History()
        self.fault: Exception | None = None
        self.feed = Feed(self._look, self.history, self.journal, Tasks("-", Metrics()))

    def _look(self) -> dict[str, Any]:
        self.looks += 1
        if self.fault is not None:
            raise self.fault
        return self.state

    def serve(self, number: int) -> None:
        self.state = {"services": {"chat": {"serving": number, "age_s": 0.0}}}

    def open(self, after: int | None = None) -> tuple[Viewer, dict[str, Any]]:
        viewer, first = self.feed.begin(after, lambda: False)
        return viewer, read(first)


def read(text: bytes) -> dict[str, Any]:
    """Event -> its data, of frames in which each comes once; `id` is the last event's number."""
    found: dict[str, Any] = {}
    for message in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines() if not line.startswith(":"))
        if "event" in fields:
            assert fields["event"] not in found
            found[fields["event"]] = json.loads(fields["data"])
        found |= {"id": int(fields["id"])} if "id" in fields else {}
    return found


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site()
    try:
        yield made
    finally:
        await made.feed.close()


async def news(viewer: Viewer) -> dict[str, Any]:
    told = await viewer.news()
    assert told is not None
    return read(told)


@in_fake_time
async def test_the_state_is_told_once_and_then_what_changes() -> None:
    """An age alone is no news."""
    async with site() as it:
        it.history.take(0.0, {"chat": POINT})
        viewer, first = it.open()
        assert first["state"] == it.state
        assert first["history"]["services"]["chat"]["requests"] == [1.0]
        it.serve(2)
        assert await news(viewer) == {"patch": {"services": {"chat": {"serving": 2, "age_s": 0.0}}}}
        it.state = {"services": {"chat": {"serving": 2, "age_s": 9.0}}}
        assert await news(viewer) == {}, "nothing new, and the page hears that the daemon is there"
        it.state = {"services": {}}
        assert await news(viewer) == {"patch": {"services": {"chat": None}}}


@in_fake_time
async def test_the_state_is_looked_at_once_a_second_for_all_and_only_while_somebody_looks() -> None:
    """So a viewer more costs next to nothing, and none costs nothing."""
    async with site() as it:
        await asyncio.sleep(100)
        assert it.looks == 0
        viewers = [it.open()[0] for _ in range(MOST_VIEWERS)]
        await asyncio.sleep(10)
        assert 9 <= it.looks <= 12
        for viewer in viewers:
            await it.feed.end(viewer)
        before = it.looks
        await asyncio.sleep(100)
        assert it.looks == before


@in_fake_time
async def test_viewers_are_bounded_and_one_that_has_left_makes_room() -> None:
    """Whoever loads the page again and again does not fill it."""
    async with site() as it:
        gone = False
        for number in range(MOST_VIEWERS):
            it.feed.begin(None, (lambda: gone) if number == 3 else (lambda: False))
        with pytest.raises(TooManyViewers):
            it.open()
        gone = True
        it.open()
        with pytest.raises(TooManyViewers):
            it.open()


@in_fake_time
async def test_events_come_four_times_a_second_together() -> None:
    """Fifty a second cost four frames."""
    async with site() as it:
        viewer, _ = it.open()
        frames = 0
        numbers: list[int] = []
        for number in range(200):
            it.note("replica.seen", service="chat", replica=f"r{number}")
            await asyncio.sleep(0.02)
            if it.feed.at > frames:
                frames += 1
                numbers += [event["seq"] for event in (await news(viewer))["events"]["events"]]
        assert 14 <= frames <= 17
        assert numbers == sorted(set(numbers))
        assert len(numbers) > 180


@in_fake_time
async def test_a_flood_of_events_is_cut_and_said_to_be() -> None:
    """A frame has so many at the most, the last ones, and lines of routers' logs are none of them."""
    async with site() as it:
        viewer, _ = it.open()
        for number in range(3 * MOST_EVENTS):
            it.note("replica.seen", service="chat", replica=f"r{number}")
            it.note("router.said", service="chat", text="GET /?key=secret")
        told = await news(viewer)
        assert len(told["events"]["events"]) == MOST_EVENTS
        assert told["events"]["events"][-1]["replica"] == f"r{3 * MOST_EVENTS - 1}"
        assert told["events"]["skipped"] == 2 * MOST_EVENTS
        assert "secret" not in str(told)


@in_fake_time
async def test_who_comes_again_gets_the_events_that_it_has_not_had() -> None:
    """It says the last one, as browsers do."""
    async with site() as it:
        it.note("replica.seen", service="chat", replica="r1")
        viewer, first = it.open()
        assert [event["replica"] for event in first["events"]["events"]] == ["r1"]
        await it.feed.end(viewer)
        it.note("replica.seen", service="chat", replica="r2")
        viewer, again = it.open(first["id"])
        assert [event["replica"] for event in again["events"]["events"]] == ["r2"]
        assert again["events"]["skipped"] == 0
        await it.feed.end(viewer)
        assert "events" not in it.open(again["id"])[1]


@in_fake_time
async def test_a_viewer_that_takes_nothing_is_let_go_and_the_others_lose_nothing() -> None:
    """What is kept for it is bounded."""
    async with site() as it:
        slow, _ = it.open()
        quick, _ = it.open()
        seen = []
        for number in range(MOST_BEHIND + 2):
            it.serve(number + 10)
            seen.append((await news(quick))["patch"]["services"]["chat"]["serving"])
        assert seen == [number + 10 for number in range(MOST_BEHIND + 2)]
        assert await slow.news() is None
        assert len(it.feed._frames) == MOST_BEHIND


@in_fake_time
async def test_a_point_of_the_plots_follows_when_it_is_taken() -> None:
    """Each once."""
    async with site() as it:
        viewer, first = it.open()
        assert first["history"] == {"ages": [], "services": {}}
        it.history.take(10.0, {"chat": POINT})
        told = await news(viewer)
        assert told["point"]["services"]["chat"] == [1.0, 0.0, 2.0, 0.0, 0.2, 0.3, None, None]
        assert await news(viewer) == {}


@in_fake_time
async def test_all_end_when_the_listener_closes() -> None:
    """And the daemon's end waits for no viewer."""
    async with site() as it:
        viewer, _ = it.open()
        waiting = asyncio.create_task(viewer.news())
        await asyncio.sleep(0)
        await it.feed.close()
        assert await waiting is None


@in_fake_time
async def test_a_fault_of_ours_is_survived(capfd: pytest.CaptureFixture[str]) -> None:
    """It is logged, and the page goes on a second later."""
    async with site() as it:
        viewer, _ = it.open()
        it.fault = KeyError("of a test")
        await asyncio.sleep(3)
        it.fault = None
        it.serve(7)
        while True:
            told = await news(viewer)
            if "patch" in told:
                break
        assert told["patch"]["services"]["chat"]["serving"] == 7
