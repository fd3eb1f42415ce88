"""The loop of one service: observe -> plan -> execute, for everything that may have changed.

Everything here is level-triggered: a key in the queue means "look at this again", and what to do follows from what is
observed then. Observers (the source, probes, routers, counts, requests to the API) only write down what they saw and
enqueue a key. Only this loop begins and ends tenures, bridges them, and has routers told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gateway_sidecar.control.replicas.bridging import Bridging
from gateway_sidecar.control.replicas.drain import Drains
from gateway_sidecar.control.replicas.endpoint_files import EndpointFiles
from gateway_sidecar.control.replicas.lifecycle import Lifecycle
from gateway_sidecar.control.replicas.liveness import LivenessConnections
from gateway_sidecar.control.replicas.notes import NotesReader
from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.control.workqueue import Key, Part, WorkerAt, WorkQueue
from gateway_sidecar.domain.planning import (
    Bridge,
    Deregister,
    Release,
    Unbridge,
    WorkerView,
    describe,
    plan_occupant,
    plan_orphans,
    plan_worker,
)
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import PAUSE_S, heartbeat, survived
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RECONSIDER_RESCANS = 15
"""To look at a thousand tenures takes 35 ms. What changes says so: this is for what was missed."""
_LISTEN_S = 0.2  # For conditions that no reconciliation brings about: a person notices no less.
_STRETCH = 64
"""So many tenures are looked at before others get their turn: about 5 ms of a thousand that came at once."""


class Gate(Protocol):
    """Whether requests go to the router, or wait. `models` are those that the service had before it fell asleep."""

    models: Sequence[str]

    @property
    def has_caught_up(self) -> bool: ...

    def decide(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Rooms:
    """What a service is made of."""

    queue: WorkQueue[Key]
    tenures: Registry
    slots: RouterSlots
    reflector: Reflector
    notes: NotesReader
    lifecycle: Lifecycle
    prober: Prober
    liveness: LivenessConnections
    bridges: Bridging
    drains: Drains
    roles: Pairing
    endpoints: EndpointFiles
    reporting: Reporting
    gate: Gate


class Controller:
    """One service's. `touch` is called when something changed that is written down.

    looks: the look at the source that was taken in last, counted as `Reflector.begun` counts them.
    """

    def __init__(self, rooms: Rooms, metrics: Metrics, *, rescan_interval_s: float, touch: Callable[[], None]) -> None:
        self._queue = rooms.queue
        self._tenures = rooms.tenures
        self._slots = rooms.slots
        self._rooms = rooms
        self._service = rooms.slots.service
        self._metrics = metrics
        self._rescan_interval_s = rescan_interval_s
        self._touch = touch
        self._logger = get_logger(service=self._service)
        self._listed: dict[RouterUnit, tuple[bool, int | None]] = {}
        self._written: object = None
        self._reconciled: set[asyncio.Event] = set()
        self.looks = 0

    async def run(self) -> None:
        """Runs until cancelled."""
        all_due = 0.0
        while True:
            heartbeat()
            if awake.now() >= all_due:
                # Whatever was missed, and whoever forgot to say so: the whole of it is looked at again.
                all_due = awake.now() + _RECONSIDER_RESCANS * self._rescan_interval_s
                self.reconsider()
            key = await self._queue.get(awake.to_tick_s(2.0))
            looked_at = 0
            while key is not None:
                self._take(key)
                looked_at += isinstance(key, int)
                key = self._queue.pop() if looked_at < _STRETCH else None
            self._look_at_the_whole()
            await asyncio.sleep(0)

    def reconcile(self, key: Key) -> float | None:
        """One look at what the key means; in how many seconds to look again, if nothing happens before.

        Safe to repeat, safe to cut. It waits for nobody.
        """
        match key:
            case Part.LISTING:
                self._take_in()
            case Part.ROUTERS:
                self._metrics.router_up.labels(self._service).set(self._slots.active.router.up)
                self._rooms.gate.decide()
                self._look_at_lists()
                return self._look_at_roles()
            case Part.WORKERS:
                self._look_at_lists()
                self._end_orphans()
                return self._look_at_roles()
            case Part.HOLD:
                self._rooms.gate.decide()
            case WorkerAt(url):
                tenure = self._tenures.at_url(url)
                if tenure is not None:
                    self._queue.add(tenure.key)
            case _:
                tenure = self._tenures.by_key.get(key)
                return None if tenure is None else self._reconcile(tenure)
        return None

    def pending(self) -> list[tuple[str, str]]:
        """What the next look at each tenure would do: (replica, action). Nothing is done."""
        pending = []
        for tenure in self._tenures:
            seen = [
                (tenure.view(url, name), unit.book.view(url))
                for url, name in _workers(tenure).items()
                for unit in self._slots.watched
            ]
            given_up = self._rooms.drains.has_given_up(tenure)
            steps = [
                plan_occupant(tenure.view(), [worker for _, worker in seen], given_up=given_up),
                *(plan_worker(view, worker) for view, worker in seen),
            ]
            pending += [(str(tenure.replica), describe(step)) for step in steps if step is not None]
        known = self._tenures.known_urls(self._rooms.prober.is_proven_ill)
        for unit in self._slots.watched:
            orphans = plan_orphans(unit.book.workers, known, complete=self._tenures.has_all)
            pending += [("-", describe(step)) for step in orphans]
        return pending

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came to hold within `timeout_s` seconds; asked again whenever something was planned."""
        reconciled = asyncio.Event()
        self._reconciled.add(reconciled)
        try:
            async with within(timeout_s):
                while not condition():
                    reconciled.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LISTEN_S):
                            await reconciled.wait()
        except TimeoutError:
            return condition()
        finally:
            self._reconciled.discard(reconciled)
        return True

    def reconsider(self) -> None:
        """Everything is looked at again."""
        for key in (*Part, *self._tenures.by_key):
            self._queue.add(key)

    def _take(self, key: Key) -> None:
        with survived(self._service, self.reconcile.__qualname__, self._metrics):
            delay_s = self.reconcile(key)
            if delay_s is not None:
                self._queue.add_after(key, delay_s)
            for reconciled in self._reconciled:
                reconciled.set()
            return
        self._queue.add_after(key, PAUSE_S)

    def _look_at_the_whole(self) -> None:
        """What follows from all tenures and workers together."""
        gate, slots = self._rooms.gate, self._slots
        gate.decide()
        if gate.has_caught_up:
            slots.note_caught_up()
        slots.compare(url for t in self._tenures if t.leaving is None for url in t.urls)
        written = (self._tenures.version, gate.models, slots.active.router.slot, slots.saved())
        if written != self._written:
            self._written = written
            self._touch()

    # -- parts

    def _take_in(self) -> None:
        listing, looks = self._rooms.reflector.listing, self._rooms.reflector.ended
        if listing is not None:
            self._rooms.lifecycle.take_in(listing)
            self._rooms.notes.look_soon()
        self.looks = looks

    def _look_at_lists(self) -> None:
        """The first list of a router, or another router, may be news for everybody."""
        before = self._listed
        listed = {
            unit: (unit.retiring, unit.book.listed_epoch or before.get(unit, (False, None))[1])
            for unit in self._slots.units
        }
        if listed != self._listed:
            self._listed = listed
            self.reconsider()

    def _look_at_roles(self) -> float | None:
        return self._rooms.roles.look(awake.now()) if self._slots.active.book.listed else None

    def _end_orphans(self) -> None:
        """Takes out the workers that nobody stands behind."""
        known = self._tenures.known_urls(self._rooms.prober.is_proven_ill)
        for unit in self._slots.watched:
            for step in plan_orphans(unit.book.workers, known, complete=self._tenures.has_all):
                if unit.book.listed and not unit.book.view(step.url).busy:
                    if self._tenures.at_base(step.url) is None:  # Else a name that it lists no more.
                        self._logger.warning("worker.orphan", worker_url=step.url, worker_id=step.worker_id)
                    unit.book.start(step)

    # -- one tenure

    def _reconcile(self, tenure: Tenure) -> float | None:
        rooms = self._rooms
        rooms.drains.follow(tenure)
        self._follow(tenure)
        rooms.prober.look_after(tenure)
        rooms.bridges.keep_up(tenure)
        seen = {url: self._slots.views(url) for url in _workers(tenure)}
        workers = [worker for by_unit in seen.values() for worker in by_unit.values()]
        is_out = all(w.listed and w.worker is None and not w.busy for w in workers)
        rooms.endpoints.note(tenure)
        told_in_s = rooms.endpoints.out_in_s(tenure)
        rooms.drains.note_out(tenure, is_out and told_in_s == 0)
        match plan_occupant(tenure.view(), workers, given_up=rooms.drains.has_given_up(tenure)):
            case Bridge():
                rooms.bridges.open(tenure)
            case Unbridge():
                rooms.bridges.close(tenure)
                if self._slots.in_mesh:
                    rooms.drains.note_unbridged(tenure)
            case Release():
                self._release(tenure)
                return None
        rooms.liveness.keep_up(tenure)
        self._tenures.note(tenure)
        tried_in_s = self._tell_routers(tenure, seen)
        drained_in_s = rooms.drains.finish_if_quiet(tenure)
        rooms.reporting.update(tenure)
        if self._tenures.superseded:
            rooms.lifecycle.end_superseded(rooms.reflector.listing)
        return soonest(rooms.bridges.retry_s(tenure), tried_in_s, drained_in_s, told_in_s or None)

    def _follow(self, tenure: Tenure) -> None:
        """Somebody else may answer behind its socket, or it may have to be known by another address."""
        if tenure.probe.other is not None and not tenure.gone:
            self._rooms.lifecycle.replace(tenure, tenure.probe.other)
        elif tenure.moves:
            known = (seen for url in _workers(tenure) for seen in self._slots.views(url).values())
            if any(seen.worker is not None or seen.busy for seen in known):
                self._rooms.lifecycle.move(tenure)
            else:
                self._rooms.bridges.readdress(tenure, tenure.notes.overrides.peer)

    def _tell_routers(self, tenure: Tenure, seen: Mapping[str | None, Mapping[RouterUnit, WorkerView]]) -> float | None:
        """Has each router told what it is to know; in how many seconds to look again."""
        tried_in_s, workers = None, _workers(tenure)
        for url, name in workers.items():
            view = tenure.view(url, name)
            for unit, worker in seen.get(url, self._slots.views(url)).items():
                step = plan_worker(view, worker)
                if unit.retiring:
                    if isinstance(step, Deregister):
                        unit.dismiss(step)
                elif step is not None:
                    if isinstance(step, Deregister):
                        self._rooms.gate.decide()  # If it was the last one, requests have to wait before it goes.
                    unit.book.start(step)
                elif url is not None:
                    tried_in_s = soonest(tried_in_s, unit.book.due_in_s(url))
        return tried_in_s

    def _release(self, tenure: Tenure) -> None:
        self._tenures.let_go(tenure)
        self._rooms.liveness.disconnect(tenure)
        urls, its_own = _workers(tenure), self._tenures.remove(tenure)
        late_until = max((unit.book.late_until(url) for unit in self._slots.units for url in urls), default=0.0)
        self._rooms.bridges.give_back(tenure, late_until)
        self._rooms.endpoints.forget(tenure)
        for unit in self._slots.units:
            for url in its_own:
                unit.book.forget(url)
        self._rooms.drains.end(tenure)
        for stay in self._tenures.of_same_engine(tenure):
            self._queue.add(stay.key)  # Whose drain may have waited for this one's requests.
        self._rooms.reporting.ended(tenure)


def _workers(tenure: Tenure) -> Mapping[str | None, str | None]:
    """Its workers by URL, or one without URL: nothing is known of it."""
    return dict(tenure.urls.items()) or {None: None}


def soonest(*delays_s: float | None) -> float | None:
    """The shortest of the delays there are."""
    return min((delay for delay in delays_s if delay is not None), default=None)
