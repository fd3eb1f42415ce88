"""Passes on what nginx and the routers write, keeps the access log within its bounds, and looks at how much memory the
routers take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from gateway_sidecar.control.routers.process import RouterProcess
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import LOOK_S, heartbeat
from gateway_sidecar.supervision.process import rss_bytes
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem, Problems

_MOST_LINES = 1000
"""Of one router in one look: 50 ms of work. All of them are in its log."""
_LINES_AT_ONCE = 50  # With 50 ms for a thousand (`_MOST_LINES`), 2.5 ms until others have their turn.
_LONGEST_LINE = 1000  # Characters: some lines of a terminal; nginx's own error lines have 2,048 bytes at the most.
_NO_CERTIFICATE = " realpath() "
"""At each handshake while a frontend has no certificate, which `status` says."""


class ChildLogs:
    """nginx and the routers of all services. Each log has a line of `problems`, for when it cannot be written."""

    def __init__(
        self,
        services: Callable[[], Mapping[str, Service]],
        nginx: Nginx,
        peers_log: ChildLog,
        problems: Problems,
        metrics: Metrics,
    ) -> None:
        self._services = services
        self._nginx = nginx
        self._peers_log = peers_log
        self._problems = problems
        self._logs: dict[str, Problem] = {}
        self._metrics = metrics
        self._logger = get_logger()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            services = dict(self._services())
            routers = [it for service in services.values() for it in service.routers if it.log is not None]
            # Beside each other: a disk that hangs costs each of them its patience.
            processes = [cast("RouterProcess", it) for it in routers]
            nginx = map(self._pass_on_nginx, (self._nginx.log, self._peers_log))
            own = (self._nginx.keep_up_temp(), self._nginx.access_log.look())
            await asyncio.gather(*nginx, *map(self._pass_on, processes), *own)
            for name, service in services.items():
                if service.router.pid is not None and (rss := rss_bytes(service.router.pid)) is not None:
                    self._metrics.router_rss.labels(name).set(rss)
                    service.slots.note_memory(rss)
            self._note_logs(
                {f"log of router {router.slot}": router.log.trouble for router in processes}
                | {"log of nginx": self._nginx.log.trouble, "access log": self._nginx.access_log.trouble}
            )
            await awake.rest(LOOK_S)

    def _note_logs(self, troubles: Mapping[str, str]) -> None:
        """A child keeps the log that it was started with: it is a problem until the child is started again."""
        for name in troubles.keys() - self._logs.keys():
            self._logs[name] = self._problems.of(name)
        for name, problem in self._logs.items():
            problem.set(troubles.get(name, ""))

    async def _pass_on(self, router: RouterProcess) -> None:
        lines = await router.log.read()
        for number, line in enumerate(lines[:_MOST_LINES]):
            read = router.setup.read_log_line(line)
            if read is not None:
                log = getattr(self._logger, read.level)
                log("router.said", service=router.service, text=read.message, **read.fields)
            if number % _LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
        if len(lines) > _MOST_LINES:
            more = len(lines) - _MOST_LINES
            self._logger.info("router.said_more", service=router.service, lines=more, path=str(router.log.file))

    async def _pass_on_nginx(self, log: ChildLog) -> None:
        lines = await log.read()
        # A dead socket makes nginx write a line for each connection: the first few tell the story.
        for line in lines[:5]:
            text = printable(line, _LONGEST_LINE)
            if _NO_CERTIFICATE not in line and any(mark in line for mark in ("[emerg]", "[alert]", "[crit]")):
                self._logger.error("nginx.said", text=text)
            else:
                self._logger.info("nginx.said", text=text)
        if len(lines) > 5:
            self._logger.info("nginx.said_more", lines=len(lines) - 5, path=str(log.file))
