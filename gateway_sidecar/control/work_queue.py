"""A level-triggered work queue: keys to look at now, and keys to look at later. A key waits at most once."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Collects keys whose state may have changed; the reader looks at each anew, so nothing is carried with it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now: dict[K, None] = {}
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._count = 0
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Look at `key` as soon as possible."""
        self._now[key] = None
        self._wake.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Look at `key` in `delay_s` seconds, or earlier if it is due earlier already."""
        due = self._clock() + delay_s
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._later, (due, self._count, key))
        if self._later[0][2] == key:
            self._wake.set()

    async def take(self, most_s: float) -> list[K]:
        """The keys to look at, in the order they came; empty after `most_s` seconds without any."""
        end = self._clock() + most_s
        while True:
            self._wake.clear()
            now = self._clock()
            while self._later and self._later[0][0] <= now:
                due, _, key = heapq.heappop(self._later)
                if self._due.get(key) == due:
                    del self._due[key]
                    self._now[key] = None
            if self._now or now >= end:
                taken = list(self._now)
                self._now.clear()
                return taken
            until = min(end, self._later[0][0]) if self._later else end
            try:
                async with asyncio.timeout(max(0.0, until - now)):
                    await self._wake.wait()
            except TimeoutError:
                pass
