"""Tunnels are kept for those who need them, in fake time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from gateway_sidecar.control.process.tunnel_demand import TunnelDemand
from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from tests.unit.fake_time import in_fake_time
from tests.unit.services import CHAT, CODE, Fleet

TUNNEL = Tunnel("chat/r1", SshRoute((SshServer("gpu"),)), "/e.sock")


class PlayedTunnels:
    """Remembers what was wanted, and whether that was all."""

    def __init__(self) -> None:
        self.wanted: list[tuple[set[Tunnel], bool]] = []
        self.changed = asyncio.Event()
        self.connections: list[Any] = []

    def request(self, tunnels: set[Tunnel], *, complete: bool) -> None:
        self.wanted.append((tunnels, complete))


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Fleet, PlayedTunnels, TunnelDemand]]:
    fleet, tunnels = Fleet(CHAT, CODE), PlayedTunnels()
    demand = TunnelDemand(cast("Any", tunnels), fleet.services, fleet.metrics)
    loops = [asyncio.create_task(demand.run()), asyncio.create_task(demand.follow())]
    await asyncio.sleep(0)
    try:
        yield fleet, tunnels, demand
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


@in_fake_time
async def test_a_tunnel_is_wanted_a_moment_after_somebody_needs_it() -> None:
    async with running() as (fleet, tunnels, demand):
        fleet.of("chat").has(ReplicaState.SERVING, TUNNEL)
        demand.touch()
        await asyncio.sleep(0.1)
        assert tunnels.wanted[-1] == ({TUNNEL}, True)
        fleet.of("chat").tenures.clear()
        await asyncio.sleep(6)
        assert tunnels.wanted[-1] == (set(), True), "and whatever is said, every five seconds"
        assert len(tunnels.wanted) <= 5


@in_fake_time
async def test_what_is_wanted_is_not_all_before_everybody_was_seen() -> None:
    """No tunnel of an earlier daemon ends because its replica was not looked at yet."""
    async with running() as (fleet, tunnels, _):
        fleet.of("code").has_looked = False
        await asyncio.sleep(6)
        assert tunnels.wanted[-1] == (set(), False)


@in_fake_time
async def test_who_is_behind_a_tunnel_that_changed_is_asked_again_at_once() -> None:
    async with running() as (fleet, tunnels, _):
        await asyncio.sleep(0.5)
        before = len(tunnels.wanted)
        tunnels.changed.set()
        await asyncio.sleep(0.1)
        assert (fleet.of("chat").asked_again, fleet.of("code").asked_again) == (1, 1)
        assert len(tunnels.wanted) == before + 1


@in_fake_time
async def test_connections_are_counted_by_whether_they_are_up() -> None:
    async with running() as (fleet, tunnels, _):
        tunnels.connections = [SimpleNamespace(status=SimpleNamespace(is_up=up)) for up in (True, False, False)]
        await asyncio.sleep(6)
        assert fleet.metrics.tunnel_links.labels("up")._value.get() == 1
        assert fleet.metrics.tunnel_links.labels("down")._value.get() == 2
        assert fleet.of("chat").measured > 0
