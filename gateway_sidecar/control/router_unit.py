"""A router with its book of workers. A service has one, and during a replacement its successor beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway_sidecar.control.guard import keep_running
from gateway_sidecar.control.router_process import RouterProcess
from gateway_sidecar.control.worker_book import WorkerBook
from gateway_sidecar.domain.model import WorkerStatus
from gateway_sidecar.telemetry.metrics import Metrics


class RouterUnit:
    """One router process and what it says of its workers.

    on_worker: called with the URL of a worker whose entry changed.
    on_listed: called with this unit after each whole list, and with True for the first of a process.
    """

    def __init__(
        self,
        router: RouterProcess,
        metrics: Metrics,
        *,
        rescan_interval_s: float,
        api_timeout_s: float,
        on_worker: Callable[[str], None],
        on_listed: Callable[[RouterUnit, bool], None],
    ) -> None:
        self.router = router
        self._metrics = metrics
        self.book = WorkerBook(
            router,
            metrics,
            rescan_interval_s=rescan_interval_s,
            api_timeout_s=api_timeout_s,
            on_change=on_worker,
            on_listed=lambda first: on_listed(self, first),
        )
        router.on_change.append(self.book.hurry)
        self._task: asyncio.Task[None] | None = None
        self.retiring = False
        """It only finishes what it has begun, and nobody watches it any more: what its book says is old."""

    def start(self) -> None:
        """Begins to keep the router running and to watch its workers."""
        self._task = asyncio.create_task(self._run())

    async def halt(self) -> None:
        """Stops keeping and watching; the process itself goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.book.close()

    def is_ready(self, url: str | None) -> bool:
        """Whether the router sends requests to the worker at `url`."""
        worker = self.book.workers.get(url) if url else None
        return self.book.listed and worker is not None and worker.status is WorkerStatus.READY

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for loop in (self.router.run, self.book.run):
                group.create_task(keep_running(self.router.service, loop, self._metrics))
