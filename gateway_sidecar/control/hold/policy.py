"""Opens and closes one service's gate, by what its router says of its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from gateway_sidecar.control.hold.lost import LostWatch
from gateway_sidecar.control.hold.queue import Doubt, HoldQueue
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.routers.replacement import MOST_PATIENCE_S, RouterSlots
from gateway_sidecar.domain.model import Registered, WorkerStatus
from gateway_sidecar.domain.planning import Missing, missing_role
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import get_logger

_ASK_GAP_S = 0.05  # Requests wait meanwhile: a router that takes connections again has them within it.


class HoldPolicy:
    """Holds requests while no worker can answer them. `models` are those last served, for the time at zero replicas."""

    def __init__(self, hold: HoldQueue, slots: RouterSlots, tenures: Registry, prober: Prober, tasks: Tasks) -> None:
        self._hold = hold
        self._slots = slots
        self._tenures = tenures
        self._prober = prober
        self._tasks = tasks
        self._up: tuple[object, int] | None = None
        self._up_at = awake.now()
        self._is_catching_up = True
        self._asking: asyncio.Task[None] | None = None
        self._logger = get_logger(service=slots.service)
        self.models: Sequence[str] = ()
        self._looked_at: tuple[Mapping[str, Registered], int] | None = None
        self._staying: dict[str, Registered] = {}
        """Of what was looked at last."""
        self._lost = LostWatch(hold, tenures)

    @property
    def has_caught_up(self) -> bool:
        """Whether the router is up, and has everybody whom it should have."""
        return self._hold.missing is not Missing.ROUTER

    def restore(self, models: Sequence[str]) -> None:
        """An earlier daemon's service had these when it fell asleep."""
        self.models = models

    async def close(self) -> None:
        """Asks no router any more."""
        await self._tasks.close()

    def decide(self) -> None:
        """Holds requests while no worker can answer them, and lets them go on when one can. A new router first waits
        for all its workers, or for those that are ready after a while.
        """
        hold, router, book = self._hold, self._slots.active.router, self._slots.active.book
        self._note_router()
        if not router.up:
            hold.close(Missing.ROUTER)
        if hold.doubt is not None:
            self._ask(hold.doubt)
        if book.is_silent:
            # If it hangs, what it is sent now is lost with it. If it is only slow, a moment's wait does no harm.
            if hold.is_open:
                self._logger.warning("router.silent")
                hold.close(Missing.ROUTER)
            return
        if hold.doubt is not None or not book.listed or (self._is_catching_up and not self._is_complete()):
            return
        self._is_catching_up = False
        staying = self._staying_workers()
        missing = missing_role(worker.worker_type for worker in staying.values())
        if missing is None:
            hold.open(self._lost.look(router.setup, staying))
            return
        if hold.is_open:
            present = (w for w in book.workers.values() if w.status is not WorkerStatus.PENDING)
            self.models = tuple(sorted({w.model_id for w in present if w.model_id}))
        hold.close(missing)

    def _note_router(self) -> None:
        """Another router, or another process of it, has to catch up."""
        router = self._slots.active.router
        up = (router, router.epoch) if router.up else None
        if up is not None and up != self._up:
            self._up_at = awake.now()
            self._is_catching_up = True
        self._up = up

    def _ask(self, doubt: Doubt) -> None:
        """Has the router asked whether it takes connections."""
        router = self._slots.active.router
        up_for_s = awake.now() - self._up_at
        if router.up and min(doubt.for_s, up_for_s) > self._slots.settings.router.api_timeout_s:
            router.report_unresponsive()  # What it still says on old connections is no use to anybody.
        if self._asking is None or self._asking.done():
            self._asking = self._tasks.until_done(partial(self._until_accepting, doubt))

    async def _until_accepting(self, doubt: Doubt) -> None:
        told = False
        await asyncio.sleep(doubt.pause_s)
        while not await self._slots.active.router.accepts_connections():
            if not told and doubt.for_s > 1:
                told = True
                self._logger.warning("router.refusing", waiting=self._hold.waiting)
            await asyncio.sleep(_ASK_GAP_S)
        self._asking = None
        self._hold.trust()

    def _staying_workers(self) -> Mapping[str, Registered]:
        """The workers by URL that get requests and keep getting them. A worker that may still turn out to be a
        replica's counts.

        To look at 1,000 takes 0.5 ms, so these are the last ones while the router lists the same and no tenure was
        looked at. What becomes of a worker without a tenure depends on more than that.
        """
        listed = dict(self._slots.active.book.workers)
        of = (listed, self._tenures.reconciled)
        if of == self._looked_at:  # 1,000 that are the same: 0.01 ms.
            return self._staying
        self._looked_at = of
        self._staying = {}
        for url, worker in listed.items():
            if worker.status is WorkerStatus.READY:
                tenure = self._tenures.at_url(url)
                if tenure is None:
                    self._looked_at = None
                    is_ill = self._prober.is_proven_ill
                    if not self._tenures.has_all or url in self._tenures.known_urls(is_ill):
                        self._staying[url] = worker
                elif tenure.leaving is None:
                    self._staying[url] = worker
        return self._staying

    def _is_complete(self) -> bool:
        if awake.now() - self._up_at > MOST_PATIENCE_S:
            return True
        wanted = (url for t in self._tenures if t.view().wanted for url in t.urls)
        return self._tenures.has_all and all(self._slots.active.is_ready(url) for url in wanted)
