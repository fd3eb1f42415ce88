"""Restores what was removed from `run_dir`, by a cleaner of temporary files for example. nginx follows symlinks and
looks for switch files there, and held requests come through a socket there. No stream is touched: nginx and the routers
keep what they have open, and only the names are made again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.service import Service
from gateway_sidecar.errors import NginxError, ProcessError, StateError
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem


class RunDirRepair:
    """Looks every few seconds. `problem` says what cannot be put back."""

    def __init__(
        self,
        nginx_supervisor: NginxSupervisor,
        services: Callable[[], Mapping[str, Service]],
        problem: Problem,
        *,
        interval_s: float,
    ) -> None:
        self._nginx_supervisor = nginx_supervisor
        self._services = services
        self._problem = problem
        self._interval_s = interval_s
        self._logger = get_logger()
        self._others: dict[str, Callable[[], Awaitable[bool]]] = {}

    def keep(self, name: str, repair: Callable[[], Awaitable[bool]]) -> None:
        """Also keeps what the daemon's own part does not know: `repair` puts it back, and says whether it had to."""
        self._others[name] = repair

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            await self.look()
            await awake.rest(self._interval_s)

    async def look(self) -> None:
        """Puts everything back; a failure is logged once, and tried again at the next look."""
        repaired: list[str] = []
        try:
            await self._repair(repaired)
        except (OSError, NginxError, ProcessError, StateError) as error:
            reason = f"something was removed from run_dir and cannot be put back: {error}"
            if self._problem.set(reason):
                self._logger.error("run_dir.not_repaired", reason=str(error))
        else:
            self._problem.set("")
        if repaired:
            self._logger.warning("run_dir.repaired", removed=repaired)

    async def _repair(self, repaired: list[str]) -> None:
        nginx = self._nginx_supervisor.nginx
        nginx.prepare()
        applied = self._nginx_supervisor.applied
        if self._nginx_supervisor.up and applied is not None and await nginx.repair_files(applied):
            repaired.append("nginx's configuration")
        linked = nginx.linked_ports()
        for name, service in self._services().items():
            if service.bridges.repair(linked):
                repaired.append(f"{name}: bridges")
            if service.hold.repair() | service.slots.repair(nginx.pointed(name)):
                repaired.append(f"{name}: gate")
        for name, repair in self._others.items():
            if await repair():
                repaired.append(name)
