"""The loop of one service: observe -> plan -> execute, again and again, for whatever may have changed.

Everything here is level-triggered: a key in the queue means "look at this tenure again", and what to do follows
from what is observed then. Probes, the router's answers and the source only change what is observed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.follower import Source, SourceFollower
from gateway_sidecar.control.guard import keep_running
from gateway_sidecar.control.replica_log import ReplicaLog
from gateway_sidecar.control.role_watch import RoleWatch
from gateway_sidecar.control.router_process import RouterProcess
from gateway_sidecar.control.router_slots import MOST_PATIENCE_S, RouterSlots
from gateway_sidecar.control.router_unit import RouterUnit
from gateway_sidecar.control.tenure import SavedTenure, Tenure, occupant_of, owner_of
from gateway_sidecar.control.tenure_bridges import Keys, Links, Peers, TenureBridges
from gateway_sidecar.control.waiting_room import WaitingRoom
from gateway_sidecar.control.watcher import PathOf, Probe, Watcher, far_end_of
from gateway_sidecar.control.work_queue import WorkQueue
from gateway_sidecar.control.worker_book import WorkerBook
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Overrides,
    PeerAddress,
    Ready,
    Registered,
    ReplicaId,
    ReplicaState,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.planning import (
    Bridge,
    Deregister,
    Missing,
    Release,
    Unbridge,
    Why,
    WorkerView,
    describe,
    missing_role,
    plan_occupant,
    plan_strays,
    plan_worker,
)
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RECONSIDER_RESCANS = 5
_NOTES_PATIENCE_S = 2.0
_LISTEN_S = 0.2


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What came of a drain: whether it is safe to stop the engine now, and after how long.

    `missed` says what the service cannot answer without it: one line for each model.
    """

    drained: bool
    in_flight: int | None
    took_s: float
    missed: tuple[str, ...] = ()


