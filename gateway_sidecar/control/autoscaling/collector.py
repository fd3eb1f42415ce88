"""Reads the signals of all services, round by round.

Reading is bounded: each router every second; of each service's engines `MOST_ENGINES` at the most, every ten
seconds, and only those that had something to do. nginx's events come by themselves (`nginx/access_events.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, cast

from gateway_sidecar.control.autoscaling.hook import ScalingHook
from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals, Told
from gateway_sidecar.control.autoscaling.shared_reads import SharedReads
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.domain.signals import WINDOWS_S, Outcome, RequestEnd
from gateway_sidecar.engines.engine_metrics import EngineMetrics, says_latency, why_no_metrics
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.nginx.access_events import BRIDGES, EventAddress, EventListener
from gateway_sidecar.routers.base import RouterSetup
from gateway_sidecar.routers.http import MetricsPages
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import cancelled, heartbeat
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

MOST_ENGINES = 16  # A choice: of pages of up to 4 MiB that one thread reads, before the next round begins.
_ROUND_S = 1.0
"""A choice: an engine that does no work is to be found within seconds. Where pages take long, the next line counts."""
_ROUND_TAKES = 20
"""A round begins after so many times what the last one took, so that large fleets' pages cost no more of the time."""
_REST_S = 10.0
"""The pause between rounds while nobody asks anything."""
_ENGINES_S = 10.0  # Three times in the shortest window (`WINDOWS_S`).
_LISTEN_S = 1.0
"""Four ticks of the daemon's clock: what services and their event sockets have become is seen within it."""
_PATIENCE_S = 2.0  # A choice: a page that takes longer than two rounds says little of now.
_PAGE_PATIENCE_S = 8.0
"""Less than the 10 s that Prometheus waits for a scrape by default: it gets the error, and not silence."""
_READ_PATIENCE_S = 10.0
"""For a page that was received, and for those of others that are read before it."""
_UNKNOWN = math.nan

T = TypeVar("T")


