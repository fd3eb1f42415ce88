"""Counts open connections while a drain or a resting port needs the count, and what flows on them while an engine owes
an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.nginx.balance import InFlight
from gateway_sidecar.nginx.connections import Place, Sent, bytes_to_routers, connections_at, open_connections
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat

_GAP_S = 0.05  # A drain ends so much later than its last connection, at the most.
_REST_S = 1.0  # The flows of suspects are looked at as often as `traffic_watch.py` looks.
_MOST_S = 1.0  # However long a count takes, a drain does not wait longer for the next.
_FLOWS_BYTES = 64
"""More than HTTP/2 sends by itself: a PING and two WINDOW_UPDATE frames have 43 bytes. A token has more."""


def count_pause_s(took_s: float) -> float:
    """The pause after a count of connections: a tenth of the time is spent on counting, but drains wait for counts."""
    return min(max(_GAP_S, 10 * took_s), _MOST_S)


def count_connections(places: Collection[Place], hosts: Collection[str] = ()) -> Counter[Place]:
    """How many connections are open at each place, as the kernel has it. hosts: where bridges listen. Blocks."""
    found: Counter[Place] = Counter()
    found.update(open_connections(_ports(places), hosts=hosts))
    if addresses := {place for place in places if isinstance(place, PeerAddress)}:
        found.update(connections_at(addresses))
    return found


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is read from the kernel. All of it blocks."""

    count: Callable[[Collection[Place]], Counter[Place]] = count_connections
    sent: Callable[[Collection[Place]], Sent] = bytes_to_routers


def kernel_and_nginx(in_flight: InFlight, hosts: Collection[str]) -> Kernel:
    """What the kernel says, and nginx of the requests that it balances by itself: those pass no port.

    hosts: the addresses that bridges listen on.
    """

    def count(places: Collection[Place]) -> Counter[Place]:
        found = count_connections(places, hosts)
        found.update(in_flight.count(_ports(places)))
        return found

    def sent(places: Collection[Place]) -> Sent:
        flows = in_flight.flows(_ports(places))
        return {
            **bytes_to_routers(places, hosts),
            **{(port, b""): int(it) * _FLOWS_BYTES for port, it in flows.items()},
        }

    return Kernel(count, sent)


def _ports(places: Collection[Place]) -> set[int]:
    return {place for place in places if isinstance(place, int)}


class ConnectionCounter:
    """One count for all services: the kernel has one table."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, Service]],
        leases: PortLeases,
        kernel: Kernel = Kernel(),
    ) -> None:
        self._services = services
        self._leases = leases
        self._kernel = kernel
        self._due = asyncio.Event()
        self._watched: set[Place] = set()
        self._sent: Sent = {}
        """What was sent on each connection when its place was first watched, or last seen to flow."""

    def touch(self) -> None:
        """A drain may have begun."""
        self._due.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            self._due.clear()
            rested = self._leases.rested(awake.now())
            places: set[Place] = set()
            places.update(rested, *(s.drains.places_to_count() for s in self._services().values()))
            began = awake.monotonic()
            await self._watch_flows()
            if not places:
                await awake.until_set(self._due, _REST_S)
                continue
            counts = await asyncio.to_thread(self._kernel.count, places)
            for service in self._services().values():  # Some may have come or gone meanwhile.
                service.drains.connections_counted(began, places, counts)
            for port in rested:
                if counts[port] == 0:
                    self._leases.note_quiet(port, awake.now())
            await asyncio.sleep(count_pause_s(awake.monotonic() - began))

    async def _watch_flows(self) -> None:
        """An engine that sends to its router is busy, and not hung."""
        owing = [(service, tenure) for service in self._services().values() for tenure in service.prober.owing()]
        places: set[Place] = set().union(*(tenure.counted_at for _, tenure in owing))
        sent = await asyncio.to_thread(self._kernel.sent, places) if places else {}
        flowing = {
            place
            for (place, connection), number in sent.items()
            if place in self._watched and number - self._sent.get((place, connection), 0) >= _FLOWS_BYTES
        }
        still = self._watched - flowing
        self._sent = {key: self._sent.get(key, 0) if key[0] in still else number for key, number in sent.items()}
        self._watched = places
        for service, tenure in owing:
            if tenure.counted_at & flowing:
                service.prober.note_answer(tenure)
