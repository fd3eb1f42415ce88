"""A router with its book of workers. A service has one, and during a replacement its successor beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.routers.workers import WorkerSync
from gateway_sidecar.control.workqueue import Key, Part, WorkerAt, WorkQueue
from gateway_sidecar.domain.model import Registered, WorkerStatus
from gateway_sidecar.domain.planning import Deregister, WorkerView
from gateway_sidecar.errors import RouterError, RouterRefused, RouterUnavailable
from gateway_sidecar.routers.base import RouterClient
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, run_forever
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_AGAIN_S = 0.2  # As the book's pause after a failed list: a router that starts again is there in 0.2 s.

T = TypeVar("T")

MakeRouter = Callable[[Callable[[], None]], Router]
"""A router, not started yet, that calls what it is given whenever its state changes."""


class RouterUnit:
    """One router process and what it says of its workers."""

    def __init__(
        self,
        make_router: MakeRouter,
        queue: WorkQueue[Key],
        metrics: Metrics,
        *,
        rescan_interval_s: float,
        api_timeout_s: float,
    ) -> None:
        router = self.router = make_router(self._router_changed)
        self._queue = queue
        self._metrics = metrics
        self.book = WorkerSync(router, queue, metrics, rescan_interval_s=rescan_interval_s, api_timeout_s=api_timeout_s)
        self._tasks = Tasks(router.service, metrics)
        self._task: asyncio.Task[None] | None = None
        self.retiring = False
        """It only finishes what it has begun: nobody watches it any more, or registers anybody there."""
        self.hangs = asyncio.Event()
        """It is retiring and did not answer: nothing can be expected of it."""
        self._logger = get_logger(service=router.service)
        self._dismissals: dict[str, Deregister] = {}
        self._dismissing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to keep the router running and to watch its workers."""
        self._task = self._tasks.spawn(self._run())

    async def halt(self) -> None:
        """Stops keeping and watching; the process itself goes on."""
        await self._tasks.close()
        await self.book.close()

    async def retire(self) -> None:
        """From now on it finishes what it has. Workers that leave are still taken out, so that it tries none again."""
        self.retiring = True
        await self.halt()
        if not self.book.workers and self.router.client is not None:
            with suppress(RouterError):  # An earlier daemon's: what it has is not known yet.
                self.book.workers.update(await self.router.client.list_workers())
        # Those that drain get nothing any more, and nobody would see them go.
        for url in [url for url, worker in self.book.workers.items() if worker.status is WorkerStatus.DRAINING]:
            del self.book.workers[url]
        # Our own connections would count as somebody's.
        await self.router.close_client()

    def view(self, url: str | None) -> WorkerView:
        """One worker for the planner."""
        if not self.retiring:
            return self.book.view(url)
        return WorkerView(listed=True, worker=self.book.workers.get(url) if url else None)

    def dismiss(self, action: Deregister) -> None:
        """Takes a worker out of a retiring router; its key follows when it is out."""
        self._dismissals[action.url] = action
        if self._dismissing is None or self._dismissing.done():
            self._dismissing = self._tasks.until_done(self._dismiss)

    async def _dismiss(self) -> None:
        while self._dismissals and (client := self.router.another_client()) is not None:
            try:
                await self._dismiss_through(client)
            except RouterUnavailable:
                self._dismissals.clear()
                self.hangs.set()
            finally:
                await client.close()

    async def _dismiss_through(self, client: RouterClient) -> None:
        """Raises RouterUnavailable once it has been asked for as long as a router in service may be silent."""
        listed: Mapping[str, Registered] = {}
        with suppress(RouterRefused):  # By what id this client knows them: an engine with ranks has several.
            listed = await self._patiently(client.list_workers)
        while self._dismissals:
            url, action = next(iter(self._dismissals.items()))
            worker_id = listed[url].worker_id if url in listed else action.worker_id
            try:
                await self._patiently(partial(client.deregister, worker_id))
            except RouterRefused as refusal:
                self._logger.warning("worker.operation_failed", worker_url=url, reason=str(refusal), failures=1)
            self._dismissals.pop(url)
            self.book.workers.pop(url, None)
            self._queue.add(WorkerAt(url))

    def _router_changed(self) -> None:
        self.book.hurry()
        self._queue.add(Part.ROUTERS, urgent=True)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        deadline = awake.now() + self.book.most_silence_s
        while True:
            stalls = awake.stalls()
            try:
                return await ask()
            except RouterUnavailable:
                if awake.now() >= deadline and awake.stalls() == stalls:
                    raise
            await asyncio.sleep(_AGAIN_S)

    def is_ready(self, url: str | None) -> bool:
        """Whether the router sends requests to the worker at `url`."""
        worker = self.book.workers.get(url) if url else None
        return self.book.listed and worker is not None and worker.status is WorkerStatus.READY

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for loop in (self.router.run, self.book.run):
                group.create_task(run_forever(self.router.service, loop, self._metrics))
