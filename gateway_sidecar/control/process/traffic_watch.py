"""Watches what moves on the bridges, and reads the counters of engines that have requests and are silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from gateway_sidecar.control.autoscaling.collector import Signals
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ConnectionMode, Dead
from gateway_sidecar.engines.progress import read_progress
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat

_LOOK_S = 1.0  # A third of `SUSPECT_S`: silence is noticed when it has lasted that long, and little later.
_READ_S = 2.0  # As the collector's: an engine whose page takes longer gives no sign of work, either.
_MOST_AT_ONCE = 16  # As many as the collector reads of one service: pages of 4 MiB at the most.


class TrafficWatch:
    """One look for all services: the kernel has one list of connections."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, Service]],
        signals: Signals,
        look: Callable[[Collection[int]], frozenset[int]],
    ) -> None:
        self._services = services
        self._signals = signals
        self._look = look

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            await awake.rest(_LOOK_S)
            services = list(self._services().values())
            if not self._signals.is_busy and not any(map(_has_dead, services)):
                continue
            watched = {
                tenure.bridge.port: (service, tenure)
                for service in services
                for tenure in service.tenures.values()
                if tenure.bridge.port is not None and tenure.probe.facts is not None and not tenure.gone
            }
            if not watched:
                continue
            now = awake.now()
            waiting = await asyncio.to_thread(self._look, watched.keys())
            suspects = []
            for port, (service, tenure) in watched.items():
                self._take(service, tenure, now, waits=port in waiting)
                if isinstance(tenure.probe.result, Dead) or tenure.traffic.work.is_suspect(now):
                    suspects.append((service, tenure))
            # Those first that have been silent longest: it is their counters that decide.
            suspects.sort(key=lambda it: it[1].traffic.work.silent_since)
            await asyncio.gather(*(self._read(*each) for each in suspects[:_MOST_AT_ONCE]))

    def _take(self, service: Service, tenure: Tenure, now: float, *, waits: bool) -> None:
        """Bytes are no sign of life: the headers of a stream come before any token, and HTTP/2 has its own."""
        assert tenure.probe.facts is not None
        is_http = tenure.probe.facts.connection_mode is ConnectionMode.HTTP
        busy = (waits and is_http) or any(self._signals.active_on(service.name, url) > 0 for url in tenure.urls)
        if busy or tenure.traffic.work.busy_since is not None:
            tenure.traffic.work = tenure.traffic.work.seen(now, tenure.probe.answers.answered_at, busy=busy)

    async def _read(self, service: Service, tenure: Tenure) -> None:
        facts, address = tenure.probe.facts, tenure.address
        if facts is None or address is None:
            return
        counters = await read_progress(address, facts, tenure.probe.access, timeout_s=_READ_S)
        tenure.traffic.work = tenure.traffic.work.read(awake.now(), counters)
        service.reconsider(tenure)


def _has_dead(service: Service) -> bool:
    """Whether an engine may have to be seen to work again, though nobody asks any more."""
    return any(isinstance(tenure.probe.result, Dead) for tenure in service.tenures.values())
