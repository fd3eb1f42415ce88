"""Has the tunnels kept that replicas need, and the replicas asked again whose tunnel changed."""

from __future__ import annotations

import asyncio

from gateway_sidecar.control.process.services import Services
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.tunnels.fleet import TunnelFleet

_GAP_S = 0.05  # A listing brings a crowd of replicas in milliseconds.
_LOOK_S = 5.0  # What changes touches it; this is for what was missed, and beats for the watchdog.


class TunnelDemand:
    """Of all services."""

    def __init__(self, tunnels: TunnelFleet, services: Services, metrics: Metrics) -> None:
        self._tunnels = tunnels
        self._services = services
        self._metrics = metrics
        self._due = asyncio.Event()

    def touch(self) -> None:
        """Other tunnels may be needed."""
        self._due.set()

    async def run(self) -> None:
        """Keeps the tunnels that replicas need, until cancelled."""
        while True:
            heartbeat()
            self._due.clear()
            self._tunnels.request(self._services.tunnels, complete=self._services.have_looked)
            self._measure()
            await awake.until_set(self._due, _LOOK_S)
            if self._due.is_set():
                await asyncio.sleep(_GAP_S)  # Others may be needed in the same moment.

    async def follow(self) -> None:
        """Whoever is behind a tunnel that came up or went down is asked again at once. Runs until cancelled."""
        while True:
            await self._tunnels.changed.wait()
            self._tunnels.changed.clear()
            self._due.set()
            for service in self._services.by_name().values():
                service.prober.tunnels_changed()

    def _measure(self) -> None:
        states = [it.status.is_up for it in self._tunnels.connections]
        self._metrics.tunnel_links.labels("up").set(states.count(True))
        self._metrics.tunnel_links.labels("down").set(states.count(False))
        for service in self._services.by_name().values():
            service.prober.tunnels.measure()
