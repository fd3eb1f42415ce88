"""Opens and closes one service's waiting room, by what its router says of its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway_sidecar.control.hold.queue import HoldQueue
from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.routers.replacement import MOST_PATIENCE_S, RouterSlots
from gateway_sidecar.domain.model import Registered, WorkerStatus
from gateway_sidecar.domain.planning import Missing, missing_role
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.logs import get_logger


class HoldPolicy:
    """Lets requests wait while nobody can answer them. `models` are those last served, for while it sleeps.

    known_urls: the URLs that workers of present tenures have, or may turn out to have.
    on_change: called when there is something new to write down.
    """

    def __init__(
        self,
        room: HoldQueue,
        slots: RouterSlots,
        reflector: Reflector,
        tenures: Registry,
        *,
        known_urls: Callable[[], frozenset[str]],
        on_change: Callable[[], None],
    ) -> None:
        self._room = room
        self._slots = slots
        self._reflector = reflector
        self._tenures = tenures
        self._known_urls = known_urls
        self._on_change = on_change
        self._router_up_at = awake.now()
        self._is_catching_up = True
        self.models: list[str] = []

    def router_changed(self) -> None:
        """The router in service came up or went down, or is another one."""
        if self._slots.active.router.up:
            self._router_up_at = awake.now()
            self._is_catching_up = True
        else:
            self._room.close(Missing.ROUTER)

    def tend(self) -> None:
        """Lets requests wait while nobody can answer them, and in again when somebody can.

        A router that has just begun has to have everybody back first, or whoever it has after a while.
        """
        room, router, book = self._room, self._slots.active.router, self._slots.active.book
        up_for_s = awake.now() - self._router_up_at
        if router.up and min(room.refused_for_s, up_for_s) > self._slots.settings.router.api_timeout_s:
            router.report_unresponsive()  # What it still says on old connections is no use to anybody.
        if book.is_silent:
            # If it hangs, what it is sent now is lost with it. If it is only slow, a moment's wait does no harm.
            if room.is_open:
                get_logger(service=router.service).warning("router.silent")
                room.close(Missing.ROUTER)
            return
        if room.is_doubting or not book.listed or (self._is_catching_up and not self._is_complete()):
            return
        self._is_catching_up = False
        missing = missing_role(worker.worker_type for worker in self._staying_workers())
        if missing is None:
            room.open()
            return
        if room.is_open:
            present = (w for w in book.workers.values() if w.status is not WorkerStatus.PENDING)
            self.models = sorted({w.model_id for w in present if w.model_id})
            self._on_change()
        room.close(missing)

    def _staying_workers(self) -> Iterator[Registered]:
        """The workers that get requests and go on to. One that may yet turn out to be somebody's is one of them."""
        for url, worker in self._slots.active.book.workers.items():
            if worker.status is WorkerStatus.READY:
                tenure = self._tenures.at_url(url)
                if tenure is None:
                    is_somebodys = not self._reflector.has_looked or url in self._known_urls()
                    if is_somebodys:
                        yield worker
                elif tenure.leaving is None:
                    yield worker

    def _is_complete(self) -> bool:
        if awake.now() - self._router_up_at > MOST_PATIENCE_S:
            return True
        wanted = (t.url for t in self._tenures if t.view().wanted)
        return self._reflector.has_looked and all(self._slots.active.is_ready(url) for url in wanted)
