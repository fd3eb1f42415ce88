"""Connections are counted while somebody waits for a count, in fake time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_sidecar.control.process.connection_counter import ConnectionCounter, Place, count_pause_s
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import beside, in_fake_time

PORT = 24001
PEER = PeerAddress("10.0.0.5", 8000)


class Site:
    """A service that waits for counts of its `places`, and what the kernel would say."""

    def __init__(self) -> None:
        self.places: set[Place] = set()
        self.connections: Counter[Place] = Counter()
        self.leases = PortLeases(range(PORT, PORT + 2))
        self.asked: list[set[Place]] = []
        self.told: list[tuple[float, set[Place], Counter[Place]]] = []
        drains = SimpleNamespace(places_to_count=lambda: self.places, connections_counted=self._tell)
        services: Any = {"chat": SimpleNamespace(drains=drains)}
        self.counter = ConnectionCounter(lambda: services, self.leases, self._count)

    def _count(self, places: Collection[Place]) -> Counter[Place]:
        self.asked.append(set(places))
        return Counter({place: self.connections[place] for place in places})

    def _tell(self, began: float, places: set[Place], counts: Counter[Place]) -> None:
        self.told.append((began, set(places), counts))


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site()
    async with beside(made.counter.run()):
        yield made


@in_fake_time
async def test_nothing_is_counted_while_nobody_waits_for_it() -> None:
    async with site() as it:
        await asyncio.sleep(600)
        assert it.asked == []


@in_fake_time
async def test_who_waits_is_told_of_ports_and_of_addresses_and_when_the_count_began() -> None:
    """A connection that came after that may not be in it."""
    async with site() as it:
        await asyncio.sleep(1)
        it.places, it.connections = {PORT, PEER}, Counter({PORT: 2, PEER: 3})
        await asyncio.sleep(1)
        began, places, counts = it.told[0]
        assert 1.0 <= began <= 1.5
        assert places == {PORT, PEER}
        assert (counts[PORT], counts[PEER]) == (2, 3)
        assert 15 <= len(it.told) <= 20


@in_fake_time
async def test_a_port_that_rests_is_free_again_when_it_is_quiet() -> None:
    async with site() as it:
        it.leases.quarantine(PORT, awake.now() + 10)
        it.connections[PORT] = 1
        await asyncio.sleep(9)
        assert it.asked == [], "before its time nobody asks"
        await asyncio.sleep(60)
        assert it.leases.quarantined == {PORT}
        it.connections[PORT] = 0
        await asyncio.sleep(1)
        assert it.leases.quarantined == frozenset()


def test_counts_go_on_however_long_one_took() -> None:
    """A busy machine makes a count slow; whoever waits for the next one must not wait ten times as long."""
    assert count_pause_s(0.0) == pytest.approx(0.05)
    assert count_pause_s(0.02) == pytest.approx(0.2)
    assert count_pause_s(30.0) == pytest.approx(1.0)
