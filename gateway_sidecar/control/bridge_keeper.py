"""Keeps nginx running and its service addresses right; started again when it ends, its orphans stopped first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway_sidecar.bridges.nginx import Nginx, stop_orphans
from gateway_sidecar.bridges.nginx_config import ServiceAddress
from gateway_sidecar.control.guard import beating, cancelled
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.errors import BridgeError
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RETRY_S = 5.0
_MUTE_S = 2.0
_ASK_GAP_S = 4.0
_MUTE_TIMES = 4
"""Whoever counts the times, and not the seconds, does not take a machine that stood still for an nginx that does."""
_RESTARTS = Backoff(first_s=0.1, most_s=10.0)


class BridgeKeeper:
    """One nginx, kept. `addresses` says what it has to serve; `touch` that this may have changed."""

    def __init__(
        self,
        nginx: Nginx,
        addresses: Callable[[], Sequence[ServiceAddress]],
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        self.nginx = nginx
        self._addresses = addresses
        self._metrics = metrics
        self._on_change = on_change
        self._logger = get_logger()
        self._touched = asyncio.Event()
        self.applied: Sequence[ServiceAddress] = ()
        self._applying = asyncio.Lock()
        self._failures = 0
        self._retry_at = 0.0
        self._listens = False
        self._asking: asyncio.Task[bool] | None = None
        self._mute_times = 0
        self._ask_at = 0.0
        self.reason = "not started yet"
        self.beat = awake.now()

    @property
    def up(self) -> bool:
        """Whether nginx runs, and listens."""
        return self._listens and self.nginx.process is not None and self.nginx.process.running

    def touch(self) -> None:
        """The addresses may have changed."""
        self._touched.set()

    async def begin(self, candidates: Sequence[Identity]) -> None:
        """Adopts the nginx of an earlier daemon, the first of the candidates that lives, or starts one.

        One that cannot be given the addresses as they are now serves those that it has; this is tried again. Raises
        BridgeError if there is none and none can be started.
        """
        for earlier in candidates:
            if await self.nginx.adopt(earlier):
                self._logger.info("bridge.adopted", pid=earlier.pid)
                self._went(up=True)
                await self.apply()
                return
        await self._start()
        self._went(up=True)

    async def run(self) -> None:
        """Runs until cancelled. nginx itself goes on then."""
        try:
            while True:
                await beating(self._watch() if self.up else self._restart(), self._comes_round)
        finally:
            await cancelled(self._asking)

    def _comes_round(self) -> None:
        self.beat = awake.now()

    async def _watch(self) -> None:
        process = self.nginx.process
        assert process is not None
        self._ask()
        ended = asyncio.create_task(process.wait())
        touched = asyncio.create_task(self._touched.wait())
        try:
            await asyncio.wait({ended, touched}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            touched.cancel()
        if not process.running:
            last = await self.nginx.log.read_tail(3)
            self._logger.error("bridge.exited", pid=process.pid, exit_code=process.exit_code, last_lines=last)
            self._went(up=False)
            orphans = await stop_orphans(process.identity)
            if orphans:
                self._logger.warning("bridge.orphans_stopped", workers=orphans)
        elif self._touched.is_set() or (self.reason and time.monotonic() > self._retry_at):
            self._touched.clear()
            if self.reason or self._addresses() != self.applied:
                await self.apply()
        with suppress(OSError):  # Whoever cannot write there says so elsewhere.
            self.nginx.prepare()

    def _ask(self) -> None:
        """Asks nginx whether it is alive; ends one that has not said so for long, for it to be started again."""
        if self._asking is not None and self._asking.done():
            self._mute_times = self._mute_times + 1 if self._asking.result() else 0
            self._asking = None
            self._ask_at = time.monotonic() + _ASK_GAP_S
            if self._mute_times >= _MUTE_TIMES:
                self._mute_times = 0
                self._logger.error("bridge.hung", pid=self.nginx.process.pid if self.nginx.process else None)
                self.nginx.kill()
                return
        if self._asking is None and time.monotonic() >= self._ask_at:
            self._asking = asyncio.create_task(self.nginx.is_mute(_MUTE_S))

    async def apply(self) -> None:
        """Makes nginx serve the addresses as they are now, if it does not already; what fails is told and kept."""
        async with self._applying:
            try:
                wanted = self._addresses()
                if await self.nginx.apply(wanted):
                    self._metrics.bridge_reloads.inc()
                    self._logger.info("bridge.reloaded", services=[a.service for a in wanted])
                self.applied = wanted
                self.reason = ""
            except (BridgeError, OSError) as error:
                self._retry_at = time.monotonic() + _RETRY_S
                if self.reason != str(error):
                    self._logger.error("bridge.not_reloaded", reason=str(error), retry_in_s=_RETRY_S)
                self.reason = str(error)

    async def _restart(self) -> None:
        await asyncio.sleep(_RESTARTS.delay_s(self._failures))
        try:
            await self._start()
        except (BridgeError, OSError) as error:
            self._failures += 1
            self.reason = str(error)
            self._logger.error(
                "bridge.not_started", reason=self.reason, retry_in_s=round(_RESTARTS.delay_s(self._failures), 1)
            )
            self._on_change()
            return
        self._failures = 0
        self._went(up=True)

    async def _start(self) -> None:
        began = time.monotonic()
        self._touched.clear()
        wanted = self._addresses()
        await self.nginx.start(wanted)
        self.applied = wanted
        self._metrics.bridge_starts.inc()
        assert self.nginx.process is not None
        if self.nginx.log.trouble:
            to = str(self.nginx.log.file) if self.nginx.log.file else None
            self._logger.error("bridge.log_elsewhere", reason=self.nginx.log.trouble, path=to)
        self._logger.info("bridge.started", pid=self.nginx.process.pid, took_s=round(time.monotonic() - began, 3))

    def _went(self, *, up: bool) -> None:
        self._listens = up
        self.reason = "" if up else "nginx ended"
        self._metrics.bridge_up.set(up)
        self._on_change()
