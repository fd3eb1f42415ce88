"""Puts back what somebody removed from `run_dir`, such as a cleaner of temporary files.

nginx follows links and looks for switch files there, and requests that wait come by a socket there.
No stream is touched: nginx and the routers keep what they have open, and only the names are made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.service import Service
from gateway_sidecar.errors import BridgeError, ProcessError, StateError
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.telemetry.logs import get_logger

_PROBLEM = "run_dir"


class RunDirRepair:
    """Looks every few seconds. `problems` has an entry while something cannot be put back.

    others: by name, what mends what the daemon's own part does not know, and says whether that was needed.
    """

    def __init__(
        self,
        bridges: NginxSupervisor,
        services: Callable[[], Mapping[str, Service]],
        problems: dict[str, str],
        *,
        interval_s: float,
    ) -> None:
        self._bridges = bridges
        self._services = services
        self._problems = problems
        self._interval_s = interval_s
        self._logger = get_logger()
        self.others: dict[str, Callable[[], Awaitable[bool]]] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Puts everything back; what cannot be is told once, and tried again at the next look."""
        mended: list[str] = []
        try:
            await self._mend(mended)
        except (OSError, BridgeError, ProcessError, StateError) as error:
            reason = f"something was removed from run_dir and cannot be put back: {error}"
            if self._problems.get(_PROBLEM) != reason:
                self._logger.error("run_dir.not_mended", reason=str(error))
            self._problems[_PROBLEM] = reason
        else:
            self._problems.pop(_PROBLEM, None)
        if mended:
            self._logger.warning("run_dir.mended", removed=mended)

    async def _mend(self, mended: list[str]) -> None:
        nginx = self._bridges.nginx
        nginx.prepare()
        applied = self._bridges.applied
        if self._bridges.up and applied is not None and nginx.mend_files(applied):
            mended.append("nginx's configuration")
        linked = nginx.linked_ports()
        for name, service in self._services().items():
            if service.bridges.repair(linked):
                mended.append(f"{name}: bridges")
            if service.hold.repair() | service.slots.repair(nginx.pointed(name)):
                mended.append(f"{name}: gate")
        for name, mend in self.others.items():
            if await mend():
                mended.append(name)
