"""The admin API over TCP, with mutual TLS always. New certificates are taken in without closing the address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway_sidecar.admin.api import admin_app
from gateway_sidecar.admin.tls import Tls, read_tls
from gateway_sidecar.config import AdminSettings
from gateway_sidecar.control.daemon import Daemon
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.telemetry.logs import get_logger

_PROBLEM = "admin"


class AdminListener:
    """Listens from `open` to `close`. While its files cannot be used it answers nobody, and `problems` says why."""

    def __init__(self, daemon: Daemon, settings: AdminSettings) -> None:
        self._daemon = daemon
        self._settings = settings
        self._logger = get_logger()
        self._socket: socket.socket | None = None
        self._runners: list[web.AppRunner] = []
        self._site: web.SockSite | None = None
        self._digest = ""

    async def open(self) -> None:
        """Begins to listen. Raises OSError if the address is taken."""
        listen = self._settings.listen
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self._socket = socket.create_server((listen.host, listen.port), family=family, backlog=128)
        try:
            await self._serve(await asyncio.to_thread(read_tls, self._settings.tls))
        except ConfigError as error:
            self._daemon.problems[_PROBLEM] = "; ".join(error.problems)
            self._logger.error("config.tls_refused", problems=error.problems)
        self._daemon.before_reload.append(self._prepare)

    async def close(self) -> None:
        """Ends all connections."""
        for runner in self._runners:
            await runner.cleanup()
        if self._socket is not None:
            self._socket.close()

    async def _prepare(self) -> Callable[[], Awaitable[list[str]]]:
        """Reads the files again; what is returned takes them in. Raises ConfigError."""
        tls = await asyncio.to_thread(read_tls, self._settings.tls)

        async def take_in() -> list[str]:
            if tls.digest == self._digest:
                return []
            await self._serve(tls)
            return ["admin.tls"]

        return take_in

    async def _serve(self, tls: Tls) -> None:
        assert self._socket is not None
        runner = web.AppRunner(admin_app(self._daemon), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        # A descriptor of the same socket for each: nobody who connects meanwhile is turned away.
        site = web.SockSite(runner, self._socket.dup(), ssl_context=tls.context)
        await site.start()
        if self._site is not None:
            await self._site.stop()
        for earlier in list(self._runners):
            server = earlier.server
            if server is None or not server.connections:
                self._runners.remove(earlier)
                await earlier.cleanup()
            else:
                server.pre_shutdown()  # Who was let in by the old files is let go after the answer.
        self._site, self._digest = site, tls.digest
        self._runners.append(runner)
        self._daemon.problems.pop(_PROBLEM, None)
