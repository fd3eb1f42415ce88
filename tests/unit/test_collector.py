"""The signals of all services, read round by round in fake time from routers and engines that are played."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.autoscaling import collector
from gateway_sidecar.control.autoscaling.collector import MOST_ENGINES, Signals
from gateway_sidecar.control.replicas.tenure import Notes, Probed, Status
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    ReplicaId,
    ReplicaState,
    WorkerType,
)
from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.engines.engine_metrics import EngineReading
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.routers.base import RouterPorts, RouterReading
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import run_forever
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import beside, in_fake_time

EVENTS = EventAddress(4711, "ab12" * 6)


class PlayedEngines:
    """Engines' metrics pages, by address."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fault: MetricsError | None = None
        self.takes_s = 0.1

    async def page(self, address: str, facts: EngineFacts, access: Access, *, timeout_s: float) -> bytes:
        self.asked.append(address)
        await asyncio.sleep(self.takes_s)
        if self.fault is not None:
            raise self.fault
        return b"page of " + address.encode()

    def read(self, page: bytes, facts: EngineFacts) -> EngineReading:
        return EngineReading({0.1: 1.0}, {})


class PlayedPages:
    """Routers' metrics pages."""

    def __init__(self) -> None:
        self.reads: list[float] = []
        self.fault: MetricsError | None = None
        self.are_open = False

    def open(self) -> PlayedPages:
        self.are_open = True
        return self

    async def read(self, url: str, timeout_s: float) -> bytes:
        assert self.are_open
        self.reads.append(asyncio.get_running_loop().time())
        if self.fault is not None:
            raise self.fault
        return b""

    async def close(self) -> None:
        self.are_open = False


class Reader(OwnThread):
    """Its thread."""

    has_ended = False

    def end(self) -> None:
        self.has_ended = True

    async def run(self, work: Callable[[], Any], *, patience_s: float) -> Any:
        assert not self.has_ended
        return work()


class PlayedListener:
    """Takes the events that the test sends."""

    def __init__(self) -> None:
        self.address: EventAddress | None = None
        self.fault: OSError | None = None
        self.lost = 0
        self.take: Any = None

    def listen(self, address: EventAddress | None) -> None:
        if self.fault is not None:
            raise self.fault
        self.address = address

    def close(self) -> None:
        self.address = None


class Replica:
    """As much of a tenure as is looked at."""

    def __init__(self, key: int, mode: ConnectionMode = ConnectionMode.HTTP) -> None:
        self.key, self.replica, self.address = key, ReplicaId(f"r{key}"), f"/r{key}.sock"
        self.urls = {f"http://a:{key}": None}
        self.notes, self.status = Notes(), Status(ReplicaState.SERVING)
        self.probe = Probed(EngineFacts("vllm", mode, WorkerType.REGULAR))
        self.gone, self.leaving, self.seen_at = False, None, 0.0


class Site:
    """One service, its router and its engines, and the loop that reads their signals."""

    def __init__(self, patch: pytest.MonkeyPatch, replicas: int) -> None:
        self.engines, self.pages, self.listener = PlayedEngines(), PlayedPages(), PlayedListener()
        patch.setattr(collector, "EngineMetrics", lambda: self.engines)
        patch.setattr(collector, "MetricsPages", self.pages.open)
        patch.setattr(collector, "OwnThread", Reader)
        patch.setattr(collector, "EventListener", self._listening)
        self.in_flight = 0.0
        self.answered: list[str] = []
        self.active: dict[str, float] = {}
        self.requests: dict[str, float] = {}
        self.router = SimpleNamespace(
            up=True, ports=RouterPorts(23001, 23002), slot="chat", pid=7, setup=SimpleNamespace(read_metrics=self._say)
        )
        self.service = self.add("chat", replicas)
        self.services = {"chat": self.service}
        self.events: EventAddress | None = EVENTS
        self.is_leaving = False
        self.metrics = Metrics()
        self.log: list[Any] = []
        self.signals = Signals(lambda: self.services, lambda: self.events, lambda: self.is_leaving, self.metrics)

    def add(self, name: str, replicas: int) -> Any:
        return SimpleNamespace(
            name=name, tenures={key: Replica(key) for key in range(replicas)},
            settings=SimpleNamespace(scaling=None), hold=SimpleNamespace(waiting=0, missing=None),
            has_looked=True, note_answer=self.answered.append, routers=[self.router],
        )  # fmt: skip

    def work(self, *keys: int) -> None:
        """These replicas had requests."""
        for key in keys:
            url = f"http://a:{key}"
            self.requests[url] = self.requests.get(url, 0.0) + 1

    def _say(self, _: bytes) -> RouterReading:
        return RouterReading(self.in_flight, dict(self.active), dict(self.requests), {}, {})

    def _listening(self, take: Any) -> PlayedListener:
        self.listener.take = take
        return self.listener


