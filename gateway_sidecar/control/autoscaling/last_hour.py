"""Keeps the last hour of each service's signals, for the live page: a point every ten seconds, in memory alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals
from gateway_sidecar.domain.history import EVERY_S, History
from gateway_sidecar.supervision import awake


class LastHour:
    """The history of all services whose signals are collected."""

    def __init__(self, signals: Mapping[str, ServiceSignals]) -> None:
        self._signals = signals
        self.history = History()

    async def run(self) -> None:
        """Takes points until cancelled, each at the beginning of a second."""
        while True:
            now = asyncio.get_running_loop().time()
            due = (round(now / EVERY_S) + 1) * EVERY_S  # At least half of the time away.
            await awake.rest(due - now)
            now = awake.monotonic()
            self.history.take(now, {name: signals.point(now) for name, signals in list(self._signals.items())})
