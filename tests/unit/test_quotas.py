"""Keys that come near their quota: the metric that an alert is made of."""

from __future__ import annotations

import asyncio
import calendar
from collections.abc import Mapping
from pathlib import Path

import pytest

import gateway_sidecar
from gateway_sidecar.config import AuthSettings, FrontendSettings
from gateway_sidecar.config.frontend import UsageSettings
from gateway_sidecar.control.edge import quotas
from gateway_sidecar.control.edge.quotas import Quotas
from gateway_sidecar.errors import StateError
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.test_used_up import PlayedUsage

NOW = calendar.timegm((2027, 1, 15, 12, 0, 0))
DAY, MONTH = "tokens_per_day", "tokens_per_month"


class World:
    """One service with a file of keys, and what they have used."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "chat.keys"
        self.usage = PlayedUsage()
        self.metrics = Metrics()
        settings = FrontendSettings(auth=AuthSettings(keys_file=self.keys), usage=UsageSettings())
        self.frontends = {"chat": settings}
        self.quotas = Quotas(self.usage, lambda: self.frontends, self.metrics, lambda: NOW)

    def write(self, **words: str) -> None:
        """Keys, and the words after each."""
        lines = [f"{name}:{number:064x} {text}" for number, (name, text) in enumerate(words.items(), 1)]
        self.keys.write_text("\n".join(["plan team tokens_per_day=1k tokens_per_month=10k", *lines, ""]))
        self.keys.chmod(0o600)

    async def look(self) -> Mapping[tuple[str, str], float]:
        """Key and bound -> the share that the metric says."""
        await self.quotas.look()
        samples = next(iter(self.metrics.key_bound_used.collect())).samples
        return {(it.labels["key"], it.labels["bound"]): it.value for it in samples}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_each_key_with_a_quota_has_the_share_that_it_has_used(world: World) -> None:
    """Of its own bound, or its plan's; no series for keys that have none, or are paused."""
    world.write(alice="plan=team", bob="plan=team tokens_per_day=none", eve="tokens_per_day=10 paused", dan="")
    world.usage.used = [
        ("chat", NOW - 60, "alice", 850), ("chat", NOW - 86400, "alice", 3150), ("chat", NOW, "bob", 20_000),
        ("chat", NOW, "dan", 5), ("code", NOW, "alice", 9000),
    ]  # fmt: skip
    assert await world.look() == {("alice", DAY): 0.85, ("alice", MONTH): 0.4, ("bob", MONTH): 2.0}
    assert list(world.quotas.near.items()) == [(("chat", "bob", MONTH), 2.0), (("chat", "alice", DAY), 0.85)]


def test_near_is_where_the_alert_fires() -> None:
    """`status` and the alert name the same keys."""
    alerts = (Path(gateway_sidecar.__file__).parent / "share" / "prometheus" / "alerts.yaml").read_text("utf-8")
    assert f"gateway_sidecar_key_bound_used_ratio >= {quotas.NEAR}" in alerts


@in_fake_time
async def test_a_service_that_was_removed_is_near_no_quota_any_more(tmp_path: Path) -> None:
    """Without another look at all keys, which comes minutes later."""
    world = World(tmp_path)
    world.write(alice="tokens_per_day=100")
    world.usage.used = [("chat", NOW, "alice", 90)]
    running = asyncio.create_task(world.quotas.run())
    await asyncio.sleep(1)
    assert list(world.quotas.near) == [("chat", "alice", DAY)]
    world.frontends = {}
    await asyncio.sleep(6)
    assert world.quotas.near == {}
    assert next(iter(world.metrics.key_bound_used.collect())).samples == []
    running.cancel()


async def test_a_changed_file_counts_and_one_with_a_mistake_does_not(world: World) -> None:
    """As with nginx, which goes on with the bounds before."""
    world.write(alice="tokens_per_day=100")
    world.usage.used = [("chat", NOW, "alice", 80)]
    assert await world.look() == {("alice", DAY): 0.8}
    world.write(alice="tokens_per_day=1000")
    assert await world.look() == {("alice", DAY): 0.08}
    world.write(alice="tokens_per_day=many")
    assert await world.look() == {("alice", DAY): 0.08}


async def test_what_is_not_known_stays_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is not zero: an alert does not end because a disk is away."""
    world.write(alice="tokens_per_day=100")
    world.usage.used = [("chat", NOW, "alice", 80)]
    await world.look()

    async def fails(service: str, unix_s: float) -> Mapping[str, int]:
        raise StateError("usage: no disk")

    monkeypatch.setattr(world.usage, "tokens_since", fails)
    assert await world.look() == {("alice", DAY): 0.8}
    world.frontends = {}
    assert await world.look() == {}


async def test_the_largest_shares_have_series(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand keys do not make a page of ten thousand lines."""
    monkeypatch.setattr(quotas, "MOST_SERIES", 2)
    world.write(**{f"k{number}": "tokens_per_day=100" for number in range(5)})
    world.usage.used = [("chat", NOW, f"k{number}", number) for number in range(5)]
    assert await world.look() == {("k4", DAY): 0.04, ("k3", DAY): 0.03}
    world.usage.used.append(("chat", NOW, "k0", 50))
    assert await world.look() == {("k0", DAY): 0.5, ("k4", DAY): 0.04}