class Signals:
    """The signals of all services.

    events: where nginx sends its events; None while it does not.
    is_leaving: whether the gateway is. That it has few requests then says nothing about the replicas that are needed.
    works_alone: whether this gateway recommends by its own signals. In a fleet one does by those of all.
    """

    def __init__(
        self,
        services: Callable[[], Mapping[str, Service]],
        events: Callable[[], EventAddress | None],
        is_leaving: Callable[[], bool],
        metrics: Metrics,
        *,
        works_alone: bool = True,
    ) -> None:
        self._is_leaving = is_leaving
        self._works_alone = works_alone
        self._services = services
        self._events = events
        self._metrics = metrics
        self._engines = EngineMetrics()
        self._logger = get_logger()
        self._listener = EventListener(self._take)
        self._pages = MetricsPages()
        self._reader = OwnThread("metrics pages")
        self._shared = SharedReads()
        self._pageless: set[int] = set()
        """Tenures whose engines said that they have no metrics."""
        self._reading: asyncio.Task[None] | None = None
        self._hooks_left: list[ScalingHook] = []
        self.of: dict[str, ServiceSignals] = {}
        self._request_began: float | None = None
        self.events_problem: str | None = None
        self._heard = False
        self._took_s = 0.0
        metrics.lost_events.set_function(lambda: self._listener.lost)

    async def run(self) -> None:
        """Runs until cancelled."""
        # Those of the last run are closed, should a fault of ours have ended it.
        self._pages, self._reader = MetricsPages(), OwnThread("metrics pages")
        last_round = last_of_engines = -_REST_S
        try:
            while True:
                heartbeat()
                now = awake.monotonic()
                self._follow_services()
                self._listen(now)
                due = last_round + (max(_ROUND_S, _ROUND_TAKES * self._took_s) if self.is_busy else _REST_S)
                if now >= due and (self._reading is None or self._reading.done()):
                    if self._reading is not None:
                        self._reading.result()  # A fault of ours shows at the loop's edge.
                    with_engines = now >= last_of_engines + _ENGINES_S
                    self._reading = asyncio.create_task(self._round(with_engines=with_engines))
                    last_of_engines = now if with_engines else last_of_engines
                    last_round, self._heard = now, False
                await awake.rest(_LISTEN_S)
        finally:
            await self._close()

    @property
    def is_busy(self) -> bool:
        """Whether something ended since the last round, is in flight or waits, or whether that is not known."""
        now = awake.monotonic()
        return self._heard or any(s.in_flight(now) != 0 or s.service.hold.waiting for s in self.of.values())

    async def replica_page(self, service: Service, replica: ReplicaId) -> bytes:
        """A replica's own metrics page; simultaneous callers share one reading. Raises KeyError for an unknown replica,
        and MetricsError.
        """
        for tenure in service.tenures.values():
            if tenure.replica == replica and not tenure.gone:
                return await self._shared.read(tenure, partial(self._engine_page, tenure, _PAGE_PATIENCE_S))
        raise KeyError(replica)

    def last_request(self) -> float | None:
        """When the youngest request began that has ended (awake seconds)."""
        return self._request_began

    def active_on(self, service: str, url: str) -> float:
        """How many requests the service's routers say to be on a worker; 0 if they do not say, or long ago.

        While a router hangs, its requests wait for it and not for their engines.
        """
        signals, now = self.of.get(service), awake.monotonic()
        if signals is None or signals.router_problem is not None or signals.router_read_at is None:
            return 0.0
        if now - signals.router_read_at > _REST_S:
            return 0.0
        return signals.active_on.get(url, 0.0)

    def may_have_a_page(self, tenure: Tenure) -> bool:
        """Whether its engine may have metrics: it has not said that there are none."""
        return (
            tenure.probe.facts is not None
            and why_no_metrics(tenure.probe.facts) is None
            and tenure.key not in self._pageless
        )

    async def router_page(self, router: Router) -> bytes:
        """A router's own metrics page. Raises MetricsError."""
        if router.ports is None:
            raise MetricsError("the router does not run, or is nginx, whose counts are in /metrics")
        url = router.ports.metrics_url
        return await self._shared.read(url, partial(self._pages.read, url, _PAGE_PATIENCE_S))

    # -- rounds

    def _follow_services(self) -> None:
        services = self._services()
        for name, signals in list(self.of.items()):
            if services.get(name) is not signals.service:
                self._hooks_left.append(self.of.pop(name).hook)
                if name not in services:
                    self._metrics.forget_service(name)  # Again: a request may have ended since the service did.
        for name in services.keys() - self.of.keys():
            self.of[name] = ServiceSignals(services[name], self._metrics)

    def _listen(self, now: float) -> None:
        address = self._events()
        problem = (
            None
            if address
            else ("nginx was started by an earlier version and reports no requests until it is restarted")
        )
        try:
            self._listener.listen(address)
        except OSError as error:
            problem = f"cannot listen for nginx's events: {error.strerror}"
        if problem != self.events_problem:
            if problem is not None:
                self._logger.error("signals.no_events", reason=problem)
            self.events_problem = problem
        for signals in self.of.values():
            signals.watch(now, is_told=self._listener.address is not None)

    def _take(self, end: RequestEnd) -> None:
        self._heard = True
        signals = self.of.get(end.service)
        if signals is not None:
            self._request_began = max(self._request_began or 0.0, awake.now() - end.took_s)
            signals.record(awake.monotonic(), end)
            outcome = Outcome.of(end.status)
            if outcome is Outcome.OK and end.is_whole:
                signals.service.note_answer(end.worker)
            elif outcome is Outcome.ERROR:
                signals.service.note_failure(end.worker)
        elif end.service == BRIDGES:
            for service in self._services().values():
                service.note_failure(end.worker, by_bridge=True)

    async def _round(self, *, with_engines: bool) -> None:
        began = awake.monotonic()
        while self._hooks_left:
            await self._hooks_left.pop().close()
        for signals in list(self.of.values()):
            signals.note_roles(awake.now())
        await asyncio.gather(*(self._read(signals, with_engines=with_engines) for signals in list(self.of.values())))
        for signals in list(self.of.values()):
            now = awake.monotonic()
            if self.of.get(signals.name) is signals and signals.name in self._services():
                if self._works_alone and not self._is_leaving():
                    signals.evaluate(now, awake.now())
                self._export(signals, now)
            await asyncio.sleep(0)  # One service's windows at a time: what is answered meanwhile is not held up.
        self._took_s = min(awake.monotonic() - began, _REST_S / _ROUND_TAKES)

    async def _read(self, signals: ServiceSignals, *, with_engines: bool) -> None:
        await self._read_routers(signals)
        if with_engines:
            await self._read_engines(signals)

    async def _read_routers(self, signals: ServiceSignals) -> None:
        readings = {}
        try:
            for router in signals.service.routers:
                if router.up and router.ports is not None:
                    page = await self._pages.read(router.ports.metrics_url, _PATIENCE_S)
                    reading = await self._off_the_loop(partial(cast("RouterSetup", router.setup).read_metrics, page))
                    readings[f"{router.slot}/{router.pid}"] = reading
                elif router.up and (counted := router.reading()) is not None:
                    readings[router.slot] = counted
        except MetricsError as error:
            signals.router_problem = str(error)
            return
        if readings:
            signals.take_routers(awake.monotonic(), readings)
        else:
            signals.router_problem = "no router answers"

    async def _read_engines(self, signals: ServiceSignals) -> None:
        serving = [t for t in signals.service.tenures.values() if t.status.state is ReplicaState.SERVING]
        candidates = [t for t in serving if t.probe.facts is not None and says_latency(t.probe.facts)]
        signals.keep_engines({t.key for t in candidates}, {t.replica for t in candidates})
        # Those that had work, and always the same ones: what was read before tells what came since. Then those that
        # were never read, so that their first work is not lost.
        due = [t for t in candidates if signals.worked_by.get(t.key) != signals.requests_to(t)]
        due.sort(key=lambda t: (t.key not in signals.worked_by, t.key))
        await asyncio.gather(*(self._read_engine(signals, tenure) for tenure in due[:MOST_ENGINES]))

    async def _read_engine(self, signals: ServiceSignals, tenure: Tenure) -> None:
        signals.worked_by[tenure.key] = signals.requests_to(tenure)
        try:
            page = await self._engine_page(tenure, _PATIENCE_S)
            assert tenure.probe.facts is not None
            reading = await self._off_the_loop(partial(self._engines.read, page, tenure.probe.facts))
        except MetricsError as error:
            signals.engine_problems[tenure.replica] = str(error)
            return
        signals.take_engine(awake.monotonic(), tenure, reading)
        if reading.ttft or reading.itl:
            signals.engine_problems.pop(tenure.replica, None)
        else:
            signals.engine_problems[tenure.replica] = "its metrics page has no latencies"

    async def _engine_page(self, tenure: Tenure, patience_s: float) -> bytes:
        if tenure.probe.facts is None or tenure.address is None:
            raise MetricsError("the engine is not identified yet")
        try:
            page = await self._engines.page(
                tenure.address, tenure.probe.facts, tenure.probe.access, timeout_s=patience_s
            )
        except MetricsError as error:
            if error.absent:
                there = {it.key for signals in self.of.values() for it in signals.service.tenures.values()}
                self._pageless = {*self._pageless & there, tenure.key}
            raise
        self._pageless.discard(tenure.key)
        return page

    async def _off_the_loop(self, read: Callable[[], T]) -> T:
        """Reads a page without holding anybody up. Raises MetricsError."""
        try:
            return await self._reader.run(read, patience_s=_READ_PATIENCE_S)
        except TimeoutError:
            raise MetricsError(f"its metrics page was not read within {_READ_PATIENCE_S:g} s") from None

    async def _close(self) -> None:
        self._listener.close()
        await cancelled(self._reading, *self._shared.tasks)
        for hook in (*self._hooks_left, *(signals.hook for signals in self.of.values())):
            await hook.close()
        await self._pages.close()
        self._reader.end()

    # -- for Prometheus

    def _export(self, signals: ServiceSignals, now: float) -> None:
        """Sets every gauge; what is not known is NaN, which is no zero."""
        name, metrics = signals.name, self._metrics
        traffic = signals.windows(now)
        for window_s in WINDOWS_S:
            window, label = traffic.get(window_s), f"{window_s}s"
            rps, errors = (window.rps, window.errors_per_s) if window else (None, None)
            metrics.request_rate.labels(name, "all", label).set(_or_nan(rps))
            metrics.error_rate.labels(name, "all", label).set(_or_nan(errors))
            took = Told(window.took, "nginx") if window and window.took else None
            self._export_latency(name, "all", "e2e", label, took)
            self._export_latency(name, "all", "ttft", label, signals.ttft(now, window_s, window))
            self._export_latency(name, "all", "engines_ttft", label, signals.engines_ttft(now, window_s, window))
            self._export_latency(name, "all", "itl", label, signals.itl(now, window_s, window))
            if len(signals.roles) > 1:
                for role in signals.roles:
                    rate = signals.role_rps(role, now, window_s)
                    metrics.request_rate.labels(name, role.value, label).set(_or_nan(rate))
                    errors = signals.role_errors_per_s(role, now, window_s)
                    metrics.error_rate.labels(name, role.value, label).set(_or_nan(errors))
                    ttft = signals.ttft(now, window_s, window, role)
                    self._export_latency(name, role.value, "ttft", label, ttft)
                    engines = signals.engines_ttft(now, window_s, window, role)
                    self._export_latency(name, role.value, "engines_ttft", label, engines)
                    self._export_latency(name, role.value, "itl", label, signals.itl(now, window_s, window, role))
        metrics.in_flight.labels(name, "all").set(_or_nan(signals.in_flight(now)))
        if len(signals.roles) > 1:
            for role in signals.roles:
                metrics.in_flight.labels(name, role.value).set(_or_nan(signals.role_in_flight(role, now)))

    def _export_latency(self, name: str, role: str, kind: str, window: str, told: Told | None) -> None:
        values = (told.latency.p50, told.latency.p90, told.latency.p99) if told else (None, None, None)
        for percentile, value in zip(("50", "90", "99"), values, strict=True):
            self._metrics.latency.labels(name, role, kind, window, percentile).set(_or_nan(value))


def _or_nan(value: float | None) -> float:
    return _UNKNOWN if value is None else value
