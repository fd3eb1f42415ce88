"""Keeps routers in the mesh of their service (`router.mesh`).

A router that gets requests never joins a mesh by itself: it would learn of the others' workers before it has its own.
It is replaced by one that joins, which gets no request before it has every worker. So a router joins when it has come
up, when its certificate has to be renewed, when those of the others are signed by somebody that it does not know, and
when it does not see them: SMG gives up a router that it has lost for a minute, or has not found at once, so a mesh may
fall apart for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway_sidecar.control.fleet.mesh import FleetMesh, reaches
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.fleet_authority import is_due
from gateway_sidecar.domain.mesh import unconnected
from gateway_sidecar.errors import MetricsError, RouterUnavailable
from gateway_sidecar.routers.base import MeshMember
from gateway_sidecar.routers.http import MetricsPages
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger

_LOOK_S = 3.0  # A choice: ten looks at a router within `_APART_S` before it is replaced.
_PAGE_S = 2.0  # As the collector's.
_APART_S = 30.0
"""So long two routers may not see each other: one that has just joined is found within seconds."""
_AGAIN = Backoff(first_s=30.0, most_s=3600.0)


@dataclass(slots=True)
class _Standing:
    """How it stands with one service's router.

    rounds: what its metrics said when they were read last. apart_since: since when others do not see it.
    next_at: when it may be replaced again; tries: how often it was in vain. All in awake seconds.
    """

    name: str = ""
    rounds: Mapping[str, float] = field(default_factory=dict)
    apart_since: float | None = None
    next_at: float = 0.0
    tries: int = 0
    joining: asyncio.Task[None] | None = None


class MeshWatch:
    """All services' routers. `now` is the time of day: certificates end by it."""

    def __init__(
        self, services: Callable[[], Mapping[str, Service]], mesh: FleetMesh, tasks: Tasks, now: Callable[[], float]
    ) -> None:
        self._services = services
        self._mesh = mesh
        self._tasks = tasks
        self._now = now
        self._pages = MetricsPages()
        self._standing: dict[str, _Standing] = {}
        self._logger = get_logger()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            services = self._services()
            self._standing = {name: it for name, it in self._standing.items() if name in services}
            for service in services.values():
                if service.router.setup.wants_mesh:
                    await beating(self._look(service))
            # Of all services: where a reload switches the mesh on, the router in service does not want one yet.
            slots = {slot for service in self._services().values() for slot in service.slots.names}
            await beating(self._mesh.keep_only(slots))
            await awake.rest(_LOOK_S)

    def describe(self, service: Service) -> str | None:
        """How it stands with the mesh, in words; None for a service that is in none."""
        place = service.router.mesh
        if place is None:
            trouble = self._mesh.troubles.get(service.name)
            return None if not service.router.setup.wants_mesh else f"not joined{f': {trouble}' if trouble else ' yet'}"
        others = self._mesh.others(service.name)
        apart = {it.gateway for it in unconnected(self._mesh.node(place), others)}
        joined = sorted({it.gateway for it in others} - apart)
        words = [f"with {', '.join(joined)}"] if joined else []
        words += [f"not connected to {', '.join(sorted(apart))}"] if apart else []
        return "; ".join(words) or "joined, and no other gateway is"

    async def _look(self, service: Service) -> None:
        it = self._standing.setdefault(service.name, _Standing())
        if not service.router.up or (it.joining is not None and not it.joining.done()):
            return
        place = service.router.mesh
        if place is not None:
            await self._read(service, place, it)
        if not self._mesh.is_heard:
            it.apart_since = None  # Nobody would learn of a place, and what others said may be from before this one.
            return
        why = self._why_now(place) or await self._why_apart(service, place, it)
        if service.slots.is_replacing:
            return  # Its successor joins, too: another one would lose what that one knows for nothing.
        if why and service.has_looked and service.book.listed and awake.now() >= it.next_at:
            it.joining = self._tasks.spawn(self._join(service, it, why))

    def _why_now(self, place: MeshMember | None) -> str:
        if place is None:
            return "it is in no mesh yet"
        if not self._mesh.trusts_the_fleet(place):
            return "the fleet has another authority"  # As after a store that lost it: nobody else would be believed.
        return "its certificate is to be renewed" if is_due(place.ends, self._now()) else ""

    async def _why_apart(self, service: Service, place: MeshMember | None, it: _Standing) -> str:
        """Of two that do not see each other the later one by name joins again: at the first that it reaches."""
        apart = [] if place is None else unconnected(self._mesh.node(place), self._mesh.others(service.name))
        if not apart:
            it.apart_since = None
            if place is not None and awake.now() >= it.next_at:
                it.tries = 0
            return ""
        it.apart_since = awake.now() if it.apart_since is None else it.apart_since
        if awake.now() - it.apart_since < _APART_S:
            return ""
        earlier = [node for node in apart if node.name < self._mesh.node(place).name] if place is not None else []
        reached = [node.gateway for node in earlier if await reaches(node.address)]
        return f"it is not connected to {', '.join(reached)}" if reached else ""

    async def _read(self, service: Service, place: MeshMember, it: _Standing) -> None:
        """Which routers this one exchanges something with, since the last time."""
        ports = service.router.ports
        assert ports is not None
        try:
            page = await self._pages.read(ports.metrics_url, _PAGE_S)
        except MetricsError:
            return
        rounds = service.router.setup.read_mesh(page)
        before, it.rounds = (it.rounds if it.name == place.name else {}), rounds
        it.name = place.name
        self._mesh.note_seen(place, frozenset(name for name, count in rounds.items() if count > before.get(name, 0.0)))

    async def _join(self, service: Service, it: _Standing, why: str) -> None:
        it.tries += 1
        it.apart_since = None
        self._logger.info("mesh.joining", service=service.name, reason=why)
        try:
            await service.slots.replace(only_in_mesh=True)
        except RouterUnavailable as error:
            self._logger.warning("mesh.not_joined", service=service.name, reason=str(error))
        else:
            place = service.router.mesh
            if place is not None:
                self._logger.info("mesh.joined", service=service.name, address=place.address, peer=place.peer or None)
        it.next_at = awake.now() + _AGAIN.delay_s(it.tries)
