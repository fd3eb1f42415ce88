"""The loop of one service: observe -> plan -> execute, again and again, for whatever may have changed.

Everything here is level-triggered: a key in the queue means "look at this tenure again", and what to do follows
from what is observed then. Probes, the router's answers and the source only change what is observed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.hold.policy import HoldPolicy
from gateway_sidecar.control.hold.queue import Gates, HoldQueue
from gateway_sidecar.control.replicas.bridging import Bridging, Keys, Links, Peers
from gateway_sidecar.control.replicas.drain import Drains
from gateway_sidecar.control.replicas.lifecycle import Lifecycle
from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.replicas.prober import PathOf, Probe, Prober, far_end_of
from gateway_sidecar.control.replicas.reflector import Reflector, Source
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.replicas.tenure import (
    Bridged,
    BridgeHosts,
    Draining,
    Probed,
    SavedTenure,
    Tenure,
    occupant_of,
    owner_of,
)
from gateway_sidecar.control.replicas.workqueue import WorkQueue
from gateway_sidecar.control.routers.process import PrivatePorts, RouterProcess
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.control.routers.workers import WorkerSync
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import (
    Overrides,
    Ready,
    ReplicaId,
)
from gateway_sidecar.domain.planning import (
    Bridge,
    Deregister,
    Missing,
    Release,
    Unbridge,
    describe,
    plan_occupant,
    plan_orphans,
    plan_worker,
)
from gateway_sidecar.sources.build import claim_of
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks, run_forever
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RECONSIDER_RESCANS = 5
_LISTEN_S = 0.2
_STRETCH = 64
"""So many replicas are looked at before others get their turn: about 5 ms of a thousand that came at once."""


class Switches(Links, Gates, Protocol):
    """nginx, as one service has it: where bridges lead, whether requests wait, and which router they go to."""

    def point(self, service: str, slot: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ServiceAdapters:
    """What a service reaches the world through.

    hosts: where bridges listen.
    make_router: a router for a slot, not started yet.
    read_overrides: reads a `<replica>.yaml` for a socket of this owner. Raises ConfigError.
    path_of: how a tunnel is.
    move_address: makes nginx serve the service's address as it is now.
    """

    source: Source
    probe: Probe
    switches: Switches
    leases: PortLeases
    peers: Peers
    keys: Keys
    hosts: BridgeHosts
    make_router: Callable[[ServiceSettings, str], RouterProcess]
    private_ports: PrivatePorts
    read_overrides: Callable[[Path, int], Overrides]
    path_of: PathOf
    move_address: Callable[[], Awaitable[None]]


class Service:
    """One service of the daemon: its source, its tenures, its router's workers.

    on_change: called when there is something new to write down.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        outside: ServiceAdapters,
        metrics: Metrics,
        *,
        rescan_interval_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self._make_router = outside.make_router
        self._metrics = metrics
        self._rescan_interval_s = rescan_interval_s
        self.path_of = outside.path_of
        self._on_change = on_change
        self._logger = get_logger(service=settings.name)
        self._queue: WorkQueue[int] = WorkQueue(awake.monotonic)
        self._tenures = Registry()
        self.bridges = Bridging(
            self.name,
            links=outside.switches,
            leases=outside.leases,
            peers=outside.peers,
            keys=outside.keys,
            queue=self._queue,
            tenures=self._tenures.by_key.values,
            on_url=self._tenures.know_url,
            on_change=on_change,
        )
        self._beat = awake.now()
        self.reflector = Reflector(
            self.name,
            outside.source,
            metrics,
            rescan_interval_s=rescan_interval_s,
            take_in=lambda listing: self._lifecycle.take_in(listing),
        )
        self._bells: set[asyncio.Event] = set()
        self.room = HoldQueue(
            self.name,
            settings.hold,
            outside.switches,
            metrics,
            accepts=lambda: self.router.accepts_connections(),
            on_trusted=lambda: self.hold_policy.tend(),
        )
        self.slots = RouterSlots(
            settings,
            Tasks(settings.name, metrics),
            make_unit=self._make_unit,
            private_ports=outside.private_ports,
            point=outside.switches.point,
            move_address=outside.move_address,
            staying=self._staying_urls,
            has_caught_up=lambda: self.room.missing is not Missing.ROUTER,
            on_active=self._on_router,
            on_change=on_change,
            on_retired=self._reconsider,
        )
        self.roles = Pairing(self.name, metrics)
        self._log = Reporting(self.name, metrics, self._tenures, self.slots)
        self._prober = Prober(
            settings,
            outside.probe,
            self._queue,
            metrics,
            tenures=self._tenures.by_key.values,
            path_of=outside.path_of,
        )
        self._lifecycle = Lifecycle(
            self.name,
            outside.hosts,
            self._tenures,
            queue=self._queue,
            bridges=self.bridges,
            prober=self._prober,
            reflector=self.reflector,
            log=self._log,
            read_overrides=outside.read_overrides,
            slots=self.slots,
            on_change=on_change,
        )
        self.drains = Drains(
            self.name,
            settings.drain,
            self._tenures,
            self._queue,
            metrics,
            roles=self.roles,
            slots=self.slots,
            on_resumed=self._prober.ask_as_new,
            on_change=on_change,
        )
        self.hold_policy = HoldPolicy(
            self.room, self.slots, self.reflector, self._tenures, known_urls=self._known_urls, on_change=on_change
        )

    @property
    def tenures(self) -> Mapping[int, Tenure]:
        """All stays that are not over, by key."""
        return self._tenures.by_key

    @property
    def router(self) -> RouterProcess:
        """The router that the service address leads to."""
        return self.slots.active.router

    @property
    def book(self) -> WorkerSync:
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
        if saved.port is not None and not self.bridges.restore(saved.port, owner):
            self._logger.warning("lease.not_restored", replica=saved.sighting.replica, port=saved.port)
            return
        earlier = self._tenures.current.get(saved.sighting.replica)
        if earlier is not None and not saved.leaving:
            self._tenures.supersede(earlier)
        facts = saved.facts
        tenure = self._lifecycle.begin(
            saved.sighting,
            saved.generation,
            gone=saved.leaving,
            probe=Probed(facts, Ready(facts) if facts is not None else None),
            bridge=Bridged(saved.port, linked=linked, peer=saved.peer),
            drain=Draining(requested=saved.drain),
            served=True,  # How long it took to serve was told by the daemon that saw it come.
        )
        self.bridges.ask_for_address(tenure)

    def prefer(self, saved: SavedTenure) -> None:
        """A replica of this name had this port before the machine was started anew: it gets it again if it can."""
        if saved.port is not None:
            self.bridges.prefer(saved.sighting.replica, saved.port)

    def claim(self, port: int, socket: Path, linked_at_ns: int) -> bool:
        """Takes up a bridge of this service that an earlier daemon had no time to write down; False if it is none.

        A socket that was bound before the link was made is the one that it was made for.
        """
        claim = claim_of(self.settings, socket)
        if claim is None or claim[0] in self._tenures.current:
            return False
        try:
            occupant = occupant_of(socket.lstat())
        except OSError:
            return False
        if occupant.mtime_ns > linked_at_ns:
            return False
        replica, source = claim
        sighting = Sighting(replica, socket, occupant, source=source)
        self.restore(SavedTenure(sighting, 0, port, None, False), linked=True)
        return True

    async def run(self) -> None:
        """Runs the service until cancelled. What it started goes on; `router` is stopped or let go by its owner."""
        await self._lifecycle.describe_restored()
        self.slots.start()
        self.bridges.listen()
        loops = (self._reconcile_loop, self.reflector.look, self.reflector.follow_hints, self._prober.touch_refused)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(run_forever(self.name, loop, self._metrics))
        finally:
            self.bridges.unlisten()
            await self.room.end()
            await self.slots.close()
            await self._prober.close()
            for tenure in self._tenures:
                tenure.unpin()

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; what was observed stays."""
        self.settings = self.slots.settings = settings
        self._prober.reconfigure(settings)
        for unit in self.slots.units:
            unit.book.reconfigure(settings.router.api_timeout_s)
        self.room.settings, self.drains.settings = settings.hold, settings.drain
        self._reconsider()

    def use_source(self, source: Source) -> None:
        """Learns replicas from another source from now on; those that it does not show are gone."""
        self.reflector.use(source)

    def abandon(self) -> None:
        """Leaves the bridges of a service that is no more: nothing new gets in, and the ports rest until quiet."""
        self.slots.abandon()
        for tenure in self._tenures:
            self.bridges.abandon(tenure)

    def stalest_beat(self) -> float:
        """When the loop that is most behind last made progress (awake seconds)."""
        return min(self._beat, self.reflector.beat, *(unit.book.beat for unit in self.slots.watched))

    def pending_actions(self) -> list[tuple[str, str]]:
        """What the next look at each tenure would do: (replica, action). Nothing is done."""
        pending = []
        for tenure in self._tenures:
            view = tenure.view()
            seen = [unit.book.view(tenure.url) for unit in self.slots.watched]
            steps = [
                plan_occupant(view, seen, given_up=self.drains.has_given_up(tenure)),
                *(plan_worker(view, one) for one in seen),
            ]
            pending += [(str(tenure.replica), describe(step)) for step in steps if step is not None]
        known = self._known_urls()
        for unit in self.slots.watched:
            orphans = plan_orphans(unit.book.workers, known, complete=self.reflector.has_looked)
            pending += [("-", describe(step)) for step in orphans]
        return pending

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return self._tenures.saved()

    # -- tunnels

    def tunnels_changed(self) -> None:
        """A tunnel came up or went down: whoever is behind one that is not what it was is asked again now."""
        for tenure in self._tenures:
            tunnel = tenure.sighting.tunnel
            if tunnel is not None and self.path_of(tunnel).is_up is not isinstance(tenure.probe.result, Ready):
                self._prober.suspect(tenure)

    def measure_tunnels(self) -> None:
        """Brings the metric of the tunnels' states up to date."""
        for tenure in self._tenures.current.values():
            path = far_end_of(tenure, self.path_of)
            if path is not None:
                self._metrics.note_tunnel(self.name, tenure.replica, path.state)

    # -- the plan

    def _reconsider(self) -> None:
        for key in self._tenures.by_key:
            self._queue.add(key)

    async def _reconcile_loop(self) -> None:
        all_due, stretch = 0.0, 0
        while True:
            now = self._beat = awake.now()
            if now >= all_due:
                # Whatever was missed, and whoever forgot to say so: the whole of it is looked at again.
                self._reconsider()
                all_due = now + _RECONSIDER_RESCANS * self._rescan_interval_s
            key = await self._queue.get(1.0)
            tenure = self._tenures.by_key.get(key) if key is not None else None
            if tenure is not None:
                self._reconcile(tenure)
            stretch += 1
            if self._queue.has_more() and stretch < _STRETCH:
                continue
            self.hold_policy.tend()
            if self.book.listed:
                self.roles.look(self.book.workers.values(), awake.now())
            stretch = 0
            await asyncio.sleep(0)

    def _reconcile(self, tenure: Tenure) -> None:
        if tenure.probe.other is not None and not tenure.gone:
            self._lifecycle.replace(tenure, tenure.probe.other)
        self._tenures.know_url(tenure)
        self._prober.look_after(tenure)
        self.bridges.keep_up(tenure)
        seen = self.slots.views(tenure.url)
        self.drains.note_settled(tenure, all(w.listed and w.worker is None and not w.busy for w in seen.values()))
        action = plan_occupant(tenure.view(), seen.values(), given_up=self.drains.has_given_up(tenure))
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
                    self.hold_policy.tend()  # If it was the last one, requests have to wait before it goes.
                unit.book.start(step)
            elif tenure.url is not None and worker.held:
                self._queue.add_after(tenure.key, unit.book.held_for_s(tenure.url))
        self.drains.finish_if_quiet(tenure)
        self._log.update(tenure)
        self._ring()
        if self._tenures.superseded:
            self._lifecycle.end_superseded()

    def _release(self, tenure: Tenure) -> None:
        tenure.unpin()
        url, was_its_own = tenure.url, self._tenures.remove(tenure)
        late_until = max((unit.book.late_until(url) for unit in self.slots.units), default=0.0)
        self.bridges.give_back(tenure, late_until)
        if was_its_own and url is not None:
            for unit in self.slots.units:
                unit.book.forget(url)
        self._on_change()
        tenure.drain.done.set()
        self._log.ended(tenure)

    def _on_router(self) -> None:
        self._metrics.router_up.labels(self.name).set(self.router.up)
        self.hold_policy.router_changed()

    def _on_worker(self, url: str) -> None:
        tenure = self._tenures.at_url(url)
        if tenure is not None:
            self._queue.add(tenure.key)

    def _on_listed(self, unit: RouterUnit, first: bool) -> None:
        if first:
            self._reconsider()
        elif not self.room.is_open:
            self.hold_policy.tend()  # It answers again, or has somebody again.
        for step in plan_orphans(unit.book.workers, self._known_urls(), complete=self.reflector.has_looked):
            if not unit.book.view(step.url).busy:
                self._logger.warning("worker.orphan", worker_url=step.url, worker_id=step.worker_id)
                unit.book.start(step)

    def _known_urls(self) -> frozenset[str]:
        known = set(self._tenures.urls)
        for tenure in self._tenures:
            if tenure.probe.facts is None and tenure.leaving is None and not self._prober.is_proven_ill(tenure):
                # It has not said what it is: either kind of worker there may be this replica's, of an earlier daemon.
                # One that leaves needs none, whichever it is.
                known.update(self._tenures.urls_unsaid(tenure))
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
            on_silence=lambda: self.hold_policy.tend(),
        )

    def _staying_urls(self) -> list[str]:
        return [t.url for t in self._tenures if t.leaving is None and t.url is not None]

    # -- who is there

    def current(self, replica: ReplicaId) -> Tenure | None:
        """The stay of the replica's present occupant; None if it is not there."""
        return self._tenures.current.get(replica)

    def owner_of(self, replica: ReplicaId) -> str | None:
        """The source that has the replica, whether its socket is there or not; None if none of them knows it."""
        tenure, listing = self._tenures.current.get(replica), self.reflector.listing
        if tenure is not None:
            return tenure.sighting.source
        return listing.absent[replica][0] if listing is not None and replica in listing.absent else None

    def others(self, replica: ReplicaId, tenure: Tenure | None) -> int:
        """How many further stays of the replica are not over yet."""
        return sum(t.replica == replica and t is not tenure for t in self._tenures)

    def is_settled(self, tenure: Tenure) -> bool:
        """Whether it serves, and the router knows it as it is described now."""
        return self._lifecycle.is_settled(tenure)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came to hold within `timeout_s` seconds; asked again whenever something was planned."""
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            async with within(timeout_s):
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
