"""What the live page is told, as server-sent events: the state once, then what changes of it, and events as they come.

All viewers get the same bytes. A frame is made every quarter of a second if there is news, once for all of them, and
only while somebody looks. A viewer takes frames at its own pace. Those of the last ten seconds are kept, and a viewer
that is further behind is cut; it comes again and says where it was (`Last-Event-ID`). So a slow viewer takes no memory
and holds up nobody.

| event | data |
| --- | --- |
| `state` | the whole of `page_view` |
| `patch` | what has changed of it, as a JSON merge patch |
| `history` | the last hour: times, and of each service a list for each measure; times are seconds before `now` |
| `point` | one more of each |
| `events` | events of the log; `skipped`: so many more came meanwhile, or even more |
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import orjson

from gateway_sidecar.api.page_view import page_event
from gateway_sidecar.domain.history import MEASURES, History
from gateway_sidecar.domain.merge_patch import Document, merge_patch
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, cancelled
from gateway_sidecar.telemetry.journal import Entry, Journal

MOST_VIEWERS = 16
"""Of the listener's 512 connections."""
MOST_EVENTS = 100
"""Of one frame: nobody reads more than 400 in a second."""
MOST_BEHIND = 40
"""Frames: ten seconds, or longer where less happens."""

_GAP_S = 0.2
"""A frame's pause ends with a tick of the daemon's clock, so it takes a quarter of a second."""
_STATE_S = 1.0  # A person sees no more of numbers; what happens comes as events meanwhile.
_STATE_TAKES = 100
"""To look at the state takes 1 % of the time at the most, however many replicas there are."""
_QUIET_S = 5.0
"""A page that hears nothing for three times as long takes the daemon for gone."""
_FIRST_EVENTS = 200  # A choice: some screens of them; `events` has the others.
_MOST_KEPT_BYTES = 4 * 1024 * 1024
"""A choice: for all viewers together; who is further behind than this is cut, and begins anew."""


class TooManyViewers(Exception):
    """There is no room for one more."""


class Viewer:
    """One page that is open. is_gone: whether its connection is closed."""

    def __init__(self, feed: Feed, at: int, is_gone: Callable[[], bool]) -> None:
        self._feed = feed
        self._at = at
        self.is_gone = is_gone

    async def news(self) -> bytes | None:
        """All frames since the last call, once there is one; None if it was too slow, or the listener closes."""
        while not self._feed.is_closed:
            if self._at < self._feed.at:
                frames = self._feed.after(self._at)
                self._at = self._feed.at
                return None if frames is None else b"".join(frames)
            await self._feed.next_frame()
        return None


class Feed:
    """The frames, and who takes them. look: the state as it is now."""

    def __init__(self, look: Callable[[], Document], history: History, journal: Journal, tasks: Tasks) -> None:
        self._look = look
        self._history = history
        self._journal = journal
        self._tasks = tasks
        self._making: asyncio.Task[None] | None = None
        self._viewers: set[Viewer] = set()
        self._frames: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._state: Document = {}
        self._look_at = self._said_at = 0.0
        self._taken = self._seq = 0
        self._whole: bytes | None = None
        self.at = 0
        """The number of the last frame."""
        self.is_closed = False

    # -- viewers

    def begin(self, after: int | None, is_gone: Callable[[], bool]) -> tuple[Viewer, bytes]:
        """One more, and what it is told first. after: the last event that it has had. Raises TooManyViewers."""
        self._viewers = {it for it in self._viewers if not it.is_gone()}
        if len(self._viewers) >= MOST_VIEWERS:
            raise TooManyViewers
        if self._making is None:
            self._frames.clear()
            self._state, self._whole = self._looked(), None
            self._taken, self._seq = self._history.taken, self._journal.last
            self._making = self._tasks.run_forever(self._make_frames)
        viewer = Viewer(self, self.at, is_gone)
        self._viewers.add(viewer)
        if self._whole is None:
            self._whole = _message("state", self._state) + _message("history", self._hour())
        return viewer, self._whole + self._events_since(after)

    async def end(self, viewer: Viewer) -> None:
        """It looks no more."""
        self._viewers.discard(viewer)
        if not self._viewers and self._making is not None:
            making, self._making = self._making, None
            await cancelled(making)

    async def close(self) -> None:
        """The listener closes: all of them end."""
        self.is_closed = True
        self._news.set()
        await self._tasks.close()

    def after(self, number: int) -> Sequence[bytes] | None:
        """The frames after that one; None if some of them are not kept any more."""
        missing = self.at - number
        if missing > len(self._frames):
            return None
        return list(islice(self._frames, len(self._frames) - missing, None))

    async def next_frame(self) -> None:
        """Returns once there is another frame, or the listener closes."""
        await self._news.wait()

    # -- frames

    async def _make_frames(self) -> None:
        while True:
            await awake.rest(_GAP_S)
            now = awake.monotonic()
            frame = self._fresh_events() + self._changes(now) + self._fresh_point()
            if not frame and now - self._said_at >= _QUIET_S:
                frame = b": nothing new\n\n"
            if frame:
                self._said_at = now
                self._publish(frame)

    def _publish(self, frame: bytes) -> None:
        self._frames.append(frame)
        while len(self._frames) > MOST_BEHIND or (
            len(self._frames) > 1 and sum(map(len, self._frames)) > _MOST_KEPT_BYTES
        ):
            self._frames.popleft()
        self.at += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _looked(self) -> Document:
        began = awake.monotonic()
        state = self._look()
        self._look_at = began + max(_STATE_S, _STATE_TAKES * (awake.monotonic() - began))
        return state

    def _changes(self, now: float) -> bytes:
        if now < self._look_at:
            return b""
        before, self._state = self._state, self._looked()
        patch = merge_patch(before, self._state)
        self._whole = None
        return _message("patch", patch) if patch else b""

    def _fresh_point(self) -> bytes:
        if self._history.taken == self._taken:
            return b""
        self._taken, self._whole = self._history.taken, None
        return _message("point", {"measures": MEASURES, "services": self._history.last})

    def _hour(self) -> dict[str, Any]:
        now = awake.monotonic()
        ages = [round(now - at, 1) for at in self._history.times]
        return {"ages": ages, "services": self._history.columns()}

    # -- events

    def _fresh_events(self) -> bytes:
        entries, _ = self._journal.after(self._seq)
        if not entries:
            return b""
        self._seq = entries[-1].seq
        shown = [it for it in entries if not it.is_said]
        return self._told(shown[-MOST_EVENTS:], len(shown) - MOST_EVENTS)

    def _events_since(self, after: int | None) -> bytes:
        """The last ones, for a page that begins; for one that comes again those that it has not had."""
        entries, lost = self._journal.after(after or 0)
        shown = [it for it in entries if not it.is_said and it.seq <= self._seq]
        skipped = max(len(shown) - _FIRST_EVENTS, int(lost))
        return self._told(shown[-_FIRST_EVENTS:], 0 if after is None else skipped)

    def _told(self, entries: Iterable[Entry], skipped: int) -> bytes:
        events = [event for entry in entries if (event := page_event(entry)) is not None]
        if not events:
            return b""
        return b"id: %d\n" % self._seq + _message("events", {"events": events, "skipped": max(0, skipped)})


def _message(event: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))
