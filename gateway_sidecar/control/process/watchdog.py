"""Tells systemd that the daemon is well, while all of its loops make progress."""

from __future__ import annotations

import asyncio
from itertools import count

from gateway_sidecar.control.process.reload import Reload
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import HEARTBEATS, Heartbeat
from gateway_sidecar.supervision.notify import SystemdNotifier
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_STALE_S = 10.0
"""Beside what settings let a loop wait for: twice `DISK_S`, and well within the unit's WatchdogSec (30 s)."""
_STALLED_S = 2.0  # A choice: clients and engines notice nothing of a second; two are worth a line in the log.
_STATUS_ROUNDS = 5
"""To count the states of 1,000 replicas takes 0.6 ms."""


class Watchdog:
    """Measures the event loop's lag, keeps systemd informed, and pets its watchdog."""

    def __init__(self, services: Services, reload: Reload, notifier: SystemdNotifier, metrics: Metrics) -> None:
        self._services = services
        self._reload = reload
        self._notifier = notifier
        self._metrics = metrics
        self._logger = get_logger()

    @property
    def behind(self) -> Heartbeat | None:
        """The loop that makes no progress; None if there is none."""
        stalest = HEARTBEATS.stalest()
        return stalest if stalest is not None and awake.now() - stalest.at >= self._limit_s else None

    @property
    def _limit_s(self) -> float:
        # A router that is waited for is no fault of ours.
        services = self._services.by_name().values()
        slowest_s = max((service.settings.router.api_timeout_s for service in services), default=0.0)
        return _STALE_S + self._reload.settings.rescan_interval_s + slowest_s

    async def run(self) -> None:
        """Runs until cancelled."""
        period = min(1.0, (self._notifier.watchdog_s or 2.0) / 2)
        for number in count():
            pause_s = awake.to_tick_s(period) if period >= 1 else period
            due = awake.monotonic() + pause_s
            await asyncio.sleep(pause_s)
            late_s = max(0.0, awake.monotonic() - due)
            self._metrics.loop_lag.observe(late_s)
            if number % _STATUS_ROUNDS == 0:
                self._notifier.status(self.summary())
            if late_s > _STALLED_S:
                self._logger.warning("daemon.stalled", for_s=round(late_s, 1))
            if behind := self.behind:
                self._logger.error("daemon.wedged", loop=behind.name, stale_s=round(awake.now() - behind.at, 1))
            else:
                self._notifier.alive()

    def summary(self) -> str:
        """One line for `systemctl status`."""
        parts = []
        for name, service in self._services.by_name().items():
            states = [t.status.state.value for t in service.tenures.values()]
            counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states))) or "no replicas"
            parts.append(f"{name}: {counts}; router {service.router.state.value}")
        return " | ".join(parts)
