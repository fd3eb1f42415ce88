"""Takes everything down in order, so that what is in flight can end: addresses first, then routers, bridges last."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from gateway_sidecar.config import Settings
from gateway_sidecar.control.edge.frontends import Frontends
from gateway_sidecar.control.process.left_running import LeftRouter, LeftRunning
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.process.shared import Shared
from gateway_sidecar.control.process.written_down import WrittenDown
from gateway_sidecar.control.replicas.endpoint_files import keep_file
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, Process
from gateway_sidecar.telemetry.logs import get_logger

DEFAULT_STOP_S = 30.0
"""What is in flight when everything is taken down may take so long."""

_END_GRACE_S = 2.0  # Nobody needs it any more: a process that heeds SIGTERM has ended by then.
_POLL_S = 0.1  # A person who stops the daemon notices no less.
_ROUTER_GRACE_S = 0.5  # Nothing is in flight; SMG would go on serving for 5 s after SIGTERM.
_NGINX_GRACE_S = 1.0  # Nothing is in flight: nginx has only to close its sockets.


class Ending(Protocol):
    """A router that is to end: one of ours, or an earlier daemon's."""

    @property
    def pid(self) -> int | None: ...

    @property
    def ports(self) -> RouterPorts | None: ...

    async def close_client(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class Shutdown:
    """Ends the routers, nginx and all that is beside them, of this daemon or of an earlier one.

    timeout_s: how long what is in flight has. at_once: set, it has no more time.
    """

    def __init__(
        self,
        shared: Shared,
        services: Services,
        departing: RetiredRouters,
        frontends: Frontends,
        written: WrittenDown,
    ) -> None:
        self._shared = shared
        self._services = services
        self._departing = departing
        self._frontends = frontends
        self._written = written
        self._logger = get_logger()
        self.timeout_s = DEFAULT_STOP_S
        self.at_once = asyncio.Event()

    def allow(self, timeout_s: float) -> None:
        """From now on what is in flight has this long."""
        self.timeout_s = timeout_s

    async def run(self, routers: Sequence[Ending]) -> None:
        """All of it, in order."""
        shared = self._shared
        await asyncio.gather(*(service.endpoints.withdraw() for service in self._services.by_name().values()))
        cut = await take_down(shared.nginx, routers, timeout_s=self.timeout_s, at_once=self.at_once)
        if cut:
            self._logger.warning("daemon.cut_off", connections=cut, after_s=self.timeout_s)
        await self._departing.close()
        await shared.peers.close()
        await shared.keys.close()
        await shared.tunnels.end()
        for port in shared.nginx.linked():
            shared.nginx.unlink(port)
        await asyncio.to_thread(self._frontends.withdraw)
        self._written.remove()

    async def end_left(self, left: LeftRunning, settings: Settings) -> None:
        """The same of what an earlier daemon left, where no daemon runs.

        Raises OSError where the directories cannot be used, NginxError where addresses could not be given back.
        """
        shared = self._shared
        await self._written.read_processes()
        for identity in left.nginx:
            with suppress(NginxError):  # Its program is gone: then it cannot be told of new addresses, only ended.
                if shared.nginx.process is None and await shared.nginx.adopt(identity):
                    continue
            await _end_process(identity)
        await shared.peers.begin(self._have_looked)
        await shared.keys.begin(self._have_looked)
        await asyncio.to_thread(shared.tunnels.prepare)
        routers = [(Process.adopt(identity), left.ports.get(identity)) for identity in left.routers]
        for service in settings.services:
            for file in service.endpoints:
                with suppress(OSError, LookupError):  # Nothing of it runs any more, whatever the file says.
                    await asyncio.to_thread(keep_file, service.name, file, [])
        await self.run([LeftRouter(process, ports) for process, ports in routers if process is not None])
        for identity in (*left.small, *left.holders):
            await _end_process(identity)
        if shared.peers.problem:
            interface = settings.peers.interface
            text = f"all is stopped, but addresses of replicas are still on {interface}: {shared.peers.problem}"
            raise NginxError(f"{text}; or, as root: ip link delete {interface}")

    def _have_looked(self) -> bool:
        return self._services.have_looked


async def _end_process(identity: Identity) -> None:
    if (process := Process.adopt(identity)) is not None:
        await process.stop(grace_s=_END_GRACE_S)


async def take_down(nginx: Nginx, routers: Sequence[Ending], *, timeout_s: float, at_once: asyncio.Event) -> int:
    """Ends nginx and the routers, after `timeout_s` seconds or when `at_once` is set whatever is still in flight.

    Returns how many connections were cut. Bridges go last: a router may open connections to engines to the end.
    """
    deadline = awake.now() + timeout_s
    with suppress(NginxError, OSError):  # nginx is gone already, or its configuration cannot be written.
        await nginx.apply([])
    await asyncio.gather(*(router.close_client() for router in routers))
    ports = {router.ports.api for router in routers if router.ports is not None and router.pid is not None}
    while left := await asyncio.to_thread(_in_flight, nginx, ports):
        rest_s = deadline - awake.now()
        if rest_s <= 0 or at_once.is_set():
            break
        with suppress(TimeoutError):
            async with asyncio.timeout(min(_POLL_S, rest_s)):
                await at_once.wait()
    await asyncio.gather(*(router.stop(grace_s=_ROUTER_GRACE_S) for router in routers))
    await nginx.stop(grace_s=_NGINX_GRACE_S)
    return left


def _in_flight(nginx: Nginx, ports: Collection[int]) -> int:
    """Connections to the routers, and requests that nginx balances by itself. Blocks."""
    return open_connections(ports).total() + nginx.in_flight.count().total()