@asynccontextmanager
async def site(patch: pytest.MonkeyPatch, replicas: int = 1) -> AsyncIterator[Site]:
    with capture_logs() as log:
        made = Site(patch, replicas)
        made.log = log
        async with beside(made.signals.run()):
            yield made


@in_fake_time
async def test_routers_are_read_every_second_and_every_ten_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ended, nothing is in flight and nobody waits, nothing has changed."""
    async with site(monkeypatch) as it:
        await asyncio.sleep(100)
        assert 9 <= len(it.pages.reads) <= 11
        it.in_flight = 1.0
        await asyncio.sleep(20)
        it.pages.reads.clear()
        await asyncio.sleep(100)
        assert 80 <= len(it.pages.reads) <= 100
        it.in_flight = 0.0
        await asyncio.sleep(20)
        it.pages.reads.clear()
        it.listener.take(RequestEnd("chat", 200, 0.1))
        await asyncio.sleep(1.5)
        assert len(it.pages.reads) == 1, "a request that ended is news"


@in_fake_time
async def test_engines_that_had_nothing_to_do_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, so that its first work is not lost; then those that worked."""
    async with site(monkeypatch, 3) as it:
        await asyncio.sleep(60)
        assert sorted(it.engines.asked) == ["/r0.sock", "/r1.sock", "/r2.sock"]
        it.engines.asked.clear()
        it.work(1)
        await asyncio.sleep(60)
        assert it.engines.asked == ["/r1.sock"]


@in_fake_time
async def test_of_many_engines_only_so_many_are_read_in_a_round_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read before tells what came since; another engine's first page tells nothing."""
    async with site(monkeypatch, 100) as it:
        await asyncio.sleep(2)
        first = list(it.engines.asked)
        assert len(first) == MOST_ENGINES
        for _ in range(5):
            it.engines.asked.clear()
            it.work(*range(100))
            it.in_flight = 1.0
            await asyncio.sleep(10)
        assert sorted(it.engines.asked[:MOST_ENGINES]) == sorted(first)


@in_fake_time
async def test_engines_that_cannot_say_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch) as it:
        it.service.tenures[1] = Replica(1, ConnectionMode.GRPC)
        await asyncio.sleep(30)
        assert it.engines.asked == ["/r0.sock"]
        assert not it.signals.may_have_a_page(it.service.tenures[1])


@in_fake_time
async def test_what_is_wrong_is_told_for_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's, a router's; each one's own."""
    async with site(monkeypatch) as it:
        it.engines.fault = it.pages.fault = MetricsError("no answer")
        await asyncio.sleep(12)
        signals = it.signals.of["chat"]
        assert signals.router_problem == "no answer"
        assert signals.engine_problems == {ReplicaId("r0"): "no answer"}
        it.engines.fault = it.pages.fault = None
        it.work(0)
        await asyncio.sleep(40)
        assert signals.router_problem is None
        assert signals.engine_problems == {}
        it.router.up = False
        await asyncio.sleep(20)
        assert signals.router_problem == "no router answers"


@in_fake_time
async def test_a_router_that_hangs_says_of_no_engine_that_requests_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for the router: an engine that it held up for long enough was taken for dead."""
    async with site(monkeypatch) as it:
        it.in_flight, it.active = 1.0, {"http://a:0": 1.0}
        await asyncio.sleep(12)
        assert it.signals.active_on("chat", "http://a:0") == 1
        it.pages.fault = MetricsError("no answer")
        await asyncio.sleep(2)
        assert it.signals.active_on("chat", "http://a:0") == 0
        it.pages.fault = None
        await asyncio.sleep(2)
        assert it.signals.active_on("chat", "http://a:0") == 1


@in_fake_time
async def test_a_round_that_takes_long_is_not_joined_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch, 2) as it:
        it.engines.takes_s = 60.0
        it.in_flight = 1.0
        await asyncio.sleep(50)
        assert len(it.pages.reads) == 1
        assert len(it.engines.asked) == 2
        it.engines.takes_s = 0.1
        await asyncio.sleep(30)
        assert len(it.pages.reads) >= 3, "and then it goes on"


@in_fake_time
async def test_after_a_fault_of_our_own_pages_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over connections and in a thread of the new run: those of the last one are closed."""
    with capture_logs():
        it = Site(monkeypatch, 1)
        services = it.services
        async with beside(run_forever("-", it.signals.run, it.metrics)):
            await asyncio.sleep(30)
            it.services = cast("Any", None)
            await asyncio.sleep(5)
            assert not it.pages.are_open
            it.services, it.in_flight = services, 1.0
            it.pages.reads.clear()
            await asyncio.sleep(30)
            assert len(it.pages.reads) > 10
            assert it.signals.of["chat"].in_flight(awake.monotonic()) == 1.0


