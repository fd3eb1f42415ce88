"""One reading of a page for all who ask for it at the same time, and few readings at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable
from functools import partial

_MOST_AT_ONCE = 32  # Pages of 4 MiB at the most: 128 MiB at the worst.


class SharedReads:
    """Readings that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[bytes]] = {}
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)

    @property
    def tasks(self) -> Collection[asyncio.Task[bytes]]:
        """All that are under way."""
        return tuple(self._under_way.values())

    async def read(self, key: Hashable, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """What `read` returns or raises; if somebody reads the same now, what he gets. Who asks may go meanwhile."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._one(read))
            task.add_done_callback(partial(self._done, key))
        return await asyncio.shield(task)

    def _done(self, key: Hashable, task: asyncio.Task[bytes]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # Those who asked know it; perhaps all of them have gone.

    async def _one(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        async with self._room:
            return await read()
