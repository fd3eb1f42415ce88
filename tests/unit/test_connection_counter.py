"""Connections are counted while somebody waits for a count, and what flows on them while an engine owes an answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_sidecar.control.process.connection_counter import ConnectionCounter, Kernel, count_pause_s
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.nginx.connections import Place, Sent
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
        self.owing: list[Any] = []
        self.sent: dict[tuple[Place, bytes], int] = {}
        self.read = 0
        self.busy: list[Any] = []
        prober = SimpleNamespace(owing=lambda: self.owing, note_answer=self.busy.append)
        services: Any = {"chat": SimpleNamespace(drains=drains, prober=prober)}
        self.counter = ConnectionCounter(lambda: services, self.leases, Kernel(self._count, self._read))

    def _count(self, places: Collection[Place]) -> Counter[Place]:
        self.asked.append(set(places))
        return Counter({place: self.connections[place] for place in places})

    def _read(self, _places: Collection[Place]) -> Sent:
        self.read += 1
        return dict(self.sent)

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
        assert (it.asked, it.read) == ([], 0)


@in_fake_time
async def test_who_waits_is_told_of_ports_and_of_addresses_and_when_the_count_began() -> None:
    """A connection that came after that may not be in it."""
    async with site() as it:
        await asyncio.sleep(1)
        it.places, it.connections = {PORT, PEER}, Counter({PORT: 2, PEER: 3})
        it.counter.touch()
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


@in_fake_time
async def test_an_engine_that_owes_an_answer_and_sends_bytes_is_busy_on_an_old_connection_or_a_new_one() -> None:
    """What it sent before it was watched proves nothing, and neither does what HTTP/2 sends by itself."""
    async with site() as it:
        tenure = SimpleNamespace(counted_at=frozenset({PORT}))
        it.sent = {(PORT, b"old"): 10_000}
        it.owing = [tenure]
        await asyncio.sleep(1)
        for _ in range(3):
            it.sent[PORT, b"old"] += 17  # The answer to a PING.
            await asyncio.sleep(1)
        assert it.busy == []
        it.sent[PORT, b"old"] += 30
        await asyncio.sleep(1)
        assert it.busy == [tenure]
        it.sent = {(PORT, b"new"): 200}
        await asyncio.sleep(1)
        assert it.busy == [tenure] * 2
        await asyncio.sleep(60)
        assert it.busy == [tenure] * 2


def test_counts_go_on_however_long_one_took() -> None:
    """A busy machine makes a count slow; whoever waits for the next one must not wait ten times as long."""
    assert count_pause_s(0.0) == pytest.approx(0.05)
    assert count_pause_s(0.02) == pytest.approx(0.2)
    assert count_pause_s(30.0) == pytest.approx(1.0)
