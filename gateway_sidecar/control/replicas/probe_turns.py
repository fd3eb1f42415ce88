"""Which engines may be asked now: a bounded number at a time, of which a silent one delays the others only briefly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ProbeTurns:
    """Turns of probes. One lasts until the probe ends, or `most_s` seconds if it takes longer: it goes on without.

    Of those that wait the latest goes first: a crowd that came before may be silent, each of it for its whole time-out.
    """

    def __init__(self, at_once: int, *, most_s: float) -> None:
        self._free = at_once
        self._most_s = most_s
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Begins when it is one's turn."""
        await self._take()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._pass_on()

        timer = asyncio.get_running_loop().call_later(self._most_s, end)
        try:
            yield
        finally:
            timer.cancel()
            end()

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._pass_on()  # Its turn came at the same moment.
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            latest = self._waiting.pop()
            if not latest.done():  # Else it waits no more.
                latest.set_result(None)
                return
        self._free += 1
