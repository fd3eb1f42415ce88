"""The tunnels that replicas need are kept, and who is behind one that changed is asked again at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway_sidecar.control.process.tunnel_demand import TunnelDemand
from gateway_sidecar.supervision.loops import Tasks, cancelled
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time


class Site:
    """Tunnels and services that are played."""

    def __init__(self) -> None:
        self.wanted: list[tuple[set[str], bool]] = []
        self.asked_again = 0
        self.links: list[Any] = []
        self.tunnels = SimpleNamespace(want=self._want, connections=self.links, changed=asyncio.Event())
        prober = SimpleNamespace(tunnels_changed=self._ask, measure_tunnels=lambda: None)
        self.services = SimpleNamespace(
            tunnels={"h:/r1.sock"}, have_looked=False, by_name=lambda: {"chat": SimpleNamespace(prober=prober)}
        )
        self.metrics = Metrics()
        self.demand = TunnelDemand(cast("Any", self.tunnels), cast("Any", self.services), self.metrics)

    def _want(self, tunnels: set[str], *, complete: bool) -> None:
        self.wanted.append((tunnels, complete))

    def _ask(self) -> None:
        self.asked_again += 1


@in_fake_time
async def test_what_is_needed_is_said_again_and_again() -> None:
    """What an earlier daemon left stays until every service has looked."""
    site, tasks = Site(), Tasks("-", Metrics())
    loop = tasks.run_forever(site.demand.run)
    await asyncio.sleep(1)
    assert site.wanted[-1] == ({"h:/r1.sock"}, False)
    site.services.tunnels, site.services.have_looked = {"h:/r2.sock"}, True
    site.demand.touch()
    await asyncio.sleep(0.1)
    assert site.wanted[-1] == ({"h:/r2.sock"}, True)
    await cancelled(loop)


@in_fake_time
async def test_a_tunnel_that_changes_is_news_of_its_replicas() -> None:
    site, tasks = Site(), Tasks("-", Metrics())
    loops = [tasks.run_forever(site.demand.run), tasks.run_forever(site.demand.follow)]
    await asyncio.sleep(1)
    assert site.asked_again == 0
    site.links += [SimpleNamespace(status=SimpleNamespace(is_up=up)) for up in (True, False, True)]
    site.tunnels.changed.set()
    await asyncio.sleep(0.1)
    assert site.asked_again == 1
    assert site.metrics.tunnel_links.labels("up")._value.get() == 2
    assert site.metrics.tunnel_links.labels("down")._value.get() == 1
    await cancelled(*loops)
