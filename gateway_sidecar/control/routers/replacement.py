"""The two places that a service's router can be in: one in service, and for a while its successor beside it.

Both are in nginx's configuration from the start, so that a replacement needs no reload: the successor is started in
the free slot, is given every worker, and then the service address is switched to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.config.router import OfItsKind, RouterSettings
from gateway_sidecar.control.routers.process import PrivatePorts, SavedRouter
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.control.workqueue import Key, Part, WorkQueue
from gateway_sidecar.domain.planning import WorkerView
from gateway_sidecar.errors import ProcessError, RouterUnavailable
from gateway_sidecar.nginx.config import SUCCESSOR
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.routers.base import RouterPorts, RouterRules
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks, cancelled
from gateway_sidecar.supervision.memory import router_share_mb
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.logs import get_logger

MOST_PATIENCE_S = 10.0
"""How long a router is waited for, once it answers, until it has every worker."""

_OUTGROWN_GAP_S = 600.0  # A choice: a limit that every router exceeds costs six replacements an hour.
_POLL_S = 0.02  # Next to a router's start of 0.2 s and more it is little.
_QUIET_GAP_S = 0.2  # The old router is kept so much longer than its last connection, at the most.


@dataclass(frozen=True, slots=True)
class SlotPlaces:
    """Where the slots are.

    private_ports: where their ports come from.
    point: leads the service address to a slot.
    move_address: makes nginx serve a service's address for its routers as they are now. Raises RouterUnavailable.
    """

    private_ports: PrivatePorts
    point: Callable[[str, str], None]
    move_address: Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _NotReplaced:
    """Which router stayed, why, and by which settings another one should have been started."""

    pid: int | None
    why: str
    wanted: RouterSettings


class RouterSlots:
    """The routers of one service.

    make_unit: a router for one slot, as the settings have it now, not started yet.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        make_unit: Callable[[ServiceSettings, str], RouterUnit],
        places: SlotPlaces,
        queue: WorkQueue[Key],
        tasks: Tasks,
    ) -> None:
        self.settings = settings
        self.service = settings.name
        self._make_unit = make_unit
        self._private_ports = places.private_ports
        self._point = places.point
        self._move_address = places.move_address
        self._queue = queue
        self._tasks = tasks
        self._caught_up = asyncio.Event()
        self._is_equal = False
        self._lacking: list[str] = []
        self._logger = get_logger(service=settings.name)
        self._reserved: dict[str, RouterPorts] = {}
        self._replacing = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._may_outgrow_at = 0.0
        self._not_replaced: _NotReplaced | None = None
        self.active = make_unit(settings, self.service)
        self.units = [self.active]

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; the next router is started by them."""
        self.settings = settings
        for unit in self.units:
            unit.book.reconfigure(settings.router.api_timeout_s)

    @property
    def watched(self) -> list[RouterUnit]:
        """The routers that are to have every worker; a retiring one only loses some."""
        return [unit for unit in self.units if not unit.retiring]

    @property
    def in_mesh(self) -> bool:
        """Whether one of them is in a mesh, and so may know workers that nobody registered here."""
        return any(unit.router.mesh is not None for unit in self.units)

    @property
    def is_replacing(self) -> bool:
        """Whether a router is being replaced, or about to be, or one that was replaced has not ended yet."""
        return self._replacing.locked() or (self._renewing is not None and not self._renewing.done())

    @property
    def names(self) -> tuple[str, str]:
        """The slots' names."""
        return self.service, self.service + SUCCESSOR

    @property
    def problem(self) -> str:
        """Why this very router should have been replaced, and was not; empty if there is nothing to say."""
        failed = self._not_replaced
        return failed.why if failed is not None and failed.pid == self.active.router.pid else ""

    def note_kept(self) -> None:
        """The configuration asks for the router as it is: that another one could not be put in place counts no more."""
        if self._not_replaced is not None and self._not_replaced.wanted != self.settings.router:
            self._not_replaced = None

    def views(self, url: str | None) -> dict[RouterUnit, WorkerView]:
        """A worker as each router knows it. A successor that is not up yet knows no worker."""
        units = [unit for unit in self.units if unit is self.active or unit.retiring or unit.router.up]
        return {unit: unit.view(url) for unit in units}

    def saved(self) -> list[SavedRouter]:
        """What to write down of them for the next daemon."""
        return [saved for unit in self.units if (saved := unit.router.saved()) is not None]

    @property
    def kinds(self) -> list[str]:
        """The kinds of router that requests may reach now.

        A successor counts once it runs: one that never does changes nothing. What an adopted router's place will be
        taken by, should it end, counts from the beginning.
        """
        reached = [unit.router for unit in self.units if unit is self.active or unit.retiring or unit.router.epoch]
        return sorted({kind for router in reached for kind in (router.kind, router.next_kind)})

    def note_caught_up(self) -> None:
        """The router in service is up, and has everybody whom it should have."""
        self._caught_up.set()

    def compare(self, staying: Iterable[str]) -> None:
        """Whether a successor has every worker, of these URLs, that the router in service has.

        Mostly there is none, and then nobody is looked at.
        """
        old, new = self.active, self.watched[-1]
        if new is old:
            self._lacking, self._is_equal = [], False
            return
        self._lacking = [url for url in staying if old.is_ready(url) and not new.is_ready(url)]
        self._is_equal = new.book.listed and not self._lacking

    def addresses(self) -> tuple[str, str]:
        """Where the routers in the two slots listen, or would; empty for a slot that nginx balances by itself."""
        self._reserve_what_is_used()
        balanced = {unit.router.slot for unit in self.units if unit.router.is_nginx}
        first, second = (
            "" if slot in balanced or slot not in self._reserved else f"127.0.0.1:{self._reserved[slot].api}"
            for slot in self.names
        )
        return first, second

    def prepare(self) -> None:
        """Decides on the ports of both slots, and leads the service address to the router that is, or will be.

        Raises ProcessError if there are no ports.
        """
        self._reserve_what_is_used()
        for slot in self.names:
            if slot not in self._reserved and not self.active.router.is_nginx:
                self._reserved[slot] = self._private_ports.choose(slot)
        self._point(self.service, self.active.router.slot)

    def repair(self, pointed: str) -> bool:
        """Leads the service address to the router in service again, should it be led elsewhere; whether it was."""
        if pointed == self.active.router.slot:
            return False
        self._point(self.service, self.active.router.slot)
        return True

    def _reserve_what_is_used(self) -> None:
        """A slot keeps the ports of the router that was in it last: nginx knows those."""
        self._reserved |= {unit.router.slot: p for unit in self.units if (p := unit.router.ports) is not None}

    def start(self) -> None:
        """Supervises the router, and replaces an earlier daemon's router that was started with other settings."""
        self.active.start()
        self._renewing = self._tasks.until_done(self._renew_outdated)

    async def close(self) -> None:
        """Stops keeping the routers; the processes go on."""
        await cancelled(self._renewing, self._retiring)
        for unit in self.units:
            await unit.halt()

    def abandon(self) -> None:
        """The service is no more: both slots' ports may be used again."""
        for slot in self.names:
            self._private_ports.give_back(slot)

    async def replace(self, *, only_in_mesh: bool = False) -> None:
        """Puts a new router, as the settings have it now, in the place of the old one. No request fails.

        The new one is started beside the old and given every worker; then the service address leads to it, and the
        old one finishes what it has begun, in the background. Raises RouterUnavailable, the old one kept, if the new
        one does not get there.

        only_in_mesh: nothing but a place in the mesh is gained, so a new router without one is not put in place.
        """
        await self._replacing.acquire()
        try:
            old = self.active
            first, second = self.names
            new = self._make_unit(self.settings, second if old.router.slot == first else first)
            self._is_equal = False
            self.units.append(new)
            new.router.join_mesh()
            new.start()
            try:
                await self._until_equal(new, only_in_mesh=only_in_mesh)
                # Changes nothing, unless the successor is of another kind, or had to take another port.
                await self._move_address(self.service)
                self._point(self.service, new.router.slot)
            except BaseException as error:
                unready = self._unready(new)
                await new.halt()
                await new.router.stop(grace_s=0)
                self.units.remove(new)
                new.router.close_log()
                if not isinstance(error, TimeoutError | OSError | RouterUnavailable):
                    raise
                why = str(error) or new.router.reason or unready
                text = f"the new router was not put in place: {why}"
                if not (only_in_mesh and _is_outside(new)):  # Of the mesh `status` says by itself why.
                    self._not_replaced = _NotReplaced(old.router.pid, text, self.settings.router)
                raise RouterUnavailable(text) from error
            self.active = new
            self._queue.add(Part.ROUTERS, urgent=True)
            self._logger.info("router.replaced", pid=new.router.pid, old_pid=old.router.pid)
            self._begin_to_retire(old)
        except BaseException:
            self._replacing.release()
            raise

    def note_memory(self, rss_bytes: int) -> None:
        """Replaces a router that has outgrown its limit."""
        limit_mb = self.settings.router.memory_limit_mb
        if limit_mb == "auto":
            limit_mb = router_share_mb()
        if limit_mb is None or rss_bytes <= limit_mb * 1024 * 1024 or self.is_replacing:
            return
        now = awake.monotonic()
        if now < self._may_outgrow_at:
            return  # A limit that a fresh router exceeds must not make us replace it for ever.
        self._may_outgrow_at = now + _OUTGROWN_GAP_S
        self._logger.warning("router.outgrown", memory_mb=rss_bytes >> 20, limit_mb=limit_mb)
        self._renewing = self._tasks.spawn(self._renew(), again=partial(self._queue.add, Part.ROUTERS))

    def begin_in(self, slot: str, kind: str) -> None:
        """The router in service has its place in this slot, and is of this kind. To be said before anything is adopted
        or started.
        """
        if (self.active.router.slot, self.active.router.kind) != (slot, kind):
            self.active.router.close_log()
            self.active = self._make_unit(self._settings_for(kind), slot)
            self.units = [self.active]

    async def adopt_leaving(self, saved: SavedRouter, identity: Identity, setup: RouterRules) -> bool:
        """Takes over a router that an earlier daemon had replaced, or had not put in place: it may finish and go."""
        unit = self._make_unit(self._settings_for(saved.kind), saved.slot)
        if not await unit.router.adopt(saved, identity, setup):
            return False
        await self._replacing.acquire()
        self.units.append(unit)
        self._begin_to_retire(unit)
        return True

    def _settings_for(self, kind: str) -> ServiceSettings:
        """For a router of this kind, which may be another than the one that is configured."""
        if kind == self.settings.router.type:
            return self.settings
        return self.settings.model_copy(update={"router": OfItsKind().read({"type": kind})})

    async def _renew_outdated(self) -> None:
        if not await self._is_outdated():
            return
        await self._caught_up.wait()
        if await self._is_outdated():  # It may have been started again meanwhile.
            self._logger.warning("router.outdated", pid=self.active.router.pid)
            await self._renew()

    async def _is_outdated(self) -> bool:
        router = self.active.router
        return router.kind != self.settings.router.type or await router.is_outdated()

    async def _renew(self) -> None:
        try:
            await self.replace()
        except RouterUnavailable as error:
            self._logger.error("router.not_replaced", reason=str(error))

    async def _until_equal(self, new: RouterUnit, *, only_in_mesh: bool) -> None:
        """Returns when the new router has every worker that the old one has, as the loop compares them.

        Raises TimeoutError, and RouterUnavailable as soon as it refuses its arguments, cannot be started at all, or
        runs without the place in the mesh that it must have.
        """
        async with within(self.settings.router.start_timeout_s + MOST_PATIENCE_S):
            while True:
                if new.router.state is RouterState.REFUSED or new.router.cannot_start:
                    raise RouterUnavailable(new.router.reason)
                if only_in_mesh and _is_outside(new):
                    raise RouterUnavailable("it has no place in the mesh")
                if self._is_equal:
                    return
                await asyncio.sleep(_POLL_S)

    def _unready(self, new: RouterUnit) -> str:
        """How many workers the new router does not have ready, and what is known of one."""
        if not self._lacking:
            return "it did not list its workers in time"
        troubles = [f"{url}: {why}" for url in self._lacking if (why := new.book.trouble(url))]
        url = self._lacking[0]
        worker = new.book.workers.get(url)
        one = troubles[0] if troubles else f"{url}: {'not there' if worker is None else worker.status.value}"
        return f"{len(self._lacking)} of its workers did not become ready in time; {one}"

    def _begin_to_retire(self, old: RouterUnit) -> None:
        self._retiring = self._tasks.until_done(partial(self._retire, old))
        self._retiring.add_done_callback(self._retired)

    def _retired(self, _: asyncio.Task[None]) -> None:
        self._replacing.release()
        self._queue.add(Part.ROUTERS)

    async def _retire(self, old: RouterUnit) -> None:
        """Ends a router that gets no new requests when no connection to it is left, or if it hangs."""
        await old.retire()
        ports = {old.router.ports.api} if old.router.ports else set()
        deadline = awake.now() + self.settings.router.retire_timeout_s
        # Kept connections of nginx, idle for 5 s at the most, count as somebody's too.
        while await asyncio.to_thread(open_connections, ports) and awake.now() < deadline:
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_GAP_S):
                    await old.hangs.wait()
                    break
        await old.halt()  # Whoever is still being taken out of it is out with it.
        await old.router.stop(grace_s=0 if old.hangs.is_set() else 0.5)
        self.units.remove(old)  # Not before: as long as it runs it is ours to write down, or to end.
        old.router.close_log()
        with suppress(ProcessError, OSError):  # No port is free for who may never be needed; or run_dir is made again.
            self.prepare()
        self._queue.add(Part.ROUTERS)


def _is_outside(unit: RouterUnit) -> bool:
    """Whether the router was started without a place in a mesh: none was to be had, or it ended and began again."""
    return unit.router.ports is not None and unit.router.mesh is None
