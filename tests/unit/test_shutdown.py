"""Everything is taken down in order, in fake time, with nginx and routers that are played."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any, cast

import pytest

from gateway_sidecar.control.process import shutdown
from gateway_sidecar.control.process.shutdown import take_down
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.balance import InFlight
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time


class Gateway:
    """nginx, one router, and the connections to the router. `done` says what was done, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, connections: int = 0) -> None:
        self.connections = connections
        self.done: list[str] = []
        self.fault: Exception | None = None
        self.pid: int | None = 7
        self.ports: RouterPorts | None = RouterPorts(23001, 23002)
        self.at_once = asyncio.Event()
        self.in_flight = InFlight(Path("/none"), 24001, 24002)
        patch.setattr(shutdown, "open_connections", self._count)

    async def end(self, timeout_s: float = 60.0) -> int:
        nginx = cast("Any", self)
        nginx.stop = self.stop
        return await take_down(nginx, [nginx], timeout_s=timeout_s, at_once=self.at_once)

    async def apply(self, services: list[object]) -> None:
        assert services == []
        self.done.append("addresses closed")
        if self.fault is not None:
            raise self.fault

    async def close_client(self) -> None:
        self.done.append("own connections closed")

    async def stop(self, grace_s: float) -> None:
        self.done.append("router ended" if "router ended" not in self.done else "nginx ended")

    def _count(self, ports: Container[int]) -> Counter[int]:
        return Counter({23001: self.connections} if 23001 in ports else {})


ORDER = ["addresses closed", "own connections closed", "router ended", "nginx ended"]


@in_fake_time
async def test_addresses_go_first_and_bridges_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router may open connections to engines to the end; our own connections to it are nobody's request."""
    gateway = Gateway(monkeypatch)
    assert await gateway.end() == 0
    assert gateway.done == ORDER
    assert awake.monotonic() == 0


@in_fake_time
async def test_what_is_in_flight_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch, connections=2)
    asyncio.get_running_loop().call_later(30, setattr, gateway, "connections", 0)
    assert await gateway.end() == 0
    assert awake.monotonic() == pytest.approx(30, abs=0.2)


@in_fake_time
async def test_what_does_not_end_in_time_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch, connections=2)
    assert await gateway.end(timeout_s=10) == 2
    assert awake.monotonic() == pytest.approx(10, abs=0.2)
    assert gateway.done == ORDER


@in_fake_time
async def test_a_second_wish_to_stop_ends_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch, connections=2)
    asyncio.get_running_loop().call_later(3, gateway.at_once.set)
    assert await gateway.end(timeout_s=3600) == 2
    assert awake.monotonic() == pytest.approx(3, abs=0.2)


@in_fake_time
@pytest.mark.parametrize("fault", [NginxError("nginx is gone"), OSError("disk full")])
async def test_an_nginx_that_cannot_be_told_keeps_nobody(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    gateway = Gateway(monkeypatch)
    gateway.fault = fault
    assert await gateway.end() == 0
    assert gateway.done == ORDER


@in_fake_time
async def test_a_router_that_does_not_run_has_nothing_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports may be somebody else's by now."""
    gateway = Gateway(monkeypatch, connections=2)
    gateway.pid = None
    assert await gateway.end(timeout_s=3600) == 0
    assert awake.monotonic() == 0
