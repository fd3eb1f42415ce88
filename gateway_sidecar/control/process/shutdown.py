"""Takes everything down in order, so that what is in flight can end: addresses first, then routers, bridges last."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision import awake

_POLL_S = 0.1
_ROUTER_GRACE_S = 0.5
_NGINX_GRACE_S = 1.0


class Ending(Protocol):
    """A router that is to end: one of ours, or an earlier daemon's."""

    @property
    def pid(self) -> int | None: ...

    @property
    def ports(self) -> RouterPorts | None: ...

    async def close_client(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


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