@in_fake_time
async def test_nginx_is_listened_to_where_it_sends_and_who_cannot_listen_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What nobody tells is not counted as quiet."""
    async with site(monkeypatch) as it:
        await asyncio.sleep(1)
        assert it.listener.address == EVENTS
        assert it.signals.of["chat"].traffic is not None
        it.events = None
        await asyncio.sleep(30)
        assert "was started by an earlier version" in str(it.signals.events_problem)
        assert it.signals.of["chat"].traffic is None
        it.events, it.listener.fault = EVENTS, OSError(98, "Address already in use")
        await asyncio.sleep(30)
        assert it.signals.events_problem == "cannot listen for nginx's events: Address already in use"
        assert [each["event"] for each in it.log] == ["signals.no_events"] * 2
        it.listener.fault = None
        await asyncio.sleep(1)
        assert it.signals.events_problem is None


@in_fake_time
async def test_services_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same name that was made anew begins anew; of one that went nothing is exported any more."""
    async with site(monkeypatch) as it:
        await asyncio.sleep(1)
        first = it.signals.of["chat"]
        it.services = {"chat": it.add("chat", 1), "code": it.add("code", 1)}
        await asyncio.sleep(1)
        assert it.signals.of.keys() == {"chat", "code"}
        assert it.signals.of["chat"] is not first
        await asyncio.sleep(20)
        assert any("code" in labels for labels in it.metrics.request_rate._metrics)
        it.services = {"chat": it.services["chat"]}
        await asyncio.sleep(20)
        assert it.signals.of.keys() == {"chat"}
        assert not any("code" in labels for labels in it.metrics.request_rate._metrics)


@in_fake_time
async def test_what_is_not_known_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch) as it:
        it.events = None
        await asyncio.sleep(30)
        rate = it.metrics.request_rate.labels("chat", "all", "60s")
        assert math.isnan(rate._value.get())
        it.events = EVENTS
        await asyncio.sleep(1)
        for _ in range(60):
            it.listener.take(RequestEnd("chat", 200, 0.1))
            await asyncio.sleep(1)
        await asyncio.sleep(6)
        assert rate._value.get() == pytest.approx(1.0, rel=0.2)
        assert it.metrics.in_flight.labels("chat", "all")._value.get() == 0


@in_fake_time
async def test_a_replicas_page_is_read_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says that it has none is not asked about it again; one that is not there is no page."""
    async with site(monkeypatch) as it:
        await asyncio.sleep(1)
        it.engines.asked.clear()
        service = cast("Any", it.service)
        pages = await asyncio.gather(*(it.signals.replica_page(service, ReplicaId("r0")) for _ in range(5)))
        assert pages == [b"page of /r0.sock"] * 5
        assert len(it.engines.asked) == 1
        with pytest.raises(KeyError):
            await it.signals.replica_page(service, ReplicaId("r9"))
        it.engines.fault = MetricsError("the engine has no /metrics", absent=True)
        tenure = it.service.tenures[0]
        assert it.signals.may_have_a_page(tenure)
        with pytest.raises(MetricsError):
            await it.signals.replica_page(service, ReplicaId("r0"))
        assert not it.signals.may_have_a_page(tenure)
        tenure.probe.facts = None
        with pytest.raises(MetricsError, match="not identified yet"):
            await it.signals.replica_page(service, ReplicaId("r0"))


@in_fake_time
async def test_a_routers_page_needs_a_router(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(monkeypatch) as it:
        router = cast("Any", it.router)
        assert await it.signals.router_page(router) == b""
        router.ports = None
        with pytest.raises(MetricsError, match="does not run"):
            await it.signals.router_page(router)
