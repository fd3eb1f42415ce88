"""The admin API over TCP, always with mutual TLS. New certificates take effect without closing the address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from gateway_sidecar.api.bounded_server import BoundedServer, tcp_listener
from gateway_sidecar.api.routes import admin_app
from gateway_sidecar.api.tls import Tls, read_tls
from gateway_sidecar.config import AdminSettings
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import get_logger


class AdminListener:
    """Listens from `open` to `close`. While its files cannot be used it answers no client, and `problems` says why."""

    def __init__(self, daemon: Daemon, settings: AdminSettings) -> None:
        self._daemon = daemon
        self._settings = settings
        self._problem = daemon.shared.problems.of("admin")
        self._logger = get_logger()
        self._server = BoundedServer(admin_app(daemon), Tasks("-", daemon.metrics))
        self._socket: socket.socket | None = None
        self._digest = ""

    async def open(self) -> None:
        """Begins to listen. Raises OSError if the address is taken."""
        self._socket = tcp_listener(self._settings.listen)
        try:
            await self._serve(await asyncio.to_thread(read_tls, self._settings.tls))
        except ConfigError as error:
            self._problem.set("; ".join(error.problems))
            self._logger.error("config.tls_refused", problems=error.problems)
        self._daemon.reload_too(self._prepare)

    async def close(self) -> None:
        """Ends all connections."""
        await self._server.close()
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
        if self._digest:
            self._server.use_tls(tls.context)
        else:
            await self._server.listen(self._socket, tls.context)
        self._digest = tls.digest
        self._problem.set("")
