"""This gateway as the other gateways of its fleet see it: what they are told of it, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway_sidecar import __version__
from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals
from gateway_sidecar.control.edge.used_up import who_count
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.replicas.tenure import Presence
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.fleet import AskedDrain, DrainSeen
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import StateError
from gateway_sidecar.sources.api import NAME as API
from gateway_sidecar.supervision.loops import Loop, Tasks, cancelled
from gateway_sidecar.telemetry.dates import utc_now
from gateway_sidecar.telemetry.logs import get_logger

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet, Telling
    from gateway_sidecar.control.process.mesh_watch import MeshWatch
    from gateway_sidecar.routers.base import MeshMember

Standing = Callable[[], Mapping[str, Any]]
"""Whether this gateway takes requests (`ready`), whether it is about to stop (`leaving`), and which of its settings
others should have `alike`.
"""


class InFleet:
    """What the daemon tells. fleet: None for a gateway that works alone, which tells nobody anything.

    flush: returns once what holds now outlives this daemon. signals: what is measured of each service.
    """

    def __init__(
        self,
        fleet: Fleet | None,
        services: Services,
        standing: Standing,
        flush: Callable[[], Coroutine[Any, Any, None]],
        tasks: Tasks,
        signals: Mapping[str, ServiceSignals],
    ) -> None:
        self._signals = signals
        self._fleet = fleet
        self._services = services
        self._standing = standing
        self._flush = flush
        self._tasks = tasks
        self._since = utc_now()
        self._watch: MeshWatch | None = None

    @property
    def loops(self) -> Sequence[Loop]:
        """What keeps the fleet's part going, beside the replicas of the API."""
        return (
            ()
            if self._fleet is None
            else [*self._fleet.loops(self._telling(self._fleet)), *self._voice(self._fleet), *self._mesh(self._fleet)]
        )

    def _voice(self, fleet: Fleet) -> Sequence[Loop]:
        from gateway_sidecar.control.autoscaling.voice import ScalingVoice  # As below.

        voice = ScalingVoice(fleet.store, fleet.reflector, fleet.membership, fleet.remembered)
        return partial(voice.run, self._measures), partial(voice.mind, self._measures)

    def _mesh(self, fleet: Fleet) -> Sequence[Loop]:
        from gateway_sidecar.control.process.mesh_watch import MeshWatch  # As below.
        from gateway_sidecar.frontend.certificate import today

        self._watch = MeshWatch(self._services.by_name, fleet.mesh, self._tasks, today)
        return (self._watch.run,)

    def mesh_of(self, service: Service) -> str | None:
        """How it stands with the mesh of a service, in words; None for one that is in none."""
        return None if self._watch is None else self._watch.describe(service)

    def _measures(self) -> tuple[Mapping[str, ServiceSignals], bool]:
        return self._signals, self._standing()["leaving"]

    async def load(self) -> None:
        """Takes up what an earlier daemon knew of the store's keys and certificates; after the replicas of the API."""
        if self._fleet is not None:
            await self._fleet.keys.load()
            await self._fleet.certificates.load()
            await self._fleet.acme.load()

    def recall_ports(self, leases: Mapping[str, Any]) -> None:
        """Takes up which ports stays were told by an earlier daemon."""
        if self._fleet is None:
            return
        try:
            self._fleet.ports.recall(records.told_from_json(leases))
        except StateError as error:
            get_logger().warning("state.ignored", reason=str(error))

    def _telling(self, fleet: Fleet) -> Telling:
        from gateway_sidecar.control.fleet.fleet import Telling  # A gateway that works alone imports none of it.

        return Telling(self._described, self._says, self._sees, self._ports, self._flush, self._counts)

    async def while_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Ends what runs, by `work`. Until then the others see this gateway: it may have requests in flight."""
        if self._fleet is None:
            return await work
        seen = self._tasks.run_forever(partial(self._fleet.membership.run, self._described, self._nothing_new))
        try:
            await work
        finally:
            await cancelled(seen)

    async def close(self, *, leaves: bool) -> None:
        """Gives back the connections to the store; with `leaves` nothing of this gateway's runs any more."""
        if self._fleet is not None:
            await self._fleet.close(leaves=leaves)

    async def _nothing_new(self) -> None:
        """The loops have ended that could have learnt something."""

    def _counts(self) -> Collection[str]:
        """The services and shared addresses whose keys are of the store, and whose use is counted."""
        assert self._fleet is not None
        return [name for name, file in who_count(self._services.frontends()).items() if file == self._fleet.keys.place]

    def _described(self) -> Mapping[str, Any]:
        assert self._fleet is not None
        asked = self._fleet.drains.held
        return {
            "version": __version__,
            "since": self._since,
            "services": sorted(self._services.by_name()),
            **self._standing(),
            "challenges": self._fleet.acme.says(),
            "ports": self._fleet.ports.says().said(),
            **({"mesh": mesh} if (mesh := self._fleet.mesh.said(self._in_mesh())) else {}),
            "drains": {key: self._says(key, it).said() for key, it in asked.items()},
        }

    def _in_mesh(self) -> Mapping[str, Sequence[MeshMember]]:
        """Service -> the places of its routers. One that only finishes what it has is no loss to anybody."""
        return {
            name: [place for unit in service.slots.watched if (place := unit.router.mesh) is not None]
            for name, service in self._services.by_name().items()
        }

    def _says(self, key: str, asked: AskedDrain) -> DrainSeen:
        """What there is to say of a drain of SERVICE/REPLICA.

        A service that is not here sends nothing there; one that was removed may have something in flight yet.
        """
        name, _, replica = key.partition("/")
        service = self._services.by_name().get(name)
        if service is None:
            return DrainSeen(asked.id, not self._services.may_have_in_flight(name))
        return service.drains.says(ReplicaId(replica), asked.id)

    def _ports(self) -> Mapping[str, int]:
        """SERVICE/REPLICA -> the port that a replica of the API has here."""
        return {
            f"{name}/{it.replica}": it.bridge.port
            for name, service in self._services.by_name().items()
            for it in service.tenures.values()
            if it.presence is Presence.PRESENT and it.sighting.source == API and it.bridge.port is not None
        }

    def _sees(self) -> Mapping[str, Mapping[str, Mapping[str, int | None]]]:
        """Service -> state -> replica -> bridge port; of several stays of one replica the present one."""
        assert self._fleet is not None
        seen: dict[str, dict[str, dict[str, int | None]]] = {}
        for name, service in self._services.by_name().items():
            stays = {it.replica: it for it in service.tenures.values() if not it.gone}
            by_state = seen[name] = {}
            for replica, it in stays.items():
                by_state.setdefault(it.status.state.value, {})[replica] = it.bridge.port
            if absent := self._fleet.replicas.of(name).entries.keys() - stays.keys():
                by_state["absent"] = dict.fromkeys(absent)
        return seen
