"""Counts open connections while a drain or a resting port needs the count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.nginx.connections import connections_at, open_connections
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat

_GAP_S = 0.05
_REST_S = 0.2
_MOST_S = 1.0

Place = int | PeerAddress
"""A bridge port, or an advertised address."""


def count_pause_s(took_s: float) -> float:
    """The pause after a count of connections: a tenth of the time is spent on counting, but drains wait for counts."""
    return min(max(_GAP_S, 10 * took_s), _MOST_S)


def count_connections(places: Collection[Place]) -> Counter[Place]:
    """How many connections are open at each place, as the kernel has it. Blocks."""
    found: Counter[Place] = Counter()
    found.update(open_connections({place for place in places if isinstance(place, int)}))
    if addresses := {place for place in places if isinstance(place, PeerAddress)}:
        found.update(connections_at(addresses))
    return found


class ConnectionCounter:
    """One count for all services: the kernel has one table."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, Service]],
        leases: PortLeases,
        count: Callable[[Collection[Place]], Counter[Place]] = count_connections,
    ) -> None:
        self._services = services
        self._leases = leases
        self._count = count

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            rested = self._leases.rested(awake.now())
            places: set[Place] = set()
            places.update(rested, *(s.drains.places_to_count() for s in self._services().values()))
            began = awake.monotonic()
            if not places:
                await awake.rest(_REST_S)
                continue
            counts = await asyncio.to_thread(self._count, places)
            for service in self._services().values():  # Some may have come or gone meanwhile.
                service.drains.connections_counted(began, places, counts)
            for port in rested:
                if counts[port] == 0:
                    self._leases.note_quiet(port, awake.now())
            await asyncio.sleep(count_pause_s(awake.monotonic() - began))
