"""`plan` names the replicas that a reload would touch, and what is in flight on each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.api.reload_view import COMES, LEAVES, MOVES, STAYS, reload_plan
from gateway_sidecar.api.table import reload_lines
from gateway_sidecar.config.differences import Change
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.file_on_disk import OnDisk
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.sources.listing import Listing
from tests.unit.fake_time import in_fake_time
from tests.unit.world import World, running_world

R1, R2, R3, R4 = (ReplicaId(f"r{number}") for number in range(1, 5))


async def touched(world: World, change: Change, listing: Listing, *, removed: bool = False) -> dict[str, Any]:
    """What `plan` says of one change: replica -> effect, and what is in flight there."""
    settings = SimpleNamespace(services=() if removed else (world.service.settings,))

    async def listing_by(_settings: object) -> Listing:
        return listing

    in_flight = {url: 3.0 for tenure in world.service.tenures.values() if tenure.replica == R1 for url in tenure.urls}
    signals = SimpleNamespace(active_at=lambda urls, _now: sum(in_flight.get(url, 0.0) for url in urls))
    parts = SimpleNamespace(
        file=SimpleNamespace(path=Path("/g.yaml"), found=OnDisk("differs", (), (change,), cast(Any, settings))),
        services={world.service.name: world.service}, signals=SimpleNamespace(of={world.service.name: signals}),
        listing_by=listing_by,
    )  # fmt: skip
    plan = await reload_plan(cast(Daemon, cast(Any, parts)))
    (found,) = plan["changes"]
    text = "\n".join(reload_lines(plan))
    assert all(f"    replica {it['replica']}: {it['effect']}" in text for it in found["replicas"])
    return {it["replica"]: (it["effect"], it["in_flight"]) for it in found["replicas"]}


@in_fake_time
async def test_a_reload_names_the_replicas_that_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that leave, move and come with other sources; those with requests at a router that is replaced."""
    async with running_world(tmp_path, monkeypatch) as world:
        for replica in (R1, R2, R3):
            world.appear(replica)
        await world.until(lambda: set(world.states().values()) == {"serving"} and len(world.states()) == 3)
        name, seen = world.service.name, world.service.reflector.listing
        assert seen is not None
        elsewhere = replace(seen.present[R2], socket=tmp_path / "other.sock", target=None)
        other = Listing({R2: elsewhere, R3: seen.present[R3], R4: elsewhere})
        by_sources = Change(name, "replicas", "x", ("replicas",))
        assert await touched(world, by_sources, other) == {R1: (LEAVES, 3.0), R2: (MOVES, 0.0), R4: (COMES, None)}
        assert await touched(world, by_sources, Listing(blind="no such directory")) == {}
        router = Change(name, "router", "x", ("router",))
        assert await touched(world, router, Listing()) == {R1: (STAYS, 3.0)}
        assert await touched(world, Change(name, "hold", None, ("hold",)), Listing()) == {}
        gone = await touched(world, Change(name, "removed", "x"), Listing(), removed=True)
        assert gone == {R1: (LEAVES, 3.0), R2: (LEAVES, 0.0), R3: (LEAVES, 0.0)}
