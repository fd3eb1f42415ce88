"""One service: wires its rooms, and runs their loops beside each other.

What observes, the source, the probes, the routers, writes down what it sees and enqueues a key; the controller alone
decides what follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.hold.policy import HoldPolicy
from gateway_sidecar.control.hold.queue import HoldQueue
from gateway_sidecar.control.ports import ServiceAdapters
from gateway_sidecar.control.replicas.bridging import Bridging, Edge
from gateway_sidecar.control.replicas.controller import Controller, Rooms
from gateway_sidecar.control.replicas.drain import Drains
from gateway_sidecar.control.replicas.endpoint_files import EndpointFiles
from gateway_sidecar.control.replicas.lifecycle import Lifecycle
from gateway_sidecar.control.replicas.liveness import LivenessConnections
from gateway_sidecar.control.replicas.notes import NotesReader
from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.replicas.refused_sockets import RefusedSockets
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.replicas.restoring import Restoring
from gateway_sidecar.control.replicas.tenure import SavedTenure, Tenure
from gateway_sidecar.control.routers.replacement import RouterSlots, SlotPlaces
from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.control.routers.workers import WorkerSync
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, run_forever
from gateway_sidecar.telemetry.metrics import Metrics

_LOOK_PATIENCE_S = 1.0  # As long as a source is waited for that others wait with (`sources/listing.py`).


class Service:
    """One service of the daemon: its source, its tenures, its router's workers."""

    def __init__(
        self, settings: ServiceSettings, outside: ServiceAdapters, metrics: Metrics, *, rescan_interval_s: float
    ) -> None:
        name = settings.name
        queue: WorkQueue[Key] = WorkQueue(awake.monotonic)
        tenures = Registry(name, outside.hosts)
        places = SlotPlaces(outside.private_ports, outside.switches.point, outside.move_address)
        edge = Edge(outside.switches, outside.leases, outside.peers, outside.keys, outside.table)

        def make_unit(settings: ServiceSettings, slot: str) -> RouterUnit:
            make, timeout_s = partial(outside.make_router, settings, slot), settings.router.api_timeout_s
            return RouterUnit(make, queue, metrics, rescan_interval_s=rescan_interval_s, api_timeout_s=timeout_s)

        self.settings, self.name = settings, name
        self._metrics, self._tenures, self._queue = metrics, tenures, queue
        self.slots = RouterSlots(settings, make_unit, places, queue, Tasks(name, metrics))
        self.reflector = Reflector(name, outside.source, metrics, queue, rescan_interval_s=rescan_interval_s)
        self._notes = NotesReader(name, tenures, queue, self.reflector, outside.read_overrides)
        self.prober = Prober(settings, outside.probe, tenures, queue, outside.path_of, metrics)
        self.liveness = LivenessConnections(settings, queue, self.prober, metrics)
        self.bridges = Bridging(name, edge, tenures, queue)
        self.roles = Pairing(self.slots, metrics)
        self.drains = Drains(settings.drain, tenures, queue, self.roles, outside.asks, metrics)
        self.hold = HoldQueue(name, settings.hold, outside.switches, metrics, queue)
        self.hold_policy = HoldPolicy(self.hold, self.slots, tenures, self.prober, Tasks(name, metrics))
        reporting = Reporting(name, metrics, tenures, self.slots)
        self._lifecycle = Lifecycle(tenures, queue, self.prober, reporting, self.slots)
        self.restoring = Restoring(settings, tenures, self._lifecycle, self.bridges)
        self.endpoints = EndpointFiles(settings, tenures, queue, metrics)
        rooms = Rooms(
            queue, tenures, self.slots, self.reflector, self._notes, self._lifecycle, self.prober, self.liveness,
            self.bridges, self.drains, self.roles, self.endpoints, reporting, self.hold_policy,
        )  # fmt: skip
        self.controller = Controller(rooms, metrics, rescan_interval_s=rescan_interval_s, touch=outside.touch)

    async def run(self) -> None:
        """Runs the service until cancelled. What it started goes on; `router` is stopped or left by its owner."""
        self.slots.start()
        self.bridges.listen()
        self.drains.listen()
        refused = RefusedSockets(self._tenures, self.prober)
        loops = (self.controller.run, self.reflector.look, self.reflector.follow_hints, self._notes.run, refused.touch)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (*loops, self.endpoints.run):
                    group.create_task(run_forever(self.name, loop, self._metrics))
        finally:
            self.bridges.unlisten()
            self.drains.unlisten()
            await self.hold_policy.close()
            await self.slots.close()
            await self.prober.close()
            await self.liveness.close(self._tenures)
            for tenure in self._tenures:
                self._tenures.let_go(tenure)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; what was observed stays."""
        self.settings = settings
        self.slots.reconfigure(settings)
        self.prober.reconfigure(settings)
        self.liveness.reconfigure(settings)
        self.hold.reconfigure(settings.hold)
        self.drains.reconfigure(settings.drain)
        self.endpoints.reconfigure(settings)
        self.controller.reconsider()

    def note_answer(self, url: str) -> None:
        """The worker at this URL has answered a request."""
        if (tenure := self._tenures.at_url(url)) is not None:
            self.prober.note_answer(tenure)

    def note_failure(self, url: str, *, by_bridge: bool = False) -> None:
        """A request to the worker at this URL has failed, as its bridge says, which knows best, or somebody else."""
        if (tenure := self._tenures.at_url(url)) is not None and by_bridge is tenure.has_telling_bridge:
            self.prober.note_failure(tenure)

    def reconsider(self, tenure: Tenure) -> None:
        """Something was learnt of it."""
        self._queue.add(tenure.key)

    def abandon(self) -> None:
        """Leaves the bridges of a service that is no more: nothing new gets in, and the ports rest until quiet."""
        self.slots.abandon()
        for tenure in self._tenures:
            self.bridges.abandon(tenure)

    # -- what others see

    @property
    def tenures(self) -> Mapping[int, Tenure]:
        """All stays that are not over, by key."""
        return self._tenures.by_key

    @property
    def has_looked(self) -> bool:
        """Whether everybody who is there has been seen once."""
        return self._tenures.has_all

    @property
    def router(self) -> Router:
        """The router that the service address leads to."""
        return self.slots.active.router

    @property
    def book(self) -> WorkerSync:
        """What that router says of its workers."""
        return self.slots.active.book

    @property
    def routers(self) -> list[Router]:
        """All routers of the service: during a replacement there are two."""
        return [unit.router for unit in self.slots.units]

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return self._tenures.saved()

    def current(self, replica: ReplicaId) -> Tenure | None:
        """The stay of the replica's present occupant; None if it is not there."""
        return self._tenures.current.get(replica)

    def others(self, replica: ReplicaId, tenure: Tenure | None) -> int:
        """How many further stays of the replica are not over yet."""
        return self._tenures.others(replica, tenure)

    def owner_of(self, replica: ReplicaId) -> str | None:
        """The source that has the replica, whether its socket is there or not; None if none of them knows it."""
        tenure, listing = self._tenures.current.get(replica), self.reflector.listing
        if tenure is not None:
            return tenure.sighting.source
        return listing.absent[replica][0] if listing is not None and replica in listing.absent else None

    def is_up_to_date(self, tenure: Tenure) -> bool:
        """Whether it serves, and the router knows it as it is described now."""
        return self._lifecycle.is_up_to_date(tenure)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came to hold within `timeout_s` seconds; asked again whenever something was planned."""
        return await self.controller.until(condition, timeout_s)

    async def look_again(self) -> None:
        """Returns when a look that began after this call was taken in: who came before it is known then.

        A place that does not answer is not waited for; what was known of it stays.
        """
        before = self.reflector.begun
        self.reflector.look_soon()
        await self.controller.until(partial(self._has_looked_since, before), _LOOK_PATIENCE_S)

    def _has_looked_since(self, look: int) -> bool:
        return self.controller.looks > look
