"""Blocking work in a thread of its owner: a disk that hangs delays nothing else, not even the end of the process.

The event loop's own pool has a few threads for all: as many hung file systems as it has threads would stop everything
that needs one. And the interpreter waits for them at its end.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from gateway_sidecar.supervision.awake import within

T = TypeVar("T")

DISK_S = 5.0
"""Patience with a disk, or another file system, where only its owner waits: half of what makes a loop late
(`control/process/watchdog.py`). One that is merely slow answers in it; one that hangs shows in `status` after it."""
BRIEF_DISK_S = 2.0
"""The same where others wait meanwhile: an nginx or a router that is to start, or the other sockets of a service."""


class OwnThread:
    """One daemon thread, begun at first use. It does one piece of work at a time and never has a second one waiting."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._begun = False
        self._last: asyncio.Future[None] | None = None
        self._end = weakref.finalize(self, self._work.put, None)

    @property
    def hangs(self) -> bool:
        """Whether an earlier piece of work has not ended yet."""
        return self._last is not None and not self._last.done()

    def end(self) -> None:
        """Nothing more will be asked: the thread ends after what it does now."""
        self._end()

    async def run(self, work: Callable[[], T], *, patience_s: float) -> T:
        """What `work` returns or raises. Raises TimeoutError after `patience_s` seconds; the work itself goes on then.

        While an earlier piece hangs nothing is begun: the time is spent waiting for it.
        """
        loop = asyncio.get_running_loop()
        async with within(patience_s):
            while self._last is not None and not self._last.done():
                await asyncio.wait({self._last})
            ended: asyncio.Future[None] = loop.create_future()
            self._last = ended
            outcome: list[tuple[T | None, BaseException | None]] = []

            def do() -> None:
                try:
                    outcome.append((work(), None))
                except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                    outcome.append((None, error))
                with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                    loop.call_soon_threadsafe(_end, ended)

            self._begin()
            self._work.put(do)
            await asyncio.wait({ended})
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # None is what `work` returned then.

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=_run, args=(self._work,), name=self._name, daemon=True).start()


def _run(work: SimpleQueue[Callable[[], None] | None]) -> None:
    while (piece := work.get()) is not None:
        piece()
        del piece


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
