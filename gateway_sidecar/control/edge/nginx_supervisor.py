"""Keeps nginx running and its service addresses right; started again when it ends, its orphans stopped first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.dispatch import Dispatch
from gateway_sidecar.nginx.server import Nginx, stop_orphans
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, beating, cancelled, heartbeat
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RETRY_S = 5.0  # A choice: an operator mends what nginx refuses, and each try has nginx read all of its configuration.
_MUTE_S = 2.0  # A choice: nginx answers this without a file or an engine, and is given up only after several times.
_ASK_GAP_S = 4.0  # With `_MUTE_S` and `_MUTE_TIMES`: an nginx that hangs is started again within half a minute.
_MUTE_TIMES = 4
"""Whoever counts the times, and not the seconds, does not take a machine that stood still for an nginx that does."""
_RESTARTS = Backoff(first_s=0.1, most_s=10.0)


class NginxSupervisor:
    """One nginx, kept. `addresses` says what it has to serve; `touch` that this may have changed.

    make_ready: has ready what an nginx reads that is about to start, or to get another frontend.
    applied: what it serves; None as long as nobody knows, which may be so of an earlier daemon's at first.
    reason: why nginx is down, or has not been told of all that changed.
    """

    def __init__(
        self,
        nginx: Nginx,
        addresses: Callable[[], Sequence[ServiceAddress]],
        metrics: Metrics,
        on_change: Callable[[], None],
        make_ready: Callable[[], Awaitable[None]],
    ) -> None:
        self.nginx = nginx
        self._make_ready = make_ready
        self._addresses = addresses
        self._metrics = metrics
        self._on_change = on_change
        self._logger = get_logger()
        self._touched = asyncio.Event()
        self.applied: Sequence[ServiceAddress] | None = None
        self._tried: Sequence[ServiceAddress] = ()
        self._refused: Mapping[str, str] = {}
        self._begun = False
        self._back = asyncio.Event()
        self._applying = asyncio.Lock()
        self._failures = 0
        self._retry_at = 0.0
        self._listens = False
        self._asking: asyncio.Task[bool] | None = None
        self._mute_times = 0
        self._ask_at = 0.0
        self.reason = "not started yet"

    @property
    def up(self) -> bool:
        """Whether nginx runs, and listens."""
        return self._listens and self.nginx.process is not None and self.nginx.process.running

    @property
    def not_in_force(self) -> Mapping[str, str]:
        """Services that are not served as they are to be, and why; nothing while nginx is down as a whole."""
        if not self.up:
            return {}
        now = {it.service: it for it in self.applied or ()}
        return {
            it.service: self._refused.get(it.service) or self.reason or "nginx is about to be reloaded"
            for it in self._addresses()
            if not _same_frontend(it, now.get(it.service))
        }

    @property
    def unserved(self) -> frozenset[str]:
        """Those of them that have no address at all, as far as it is known."""
        if self.applied is None:
            return frozenset()
        return frozenset(self.not_in_force) - {it.service for it in self.applied}

    @property
    def problems(self) -> Mapping[str, str]:
        """What is not as it is to be, in words: what -> why."""
        unserved = self.unserved
        found = {
            f"{service}: listen and frontend": f"{why}; "
            + ("it has no address until then" if service in unserved else "nginx serves what was in force before")
            for service, why in self.not_in_force.items()
        }
        if self.up and self.reason and not found:
            found["nginx"] = self.reason
        return found

    def knows_routers(self, service: str) -> bool:
        """Whether it leads to a service's routers as they are now; true of one that is down, which is started so."""
        wanted, now = (_routers_of(service, it) for it in (self._addresses(), self.applied or ()))
        return not self.up or wanted == now

    def touch(self) -> None:
        """The addresses may have changed."""
        self._touched.set()

    async def begin(self, candidates: Sequence[Identity]) -> None:
        """Adopts the nginx of an earlier daemon, the first candidate that lives, or starts one. If it does not accept
        the addresses as they are now, it serves those that it has, and the daemon tries again. Raises NginxError if
        there is none and none can be started.
        """
        for earlier in candidates:
            if await self.nginx.adopt(earlier):
                self._logger.info("nginx.adopted", pid=earlier.pid)
                self._went(up=True)
                self._begun = True
                self.applied = await self.nginx.in_force()
                await self.apply()
                return
        async with self._applying:
            self._begun = True
            await self._start()

    async def run(self) -> None:
        """Runs until cancelled. nginx itself goes on then."""
        try:
            while True:
                heartbeat()
                await (self._watch() if self.up else beating(self._restart()))
        finally:
            await cancelled(self._asking)

    async def _watch(self) -> None:
        process = self.nginx.process
        assert process is not None
        self._ask()
        ended = asyncio.create_task(process.wait())
        touched = asyncio.create_task(self._touched.wait())
        try:
            most_s = awake.to_tick_s(LOOK_S)
            await asyncio.wait({ended, touched}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            touched.cancel()
        if not process.running:
            async with self._applying:
                await beating(self._on_exit())
        else:
            self._touched.clear()
            again = bool(self.reason or self._refused) and awake.now() > self._retry_at
            if again or self.nginx.logs_elsewhere or self._addresses() != self._tried:
                await beating(self.apply())

    def _ask(self) -> None:
        """Asks nginx whether it is alive, and ends it after a long silence so that it is started again."""
        if self._asking is not None and self._asking.done():
            self._mute_times = self._mute_times + 1 if self._asking.result() else 0
            self._asking = None
            self._ask_at = awake.now() + _ASK_GAP_S
            if self._mute_times >= _MUTE_TIMES:
                self._mute_times = 0
                self._logger.error("nginx.hung", pid=self.nginx.process.pid if self.nginx.process else None)
                self.nginx.kill()
                return
        if self._asking is None and awake.now() >= self._ask_at:
            self._asking = asyncio.create_task(self.nginx.is_mute(_MUTE_S))

    async def apply(self) -> None:
        """Makes nginx serve the addresses as they are now, if it does not already; a failure is logged and kept. An
        nginx that is down is started at once, since its obstacle may be gone.
        """
        async with self._applying:
            if not self._begun:
                return
            if not self.up:
                await self._try_to_start()
                return
            wanted = self._tried = self._addresses()
            try:
                served, refused, reloaded = await self._lead(wanted)
            except (NginxError, OSError) as error:
                if self.reason != str(error):
                    self._logger.error("nginx.not_reloaded", reason=str(error), retry_in_s=_RETRY_S)
                self.reason = str(error)
                self._retry_at = awake.now() + _RETRY_S
                self._measure(wanted)
                return
            if reloaded:
                self._metrics.nginx_reloads.inc()
                self._logger.info("nginx.reloaded", services=[a.service for a in served])
            self._note_in_force(wanted, served, refused)

    async def _lead(self, wanted: Sequence[ServiceAddress]) -> tuple[Sequence[ServiceAddress], Mapping[str, str], bool]:
        """Tells nginx of what can be served; what that is, why the rest is not, and whether nginx was reloaded.

        Raises NginxError, OSError if it goes on as it was.
        """
        objections = await self.nginx.objections(wanted)
        if self.applied is None and objections:
            without = [it for it in wanted if it.service not in objections]
            if await self.nginx.serves(without):
                return without, objections, False
            # What those have now cannot be kept, since nobody knows what that is: nothing is changed.
            raise NginxError("; ".join(f"{service}: {why}" for service, why in objections.items()))
        served, refused = servable(wanted, self.applied or (), objections)
        now = {it.service: it for it in self.applied or ()}
        if not all(_same_frontend(it, now.get(it.service)) for it in served):
            await self._make_ready()
        try:
            return served, refused, await self.nginx.apply(served)
        except NginxError as error:
            # Of a change that nginx refuses nothing comes in; but a router that took another port must be found.
            as_before, refused = self._as_before(wanted, str(error))
            if as_before is None or as_before == served:
                raise
            return as_before, refused, await self.nginx.apply(as_before)

    def _as_before(
        self, wanted: Sequence[ServiceAddress], why: str
    ) -> tuple[Sequence[ServiceAddress] | None, Mapping[str, str]]:
        """The services with the addresses and frontends that they had, and which of them want others."""
        if self.applied is None:
            return None, {}
        now = {it.service: it for it in self.applied}
        return servable(
            wanted, self.applied, {it.service: why for it in wanted if not _same_frontend(it, now.get(it.service))}
        )

    async def _restart(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RESTARTS.delay_s(self._failures)):
                await self._back.wait()
        heartbeat()
        async with self._applying:
            if not self.up:
                await self._try_to_start()

    async def _on_exit(self) -> None:
        """Tells, once, that nginx has ended, whoever noticed it, and stops what it left: that still has its ports."""
        process = self.nginx.process
        if not self._listens or process is None or process.running:
            return
        last = await self.nginx.log.read_tail(3)
        self._logger.error("nginx.exited", pid=process.pid, exit_code=process.exit_code, last_lines=last)
        self._went(up=False)
        orphans = await stop_orphans(process.identity)
        if orphans:
            self._logger.warning("nginx.orphans_stopped", workers=orphans)

    async def _try_to_start(self) -> None:
        await self._on_exit()
        try:
            await self._start()
        except (NginxError, OSError) as error:
            self._failures += 1
            self.reason = str(error)
            self._logger.error(
                "nginx.not_started", reason=self.reason, retry_in_s=round(_RESTARTS.delay_s(self._failures), 1)
            )
            self._on_change()
            return
        self._failures = 0

    async def _start(self) -> None:
        """Starts nginx with what can be served. Raises NginxError, OSError."""
        began = awake.monotonic()
        await self._make_ready()
        self._touched.clear()
        wanted = self._tried = self._addresses()
        objections = await self.nginx.objections(wanted)
        free = await self.nginx.objections(self.applied or ()) if objections else {}
        before = [it for it in self.applied or () if it.service not in free]
        served, refused = servable(wanted, before, objections)
        try:
            await self.nginx.start(served)
        except NginxError as error:
            as_before, refused = self._as_before(wanted, str(error))
            if as_before is None or as_before == served:
                raise
            served = as_before
            await self.nginx.start(served)
        self._metrics.nginx_starts.inc()
        assert self.nginx.process is not None
        if self.nginx.log.trouble:
            to = str(self.nginx.log.file) if self.nginx.log.file else None
            self._logger.error("nginx.log_elsewhere", reason=self.nginx.log.trouble, path=to)
        self._logger.info("nginx.started", pid=self.nginx.process.pid, took_s=round(awake.monotonic() - began, 3))
        self._went(up=True)
        self._note_in_force(wanted, served, refused)

    def _note_in_force(
        self, wanted: Sequence[ServiceAddress], served: Sequence[ServiceAddress], refused: Mapping[str, str]
    ) -> None:
        """nginx serves these now; the others are tried again."""
        for service, why in refused.items():
            if self._refused.get(service) != why:
                self._logger.error("service.not_in_force", service=service, reason=why, retry_in_s=_RETRY_S)
        for service in {it.service for it in wanted} & self._refused.keys() - refused.keys():
            self._logger.info("service.in_force", service=service)
        self.applied, self._refused, self.reason = served, refused, ""
        self._retry_at = awake.now() + _RETRY_S
        self._measure(wanted)

    def _measure(self, wanted: Sequence[ServiceAddress]) -> None:
        missing = self.not_in_force
        for it in wanted:
            self._metrics.service_in_force.labels(it.service).set(it.service not in missing)

    def _went(self, *, up: bool) -> None:
        self._listens = up
        self.reason = "" if up else "nginx ended"
        if up:
            self._back.set()
        else:
            self._back.clear()
        self._metrics.nginx_up.set(up)
        self._on_change()


def servable(
    wanted: Sequence[ServiceAddress], now: Sequence[ServiceAddress], objections: Mapping[str, str]
) -> tuple[Sequence[ServiceAddress], Mapping[str, str]]:
    """What can be served, and why the rest cannot. A refused service keeps the addresses that it has. A service that is
    to get one of those addresses waits.
    """
    refused = dict(objections)
    has = {it.service: it for it in now}
    while True:
        kept = {it.service: has[it.service] for it in wanted if it.service in refused and it.service in has}
        meets = ((it, old) for it in wanted if it.service not in refused for old in kept.values() if _clash(it, old))
        clash = next(meets, None)
        if clash is None:
            break
        it, old = clash
        refused[it.service] = f"{old.service} still has one of its addresses: {refused[old.service]}"
    routed = {
        it.service: replace(
            it,
            listen=before.listen,
            frontend=before.frontend,
            client_ca=before.client_ca,
            dispatch=_led_as_before(it.dispatch, before.dispatch),
        )
        for it, before in ((it, kept.get(it.service)) for it in wanted)
        if before is not None
    }
    served = [routed.get(it.service, it) for it in wanted if it.service not in refused or it.service in routed]
    return served, refused


def _routers_of(service: str, addresses: Sequence[ServiceAddress]) -> list[object]:
    return [(it.router, it.successor, it.paths, it.headers) for it in addresses if it.service == service]


def _same_frontend(one: ServiceAddress, other: ServiceAddress | None) -> bool:
    return other is not None and _frontend_of(one) == _frontend_of(other)


def _frontend_of(it: ServiceAddress) -> object:
    """What the configuration says of an address, and of no router."""
    return it.listen, it.frontend, it.dispatch and (it.dispatch.models, it.dispatch.default)


def _led_as_before(wanted: Dispatch | None, before: Dispatch | None) -> Dispatch | None:
    """The models as they were, and the services behind them as these are now."""
    if wanted is None or before is None:
        return before
    now = {it.service: it for it in wanted.services}
    return replace(before, services=tuple(now.get(it.service, it) for it in before.services))


def _clash(one: ServiceAddress, other: ServiceAddress) -> bool:
    """Whether one address is both's; services that have names may share public ones."""
    shared = set(one.listens) & set(other.listens)
    if one.frontend.server_names and other.frontend.server_names:
        shared &= {one.listen, other.listen}
    return bool(shared)
