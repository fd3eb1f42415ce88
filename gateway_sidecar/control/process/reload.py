"""Takes the configuration file in again, and touches only what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.config import Settings, line_of, load_config
from gateway_sidecar.config.differences import FIXED, changed_settings
from gateway_sidecar.control.edge.frontends import Frontends
from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.control.service import Service
from gateway_sidecar.errors import ConfigError, NotInForce, ProcessError
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.notify import SystemdNotifier
from gateway_sidecar.telemetry.logs import get_logger, set_up_logs
from gateway_sidecar.telemetry.metrics import Metrics

_FIRST_START_S = 10.0  # SMG starts in 0.2 s, a router on a cold disk in up to 4 s; whoever asked for the reload waits.
_START_POLL_S = 0.02  # Next to a start of 0.2 s and more it is little.
TakeIn = Callable[[], Awaitable[list[str]]]
"""Takes in what was read, and says what that changed."""
Prepare = Callable[[], Awaitable[TakeIn]]
"""Reads again what belongs to the configuration, and takes nothing in yet. Raises ConfigError."""


class Reload:
    """One at a time. `settings` are those in force, since `loaded_at` (monotonic seconds)."""

    def __init__(
        self,
        config_path: Path,
        settings: Settings,
        services: Services,
        nginx: NginxSupervisor,
        frontends: Frontends,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.loaded_at = awake.monotonic()
        self._config_path = config_path
        self._services = services
        self._nginx = nginx
        self._frontends = frontends
        self._metrics = metrics
        self._logger = get_logger()
        self._lock = asyncio.Lock()
        self._others: list[Prepare] = []

    def include(self, prepare: Prepare) -> None:
        """Has something else read again with the configuration."""
        self._others.append(prepare)

    async def reload(self, notifier: SystemdNotifier) -> list[str]:
        """Takes the file in; what changed, in words.

        Raises ConfigError, everything left as it was, if the file cannot be used or asks for what needs a restart, and
        NotInForce, what could be done done, if a router or nginx does not serve as it asks for.
        """
        async with self._lock:
            try:
                fresh = self._read()
                prepared = [await prepare() for prepare in self._others]
            except ConfigError as error:
                self._metrics.reloads.labels("refused").inc()
                self._logger.error("config.refused", problems=error.problems)
                raise
            notifier.reloading()
            changes, not_in_force = await self._take_in(fresh)
            for take_in in prepared:
                changes += await take_in()
            notifier.ready()
            if not_in_force:
                self._metrics.reloads.labels("refused").inc()
                self._logger.error("config.not_in_force", problems=not_in_force, changes=changes)
                raise NotInForce(not_in_force, changes)
            self._metrics.reloads.labels("done").inc()
            self._logger.info("config.reloaded", changes=changes)
            return changes

    def _read(self) -> Settings:
        """The file as it is now. Raises ConfigError, also for what needs a restart."""
        fresh = load_config(self._config_path)
        fixed = [name for name in FIXED if getattr(fresh, name) != getattr(self.settings, name)]
        if fixed:
            cannot = "cannot change while the daemon runs; restart it"
            path = self._config_path
            raise ConfigError([f"{path}:{line_of(path, name)}: {name}: {cannot}" for name in fixed])
        return fresh

    async def _take_in(self, fresh: Settings) -> tuple[list[str], list[str]]:
        """What changed, and what of it is not in force, in words."""
        before = {s.name for s in self.settings.services}
        changes: list[str] = []
        not_in_force: list[str] = []
        if fresh.log != self.settings.log:
            set_up_logs(fresh.log.format, fresh.log.level)
            changes.append("log")
        changes += [name for name in ("acme", "leave") if getattr(fresh, name) != getattr(self.settings, name)]
        await self._take_in_services(fresh, changes, not_in_force)
        self._take_in_addresses(fresh, changes)
        services = self._services.by_name()
        in_force = tuple(services[s.name].settings for s in fresh.services if s.name in services)
        self.settings, self.loaded_at = fresh.model_copy(update={"services": in_force}), awake.monotonic()
        await self._frontends.look(withdraw=False)
        await self._nginx.apply()
        await self._frontends.look()
        doubtful = [it for it in services.values() if it.name not in before or it.router.state is RouterState.REFUSED]
        begun = await asyncio.gather(*map(_why_not_begun, doubtful))
        not_in_force += [f"{it.name}: router: {why}" for it, why in zip(doubtful, begun, strict=True) if why]
        not_in_force += self._not_served()
        return changes, not_in_force

    async def _take_in_services(self, fresh: Settings, changes: list[str], not_in_force: list[str]) -> None:
        old = {s.name: s for s in self.settings.services}
        new = {s.name: s for s in fresh.services}
        for name in old.keys() - new.keys():
            await self._services.remove(name)
            changes.append(f"{name}: removed")
        for name in new.keys() - old.keys():
            try:
                self._services.add(new[name], prepare=True)
            except ProcessError as error:
                self._logger.error("service.not_added", service=name, reason=str(error))
                not_in_force.append(f"{name}: not added: {error}")
                continue
            self._services.start(name)
            changes.append(f"{name}: added")
        for name in old.keys() & new.keys():
            changed = changed_settings(old[name], new[name])
            if "router" not in changed:
                self._services.keep_router(name)
            if not changed:
                continue
            failure = await self._services.change(new[name], changed)
            if failure:
                changed.remove("router")
                not_in_force.append(f"{name}: router: {failure}")
            if changed:
                changes.append(f"{name}: {', '.join(changed)}")

    def _take_in_addresses(self, fresh: Settings, changes: list[str]) -> None:
        old = {it.name: it for it in self.settings.addresses}
        new = {it.name: it for it in fresh.addresses}
        changes += [f"{name}: removed" for name in old.keys() - new.keys()]
        changes += [f"{name}: added" for name in new.keys() - old.keys()]
        for name in old.keys() & new.keys():
            if changed := changed_settings(old[name], new[name]):
                changes.append(f"{name}: {', '.join(changed)}")
        self._services.share(fresh.addresses)

    def _not_served(self) -> list[str]:
        if not self._nginx.up:
            return [f"nginx does not run: {self._nginx.reason}"]
        return [f"{what}: {why}" for what, why in self._nginx.problems.items()]


async def _why_not_begun(service: Service) -> str:
    """Why the first router of a new service ended at its start; empty if it did not, or takes longer than it should."""
    with suppress(TimeoutError):
        async with within(_FIRST_START_S):
            while service.router.state in (RouterState.STOPPED, RouterState.STARTING):
                await asyncio.sleep(_START_POLL_S)
    ended = service.router.state in (RouterState.REFUSED, RouterState.BACKING_OFF)
    return service.router.reason if ended else ""
