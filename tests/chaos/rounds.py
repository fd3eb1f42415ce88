"""How the events of a round are played: those of one place in their order, all places side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from tests.chaos.events import Event


async def play(events: Iterable[Event], do: Callable[[Event], Awaitable[None]]) -> None:
    """Has each event done at its time, or once the one before it at its place is; returns when all are."""
    began = time.monotonic()
    places: dict[str, list[Event]] = {}
    for event in events:
        places.setdefault(event.place, []).append(event)

    async def play_place(events: list[Event]) -> None:
        for event in events:
            await asyncio.sleep(max(0.0, began + event.at - time.monotonic()))
            await do(event)

    await asyncio.gather(*map(play_place, places.values()))