class Service:
    """One service of the daemon: its source, its tenures, its router's workers."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        source: Source,
        probe: Probe,
        links: Links,
        leases: PortLeases,
        peers: Peers,
        keys: Keys,
        host: str,
        make_router: Callable[[ServiceSettings, str], RouterProcess],
        choose_ports: Callable[[str], RouterPorts],
        metrics: Metrics,
        rescan_interval_s: float,
        read_overrides: Callable[[Path], Overrides],
        path_of: PathOf,
        on_change: Callable[[], None],
        move_address: Callable[[], Awaitable[None]],
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self._make_router = make_router
        self._host = host
        self._metrics = metrics
        self._rescan_interval_s = rescan_interval_s
        self._read_overrides = read_overrides
        self._notes_thread = OwnThread(f"notes {settings.name}")
        self.path_of = path_of
        self._on_change = on_change
        self._logger = get_logger(service=settings.name)
        self._queue: WorkQueue[int] = WorkQueue(time.monotonic)
        self._keys = itertools.count(1)
        self.tenures: dict[int, Tenure] = {}
        self._current: dict[ReplicaId, Tenure] = {}
        self._yielding: dict[int, Tenure] = {}
        self._by_url: dict[str, Tenure] = {}
        self.bridges = TenureBridges(
            self.name,
            links=links,
            leases=leases,
            peers=peers,
            keys=keys,
            queue=self._queue,
            tenures=self.tenures.values,
            on_url=self._know_url,
            on_change=on_change,
        )
        self._beat = time.monotonic()
        self.follower = SourceFollower(
            self.name, source, metrics, rescan_interval_s=rescan_interval_s, take_in=self._take_in
        )
        self._router_up_at = time.monotonic()
        self._is_catching_up = True
        self._bells: set[asyncio.Event] = set()
        self.models: list[str] = []
        self.room = WaitingRoom(
            self.name,
            settings.hold,
            links,
            metrics,
            accepts=lambda: self.router.accepts_connections(),
            on_trusted=self._tend_room,
        )
        self.slots = RouterSlots(
            settings,
            make_unit=self._make_unit,
            choose_ports=choose_ports,
            point=links.point,
            move_address=move_address,
            staying=self._staying_urls,
            on_active=self._on_router,
            on_change=on_change,
            on_retired=self._reconsider,
        )
        self.roles = RoleWatch(self.name, metrics)
        self._log = ReplicaLog(self.name, metrics, self.tenures.values, lambda: self.slots.active)
        self._watcher = Watcher(
            settings,
            probe,
            self._queue,
            metrics,
            tenures=self.tenures.values,
            on_news=self._reconcile,
            on_identified=self._identified,
            on_replaced=self._replace,
            path_of=path_of,
        )

    @property
    def router(self) -> RouterProcess:
        """The router that the service address leads to."""
        return self.slots.active.router

    @property
    def book(self) -> WorkerBook:
        """What that router says of its workers."""
        return self.slots.active.book

    @property
    def routers(self) -> list[RouterProcess]:
        """All routers of the service: during a replacement there are two."""
        return [unit.router for unit in self.slots.units]

    # -- life

    def restore(self, saved: SavedTenure, *, linked: bool) -> None:
        """Takes up a tenure that an earlier daemon left: same port, and no question to an engine already known.

        Whether the occupant is still the same is decided by the first look at the source. `linked` says whether
        the bridge still leads to it.
        """
        owner = owner_of(self.name, saved.sighting, saved.generation)
        if not self.bridges.restore(saved.port, owner):
            self._logger.warning("lease.not_restored", replica=saved.sighting.replica, port=saved.port)
            return
        earlier = self._current.get(saved.sighting.replica)
        if earlier is not None and not saved.leaving:
            self._yield(earlier)
        tenure = self._begin(saved.sighting, saved.generation, gone=saved.leaving)
        tenure.port = saved.port
        tenure.peer = saved.peer
        self.bridges.ask_for_address(tenure)
        tenure.linked = linked
        tenure.drain = saved.drain
        tenure.served = True  # How long it took to serve was told by the daemon that saw it come.
        if saved.facts is not None:
            self._identified(tenure, saved.facts)
            tenure.result = Ready(saved.facts)
            self._watcher.trust_until_next(tenure)

    def prefer(self, saved: SavedTenure) -> None:
        """A replica of this name had this port before the machine was started anew: it gets it again if it can."""
        self.bridges.prefer(saved.sighting.replica, saved.port)

    def claim(self, port: int, socket: Path, linked_at_ns: int) -> bool:
        """Takes up a bridge of this service that an earlier daemon had no time to write down; False if it is none.

        A socket that was bound before the link was made is the one that it was made for.
        """
        pattern = self.settings.replicas.sockets
        replica = pattern.replica_of(socket) if pattern is not None else None
        if replica is None or ReplicaId(replica) in self._current:
            return False
        try:
            occupant = occupant_of(socket.stat())
        except OSError:
            return False
        if occupant.mtime_ns > linked_at_ns:
            return False
        sighting = Sighting(ReplicaId(replica), socket, occupant)
        self.restore(SavedTenure(sighting, 0, port, None, False), linked=True)
        return True

    async def run(self) -> None:
        """Runs the service until cancelled. What it started goes on; `router` is stopped or let go by its owner."""
        undescribed = [t for t in self.tenures.values() if not t.notes_read and not t.sighting.described]
        await self._describe([(tenure, tenure.sighting) for tenure in undescribed])
        self.slots.start()
        self.bridges.listen()
        loops = (self._reconcile_loop, self.follower.look, self.follower.follow_hints)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(keep_running(self.name, loop, self._metrics))
        finally:
            self.bridges.unlisten()
            await self.room.end()
            await self.slots.close()
            await self._watcher.close()
            for tenure in self.tenures.values():
                tenure.unpin()

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; what was observed stays."""
        self.settings = self.slots.settings = settings
        self._watcher.reconfigure(settings)
        for unit in self.slots.units:
            unit.book.reconfigure(settings.router.api_timeout_s)
        self.room.settings = settings.hold
        self._reconsider()

    def use_source(self, source: Source) -> None:
        """Learns replicas from another source from now on; those that it does not show are gone."""
        self.follower.use(source)

    def abandon(self) -> None:
        """Leaves the bridges of a service that is no more: nothing new gets in, and the ports rest until quiet."""
        for tenure in self.tenures.values():
            self.bridges.abandon(tenure)

    def stalest_beat(self) -> float:
        """When the loop that is most behind last made progress (monotonic seconds)."""
        return min(self._beat, self.follower.beat, *(unit.book.beat for unit in self.slots.watched))

    def pending_actions(self) -> list[tuple[str, str]]:
        """What the next look at each tenure would do: (replica, action). Nothing is done."""
        pending = []
        for tenure in self.tenures.values():
            view = tenure.view()
            seen = [unit.book.view(tenure.url) for unit in self.slots.watched]
            steps = [plan_occupant(view, seen), *(plan_worker(view, one) for one in seen)]
            pending += [(str(tenure.replica), describe(step)) for step in steps if step is not None]
        known = self._known_urls()
        for unit in self.slots.watched:
            strays = plan_strays(unit.book.workers, known, complete=self.follower.has_looked)
            pending += [("-", describe(step)) for step in strays]
        return pending

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return [
            SavedTenure(t.sighting, t.generation, t.port, t.facts, t.drain, t.gone or t.replaced, t.peer)
            for t in self.tenures.values()
            if t.port is not None
        ]

    # -- the source

    async def _take_in(self, listing: Listing) -> None:
        for replica, tenure in list(self._current.items()):
            if listing.is_gone(replica, tenure.sighting.source):
                self._miss(tenure, listing)
        self._end_yielding()
        undescribed = []
        for sighting in listing.present.values():
            current = self._current.get(sighting.replica)
            if current is not None and current.sighting.occupant != sighting.occupant:
                self._supplant(current, sighting)
                current = None
            if current is None:
                current = self._begin(sighting, self._fresh_generation(sighting))
            elif current.address is None:
                self._pin(current)
            if not current.notes_read or not current.sighting.says_as_much_as(sighting):
                undescribed.append((current, sighting))
        await self._describe(undescribed)

    async def _describe(self, undescribed: list[tuple[Tenure, Sighting]]) -> None:
        """Reads what was written beside sockets; where the disk hangs the next look tries again."""
        for tenure, sighting in sorted(undescribed, key=lambda pair: pair[1].notes is not None):
            if not await self._read_notes(tenure, sighting):
                return

    def _fresh_generation(self, sighting: Sighting) -> int:
        """A socket that came back, the same inode, is a new stay: its old one may still be draining."""
        same = (t.generation for t in self.tenures.values() if t.sighting.occupant == sighting.occupant)
        return max(same, default=-1) + 1

    def _begin(self, sighting: Sighting, generation: int, *, gone: bool = False) -> Tenure:
        now = time.monotonic()
        tenure = Tenure(
            key=next(self._keys),
            owner=owner_of(self.name, sighting, generation),
            generation=generation,
            replica=sighting.replica,
            sighting=sighting,
            seen_at=now,
            pin=None,
            state_since=now,
            host=self._host,
            gone=gone,
            notes_read=sighting.notes is None and not sighting.described,
        )
        self.tenures[tenure.key] = tenure
        if not gone:
            self._pin(tenure)
            self._current[tenure.replica] = tenure
        self._queue.add(tenure.key)
        self._log.begun(tenure)
        return tenure

    def _pin(self, tenure: Tenure) -> None:
        if tenure.sighting.tunnel is not None:
            return
        try:
            pin = os.open(tenure.sighting.socket, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            tenure.problem = f"cannot open {tenure.sighting.socket}: {error.strerror}"
            return
        if occupant_of(os.fstat(pin)) != tenure.sighting.occupant:
            os.close(pin)  # Replaced since the look: the next one begins a new tenure.
            self.follower.look_soon()
            return
        tenure.pin = pin
        tenure.problem = None
        self._queue.add(tenure.key)

    async def _read_notes(self, tenure: Tenure, sighting: Sighting) -> bool:
        """False if the file does not come in time: what was known of the tenure stays."""
        try:
            overrides, problem = sighting.overrides or Overrides(), None
            if sighting.notes is not None:
                read = partial(self._read_overrides, sighting.notes[0])
                overrides = await self._notes_thread.run(read, patience_s=_NOTES_PATIENCE_S)
        except ConfigError as error:
            overrides, problem = tenure.overrides, error.problems[0]
            self._logger.error("replica.notes_refused", replica=tenure.replica, problems=error.problems)
        except TimeoutError:
            if not tenure.notes_read:
                tenure.notes_problem = "the file system of its .yaml does not answer"
                self._queue.add(tenure.key)
            return False
        tenure.sighting, tenure.notes_read, tenure.notes_problem = sighting, True, problem
        if problem is None and overrides.peer != tenure.peer and not tenure.gone:
            tenure = self._move(tenure, overrides.peer)
        tenure.overrides = overrides
        self._queue.add(tenure.key)
        return True

    def _move(self, tenure: Tenure, peer: PeerAddress | None) -> Tenure:
        """The replica is advertised under another address: a new stay, if a router knows of this one."""
        if not any(w.worker is not None or w.busy for w in self._seen(tenure).values()):
            if tenure.url is not None and self._by_url.get(tenure.url) is tenure:
                del self._by_url[tenure.url]
            self.bridges.readdress(tenure, peer)
            self._know_url(tenure)
            return tenure
        self._logger.info("replica.moved", replica=tenure.replica, worker_url=tenure.url, advertise=str(peer or "-"))
        tenure.replaced = tenure.moved = True
        successor = self._begin(tenure.sighting, tenure.generation + 1)
        successor.peer, successor.notes_read = peer, True
        successor.drain = tenure.drain
        successor.result = tenure.result
        if isinstance(tenure.result, Ready):
            self._watcher.trust_until_next(successor)
        if tenure.facts is not None:
            self._identified(successor, tenure.facts)
        tenure.unpin()
        self._queue.add(tenure.key)
        return successor

    def _lose(self, tenure: Tenure) -> None:
        tenure.gone, tenure.yielding = True, False
        self._yielding.pop(tenure.key, None)
        if self._current.get(tenure.replica) is tenure:
            del self._current[tenure.replica]
        if tenure.probe is not None:
            tenure.probe.cancel()
        tenure.unpin()
        self._reconcile(tenure)  # At once: every millisecond may cost a request.

    def _supplant(self, tenure: Tenure, by: Sighting) -> None:
        """Somebody else is the replica now. Where it was only sent elsewhere, its old place serves until the new does.

        Two cannot have one advertised address, so there the old one goes first.
        """
        has_address = tenure.peer is not None or (by.overrides is not None and by.overrides.peer is not None)
        if has_address or tenure.drain or not by.is_told_elsewhere(tenure.sighting):
            self._lose(tenure)
            return
        self._logger.info("replica.sent_elsewhere", replica=tenure.replica, worker_url=tenure.url, to=str(by.socket))
        self._yield(tenure)

    def _miss(self, tenure: Tenure, listing: Listing) -> None:
        """Its source does not show the replica any more, unless it says that it will be somewhere else."""
        source, place = listing.absent.get(tenure.replica, ("", tenure.sighting.socket))
        here = place == tenure.sighting.socket or source != tenure.sighting.source
        if here or tenure.peer is not None or tenure.drain:
            self._lose(tenure)
            return
        self._logger.info("replica.sent_elsewhere", replica=tenure.replica, worker_url=tenure.url, to=str(place))
        del self._current[tenure.replica]
        self._yield(tenure)

    def _yield(self, tenure: Tenure) -> None:
        tenure.yielding = True
        self._yielding[tenure.key] = tenure

    def _end_yielding(self) -> None:
        """Those whose replica serves elsewhere now, or is no more, have done their part."""
        for tenure in list(self._yielding.values()):
            heir, listing = self._current.get(tenure.replica), self.follower.listing
            if heir is None and listing is not None and tenure.replica in listing.absent:
                continue
            if heir is None or heir.drain or self.is_settled(heir):
                self._lose(tenure)

    def tunnels_changed(self) -> None:
        """A tunnel came up or went down: whoever is behind one that is not what it was is asked again now."""
        for tenure in self.tenures.values():
            tunnel = tenure.sighting.tunnel
            if tunnel is not None and self.path_of(tunnel).is_up is not isinstance(tenure.result, Ready):
                self._watcher.suspect(tenure)

    def measure_tunnels(self) -> None:
        """Brings the metric of the tunnels' states up to date."""
        for tenure in self._current.values():
            path = far_end_of(tenure, self.path_of)
            if path is not None:
                self._metrics.note_tunnel(self.name, tenure.replica, path.state)

    # -- the plan

    def _reconsider(self) -> None:
        for key in self.tenures:
            self._queue.add(key)

    async def _reconcile_loop(self) -> None:
        all_due = 0.0
        while True:
            now = self._beat = time.monotonic()
            if now >= all_due:
                # Whatever was missed, and whoever forgot to say so: the whole of it is looked at again.
                self._reconsider()
                all_due = now + _RECONSIDER_RESCANS * self._rescan_interval_s
            for count, key in enumerate(await self._queue.take(1.0)):
                tenure = self.tenures.get(key)
                if tenure is not None:
                    self._reconcile(tenure)
                if count % 64 == 63:
                    await asyncio.sleep(0)  # A thousand at once must not hold up what is answered meanwhile.
            self._tend_room()
            if self.book.listed:
                self.roles.look(self.book.workers.values(), time.monotonic())

    def _reconcile(self, tenure: Tenure) -> None:
        self._watcher.look_after(tenure)
        self.bridges.keep_up(tenure)
        seen = self._seen(tenure)
        self._note_settled(tenure, all(w.listed and w.worker is None and not w.busy for w in seen.values()))
        action = plan_occupant(tenure.view(), seen.values())
        match action:
            case Bridge():
                self.bridges.open(tenure)
            case Unbridge():
                self.bridges.close(tenure)
            case Release():
                self._release(tenure)
                self._ring()
                return
        view = tenure.view()
        for unit, worker in seen.items():
            step = plan_worker(view, worker)
            if unit.retiring:
                if isinstance(step, Deregister):
                    unit.dismiss(step)
            elif step is not None:
                if isinstance(step, Deregister):
                    self._tend_room()  # If it was the last one, requests have to wait before it goes.
                unit.book.start(step)
            elif tenure.url is not None and worker.held:
                self._queue.add_after(tenure.key, unit.book.held_for_s(tenure.url))
        if tenure.drain and not tenure.linked and (tenure.in_flight == 0 or tenure.port is None):
            left_s = self._handover_left_s(tenure)
            if left_s > 0:
                self._queue.add_after(tenure.key, left_s)
            else:
                self._finish_drain(tenure)
        self._log.update(tenure)
        self._ring()
        if self._yielding:
            self._end_yielding()

    def _seen(self, tenure: Tenure) -> dict[RouterUnit, WorkerView]:
        """The tenure's worker as each router knows it. A successor that is not up yet knows nobody."""
        units = [unit for unit in self.slots.units if unit is self.slots.active or unit.retiring or unit.router.up]
        return {unit: unit.view(tenure.url) for unit in units}

    def _note_settled(self, tenure: Tenure, is_out: bool) -> None:
        if tenure.leaving is None or not is_out:
            tenure.settled_at = tenure.in_flight = tenure.quiet_since = None
            tenure.drained.clear()
        elif tenure.settled_at is None:
            tenure.settled_at = time.monotonic()

    def _release(self, tenure: Tenure) -> None:
        tenure.unpin()
        del self.tenures[tenure.key]
        late_until = max((unit.book.late_until(tenure.url) for unit in self.slots.units if tenure.url), default=0.0)
        self.bridges.give_back(tenure, late_until)
        if tenure.url is not None and self._by_url.get(tenure.url) is tenure:
            del self._by_url[tenure.url]
            for unit in self.slots.units:
                unit.book.forget(tenure.url)
        self._on_change()
        tenure.drained.set()
        self._log.ended(tenure)

    def _on_router(self) -> None:
        self._metrics.router_up.labels(self.name).set(self.router.up)
        if self.router.up:
            self._router_up_at = time.monotonic()
            self._is_catching_up = True
        else:
            self.room.close(Missing.ROUTER)

    def _tend_room(self) -> None:
        """Lets requests wait while nobody can answer them, and in again when somebody can.

        A router that has just begun has to have everybody back first, or whoever it has after a while.
        """
        up_for_s = time.monotonic() - self._router_up_at
        if self.router.up and min(self.room.refused_for_s, up_for_s) > self.settings.router.api_timeout_s:
            self.router.report_unresponsive()  # What it still says on old connections is no use to anybody.
        if self.room.is_doubting or not self.book.listed or (self._is_catching_up and not self._is_complete()):
            return
        self._is_catching_up = False
        missing = missing_role(worker.worker_type for worker in self._staying_workers())
        if missing is None:
            self.room.open()
            return
        if self.room.is_open:
            present = (w for w in self.book.workers.values() if w.status is not WorkerStatus.PENDING)
            self.models = sorted({w.model_id for w in present if w.model_id})
            self._on_change()
        self.room.close(missing)

    def _staying_workers(self) -> Iterator[Registered]:
        """The workers that get requests and go on to. One that may yet turn out to be somebody's is one of them."""
        for url, worker in self.book.workers.items():
            if worker.status is WorkerStatus.READY:
                tenure = self._by_url.get(url)
                if tenure is None:
                    is_somebodys = not self.follower.has_looked or url in self._known_urls()
                    if is_somebodys:
                        yield worker
                elif tenure.leaving is None:
                    yield worker

    def _is_complete(self) -> bool:
        if time.monotonic() - self._router_up_at > MOST_PATIENCE_S:
            return True
        wanted = (t.url for t in self.tenures.values() if t.view().wanted)
        return self.follower.has_looked and all(self.slots.active.is_ready(url) for url in wanted)

    def _on_worker(self, url: str) -> None:
        tenure = self._by_url.get(url)
        if tenure is not None:
            self._queue.add(tenure.key)

    def _on_listed(self, unit: RouterUnit, first: bool) -> None:
        if first:
            self._reconsider()
        for step in plan_strays(unit.book.workers, self._known_urls(), complete=self.follower.has_looked):
            if not unit.book.view(step.url).busy:
                self._logger.warning("worker.stray", worker_url=step.url, worker_id=step.worker_id)
                unit.book.start(step)

    def _known_urls(self) -> frozenset[str]:
        known = set(self._by_url)
        for tenure in self.tenures.values():
            if tenure.facts is None and not self._watcher.is_proven_ill(tenure):
                # It has not said what it is: either kind of worker there may be this replica's, of an earlier daemon.
                known |= {url for mode in ConnectionMode if (url := tenure.url_as(mode)) is not None}
        return frozenset(known)

    def _make_unit(self, slot: str) -> RouterUnit:
        router = self._make_router(self.settings, slot)
        router.on_change.append(self._on_change)
        return RouterUnit(
            router,
            self._metrics,
            rescan_interval_s=self._rescan_interval_s,
            api_timeout_s=self.settings.router.api_timeout_s,
            on_worker=self._on_worker,
            on_listed=self._on_listed,
        )

    def _staying_urls(self) -> list[str]:
        return [t.url for t in self.tenures.values() if t.leaving is None and t.url is not None]

    # -- who is there

    def current(self, replica: ReplicaId) -> Tenure | None:
        """The stay of the replica's present occupant; None if it is not there."""
        return self._current.get(replica)

    def owner_of(self, replica: ReplicaId) -> str | None:
        """The source that has the replica, whether its socket is there or not; None if none of them knows it."""
        tenure, listing = self._current.get(replica), self.follower.listing
        if tenure is not None:
            return tenure.sighting.source
        return listing.absent[replica][0] if listing is not None and replica in listing.absent else None

    def others(self, replica: ReplicaId, tenure: Tenure | None) -> int:
        """How many further stays of the replica are not over yet."""
        return sum(t.replica == replica and t is not tenure for t in self.tenures.values())

    def is_settled(self, tenure: Tenure) -> bool:
        """Whether it serves, and the router knows it as it is described now."""
        if tenure.state is not ReplicaState.SERVING or tenure.url is None:
            return False
        seen = self.book.view(tenure.url)
        return not seen.busy and plan_worker(tenure.view(), seen) is None

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came to hold within `timeout_s` seconds; asked again whenever something was planned."""
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    bell.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LISTEN_S):
                            await bell.wait()
        except TimeoutError:
            return condition()
        finally:
            self._bells.discard(bell)
        return True

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    def _identified(self, tenure: Tenure, facts: EngineFacts) -> None:
        tenure.facts = facts
        self._know_url(tenure)
        self._on_change()

    def _know_url(self, tenure: Tenure) -> None:
        if tenure.url is not None:
            self._by_url[tenure.url] = tenure

    def _replace(self, tenure: Tenure, result: Ready) -> None:
        """Another engine answers behind the same socket: its worker is a new one, on a port of its own."""
        if tenure.yielding:
            self._lose(tenure)
            return
        self._logger.info("replica.replaced", replica=tenure.replica, worker_url=tenure.url)
        tenure.replaced = True
        successor = self._begin(tenure.sighting, tenure.generation + 1)
        successor.overrides, successor.peer = tenure.overrides, tenure.peer
        successor.notes_read, successor.notes_problem = tenure.notes_read, tenure.notes_problem
        successor.result = result
        self._watcher.trust_until_next(successor)
        self._identified(successor, result.facts)
        tenure.unpin()

    # -- drains

    async def drain(self, replica: ReplicaId, timeout_s: float) -> DrainReport:
        """Takes a replica out of rotation; returns when nothing is in flight, or after `timeout_s` seconds.

        Raises KeyError for a replica that is not there. The replica stays out until its socket is replaced or
        `resume` is called.
        """
        tenure = self._current[replica]
        missed = tuple(self.roles.without(self.book.workers.values(), tenure.url))
        if not tenure.drain:
            tenure.drain = True
            tenure.drained.clear()
            if tenure.canary is not None:
                tenure.canary.abort()
                tenure.canary = None
            self._on_change()
            self._reconcile(tenure)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await tenure.drained.wait()
        except TimeoutError:
            self._metrics.drains.labels(self.name, "timeout").inc()
            return DrainReport(False, tenure.in_flight, time.monotonic() - began, missed)
        return DrainReport(True, 0, time.monotonic() - began, missed)

    def resume(self, replica: ReplicaId) -> None:
        """Takes a drained replica back into rotation, once it answers. Raises KeyError for one that is not there."""
        tenure = self._current[replica]
        if tenure.drain:
            tenure.result = None  # Nobody asked it while it was drained; it may be down by now.
        tenure.drain = False
        tenure.drained.clear()
        tenure.settled_at = tenure.in_flight = tenure.quiet_since = None
        self._on_change()
        self._watcher.suspect(tenure)

    def _handover_left_s(self, tenure: Tenure) -> float:
        """How long a quiet engine is still needed: vLLM's prefill answers before its KV blocks are fetched."""
        facts = tenure.facts
        hands_over = facts is not None and facts.kv_connector is not None and facts.worker_type is WorkerType.PREFILL
        if not hands_over or tenure.quiet_since is None:
            return 0.0
        return tenure.quiet_since + self.settings.drain.handover_s - time.monotonic()

    def _finish_drain(self, tenure: Tenure) -> None:
        if not tenure.drained.is_set():
            tenure.drained.set()
            self._metrics.drains.labels(self.name, "drained").inc()
            self._logger.info("replica.drained", replica=tenure.replica)

    def places_to_count(self) -> set[int | PeerAddress]:
        """Bridge ports and advertised addresses whose open connections decide what happens next."""
        waiting = (
            t.counted_at
            for t in self.tenures.values()
            if t.settled_at is not None and t.leaving is not Why.UNREACHABLE and t.in_flight != 0
        )
        return set().union(*waiting)

    def connections_counted(
        self, began: float, counted: Container[int | PeerAddress], counts: Mapping[int | PeerAddress, int]
    ) -> None:
        """Takes note of a count, begun at `began`, of the open connections at the places `counted`."""
        for tenure in self.tenures.values():
            places = tenure.counted_at
            if (
                places
                and all(place in counted for place in places)
                and tenure.settled_at is not None
                and tenure.settled_at <= began
            ):
                tenure.in_flight = sum(counts.get(place, 0) for place in places)
                if tenure.in_flight == 0 and tenure.quiet_since is None:
                    tenure.quiet_since = began
                self._queue.add(tenure.key)
