"""Who is looked at, whose counters are read, and what the prober makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_sidecar.control.process import traffic_watch
from gateway_sidecar.control.process.traffic_watch import TrafficWatch
from gateway_sidecar.domain.model import Access, ConnectionMode, Dead, EngineFacts
from gateway_sidecar.domain.progress import Answers, Work
from tests.unit.fake_time import beside, in_fake_time


class Site:
    """One service with engines that are played, by bridge port."""

    def __init__(self, patch: pytest.MonkeyPatch, *ports: int, mode: ConnectionMode = ConnectionMode.HTTP) -> None:
        self.waiting: frozenset[int] = frozenset()
        self.looks = 0
        self.counters: tuple[float, ...] | None = (1.0,)
        self.read: list[str] = []
        self.active: dict[str, float] = {}
        self.busy = True
        self.again: list[Any] = []
        self.tenures: dict[int, Any] = {
            port: SimpleNamespace(
                bridge=SimpleNamespace(port=port), gone=False, urls={f"http://b:{port}": None}, address=f"/{port}",
                notes=SimpleNamespace(overrides=SimpleNamespace(api_key=None)), traffic=SimpleNamespace(work=Work()),
                probe=SimpleNamespace(facts=EngineFacts("vllm", mode), result=None, answers=Answers(), access=Access()),
            )
            for port in ports
        }  # fmt: skip
        service = SimpleNamespace(name="chat", tenures=self.tenures, reconsider=self.again.append)
        signals: Any = self
        services: Any = {"chat": service}
        self.watch = TrafficWatch(lambda: services, signals, self._look)
        patch.setattr(traffic_watch, "read_progress", self._read)

    @property
    def is_busy(self) -> bool:
        return self.busy

    def active_on(self, _service: str, url: str) -> float:
        return self.active.get(url, 0.0)

    def _look(self, _ports: Collection[int]) -> frozenset[int]:
        self.looks += 1
        return self.waiting

    async def _read(self, address: str, *_: object, **__: object) -> tuple[float, ...] | None:
        self.read.append(address)
        return self.counters


@asynccontextmanager
async def site(
    patch: pytest.MonkeyPatch, *ports: int, mode: ConnectionMode = ConnectionMode.HTTP
) -> AsyncIterator[Site]:
    made = Site(patch, *ports, mode=mode)
    async with beside(made.watch.run()):
        yield made


@in_fake_time
async def test_at_rest_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch, 1) as it:
        it.busy = False
        await asyncio.sleep(600)
        assert it.looks == 0


@in_fake_time
async def test_a_dead_engine_is_looked_at_also_where_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would show that it works again."""
    async with site(monkeypatch, 1, 2) as it:
        it.busy = False
        it.tenures[1].probe.result = Dead("it hangs")
        await asyncio.sleep(20)
        assert set(it.read) == {"/1"}
        assert it.tenures[1] in it.again


@in_fake_time
async def test_only_an_engine_whose_request_waits_has_its_counters_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch, 1, 2) as it:
        it.waiting = frozenset({1})
        await asyncio.sleep(20)
        assert set(it.read) == {"/1"}
        assert it.tenures[1].traffic.work.same_since < 10
        assert it.tenures[1] in it.again


@in_fake_time
async def test_a_stream_that_stands_still_is_seen_by_what_the_router_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers have come, so its connection looks as one at rest."""
    async with site(monkeypatch, 1) as it:
        await asyncio.sleep(20)
        assert it.read == []
        it.active = {"http://b:1": 1.0}
        await asyncio.sleep(20)
        assert it.read


@in_fake_time
async def test_a_connection_of_grpc_says_nothing_of_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """It carries many of them; what the router says counts."""
    async with site(monkeypatch, 1, mode=ConnectionMode.GRPC) as it:
        it.waiting = frozenset({1})
        await asyncio.sleep(20)
        assert it.read == []
        it.active = {"http://b:1": 1.0}
        await asyncio.sleep(20)
        assert it.read
