"""Routers without a service: ended in the background, and recorded until they are gone. If the daemon dies while it
waits for one, the next daemon finds it in the record and ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from gateway_sidecar.supervision.loops import Tasks, cancelled
from gateway_sidecar.supervision.process import Identity, Process
from gateway_sidecar.telemetry.logs import get_logger

_GRACE_S = 10.0  # SMG serves for 5 s after SIGTERM, then ends by itself; twice that.


class RetiredRouters:
    """The routers that are to end. `on_change` is called when that is something else to write down."""

    def __init__(self, tasks: Tasks, on_change: Callable[[], None]) -> None:
        self._tasks = tasks
        self._on_change = on_change
        self._logger = get_logger()
        self._ending: dict[Process, tuple[str, asyncio.Task[None]]] = {}

    @property
    def identities(self) -> list[tuple[str, Identity]]:
        """Whom the next daemon has to end, should we not live to see it: (service, process)."""
        return [(service, process.identity) for process, (service, _) in self._ending.items()]

    def end(self, service: str, process: Process) -> None:
        """Asks it to end, and makes it after ten seconds. Returns at once."""
        if process.running:
            self._ending[process] = (service, self._tasks.until_done(partial(self._end, service, process)))
            self._on_change()

    async def close(self) -> None:
        """Ends those that are left now."""
        left = list(self._ending)
        await cancelled(*(task for _, task in self._ending.values()))
        await asyncio.gather(*(process.stop(grace_s=0) for process in left))

    async def detach(self) -> None:
        """Leaves them to the next daemon."""
        left = list(self._ending)
        await cancelled(*(task for _, task in self._ending.values()))
        for process in left:
            process.detach()

    async def _end(self, service: str, process: Process) -> None:
        await process.stop(grace_s=_GRACE_S)
        del self._ending[process]
        self._logger.info("router.stopped", service=service, pid=process.pid)
        self._on_change()
