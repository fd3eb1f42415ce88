"""Gateways that share a real etcd, for figures of several of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.place import BASE
from bench.ports import free_ports
from tests.etcd import Etcd
from tests.system.gateway import Gateway, states_of


class Site:
    """An etcd, and gateways that share it: with the same bridge ports, on addresses of their own."""

    def __init__(self, etcd: Etcd, bridges: int, router: str, **service: Any) -> None:
        self._etcd = etcd
        first = free_ports(bridges)
        self._bridges = f"{first}-{first + bridges - 1}"
        self._service = {"replicas": {}, "router": {"type": router}, **service}
        self._started = 0

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        """One more that runs."""
        self._started += 1
        hosts = {"host": f"127.0.{self._started}.1", "grpc_host": f"127.0.{self._started}.2"}
        gateway = Gateway(
            base=BASE,
            log={"format": "json", "level": "info"},
            bridges={"ports": self._bridges, **hosts},
            store={"gateway": f"gw-{self._started}", "etcd": {"endpoints": [self._etcd.endpoint]}},
        )
        gateway.settings["services"][0] |= self._service
        try:
            await gateway.start()
            yield gateway
        finally:
            await gateway.close()


async def put(gateway: Gateway, replica: str, socket: Path) -> None:
    """Over the API. Raises RuntimeError."""
    url = f"http://daemon/v1/services/chat/replicas/{replica}"
    async with gateway.session.put(url, json={"socket": str(socket)}) as answer:
        if answer.status != 201:
            raise RuntimeError(f"PUT of {replica}: {answer.status} {await answer.text()}")


async def until_serving(gateway: Gateway, replicas: int, *, within_s: float = 120.0) -> None:
    """Returns when so many serve there, and no others are. Raises AssertionError."""
    await gateway.until(lambda status: list(states_of(status).values()) == ["serving"] * replicas, within_s=within_s)
