"""What a gateway tells the others of itself, and for how long they see it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.control.process.in_fleet import InFleet
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.replicas.tenure import Presence
from gateway_sidecar.domain.fleet import DrainSeen, Gateway
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.routers.base import MeshMember
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import boot_id
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import ENTRY, Fleets, Site, fleets


class PlayedServices:
    """One service, `chat`, that has one connection in flight to whatever is drained. rests: services that are gone."""

    def __init__(self) -> None:
        self.rests: set[str] = set()
        self.name = "chat"
        setup = SimpleNamespace(wants_mesh=False)
        self.router = SimpleNamespace(setup=setup, mesh=None)

    @property
    def slots(self) -> Any:
        return SimpleNamespace(watched=[SimpleNamespace(router=self.router)])

    def by_name(self) -> Mapping[str, Any]:
        return {"chat": self}

    @property
    def drains(self) -> PlayedServices:
        return self

    @property
    def tenures(self) -> Mapping[int, Any]:
        stays = (("r1", "serving", False), ("r2", "loading", False), ("r1", "draining", True))
        return {
            key: SimpleNamespace(
                replica=ReplicaId(name),
                gone=gone,
                status=SimpleNamespace(state=ReplicaState(state)),
                presence=Presence.GONE if gone else Presence.PRESENT,
                sighting=SimpleNamespace(source="api"),
                bridge=SimpleNamespace(port=24003 + key if name == "r1" else None),
            )
            for key, (name, state, gone) in enumerate(stays)
        }

    def frontends(self) -> Mapping[str, Any]:
        return {}

    def may_have_in_flight(self, name: str) -> bool:
        return name in self.rests

    def says(self, replica: ReplicaId, asked: str) -> DrainSeen:
        return DrainSeen(asked, False, True, 1)


class InOne:
    """A gateway of a fleet that tells by itself what it tells."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.leaving = False
        self.tasks = Tasks("-", site.metrics)
        self.services = PlayedServices()
        services = cast("Services", cast("Any", self.services))
        self.it = InFleet(site.fleet, services, self._standing, site.written_down, self.tasks, {})

    def _standing(self) -> Mapping[str, bool]:
        return {"ready": True, "leaving": self.leaving}

    async def start(self) -> None:
        await self.site.fleet.replicas.load({})
        for loop in [*self.it.loops, self.site.fleet.replicas.run]:
            self.tasks.run_forever(loop)
        await asyncio.sleep(6)

    def seen_by(self, other: Site) -> list[Gateway]:
        return other.fleet.membership.others


async def beside(them: Fleets) -> tuple[Site, InOne]:
    a = await them.start("a")
    b = InOne(Site(them.directory / "b", them.held, "b"))
    await b.start()
    return a, b


@in_fake_time
async def test_the_others_see_what_it_serves_and_what_it_says_of_each_drain(tmp_path: Path) -> None:
    """A service that it does not have needs nothing of it; one that a reload removed finishes what it has."""
    async with fleets(tmp_path) as them:
        a, b = await beside(them)
        await a.fleet.drains.ask("chat", ReplicaId("r1"))
        await a.fleet.drains.ask("images", ReplicaId("r1"))
        b.services.rests = {"removed"}
        await a.fleet.drains.ask("removed", ReplicaId("r1"))
        await asyncio.sleep(1)
        (seen,) = b.seen_by(a)
        assert (seen.name, seen.services, seen.ready, seen.leaving) == ("b", ("chat",), True, False)
        assert seen.since.endswith("Z")
        held = a.fleet.drains.held
        assert seen.drains == {
            "chat/r1": DrainSeen(held["chat/r1"].id, False, True, 1),
            "images/r1": DrainSeen(held["images/r1"].id, True),
            "removed/r1": DrainSeen(held["removed/r1"].id, False),
        }
        await b.site.fleet.replicas.put("chat", ReplicaId("r3"), ENTRY)
        await asyncio.sleep(3)
        seen_there = (await a.fleet.seen.read()).states["b"]
        assert seen_there == {"chat": {"r1": ("serving", 24003), "r2": ("loading", None), "r3": ("absent", None)}}
        for replica in ("r1", "r2"):
            await b.site.fleet.replicas.put("chat", ReplicaId(replica), ENTRY)
        await asyncio.sleep(3)
        assert a.fleet.ports.table.current == {"chat/r1": 24003}, "the port that it has there already"
        await b.tasks.close()


@in_fake_time
async def test_it_is_seen_until_all_that_it_had_has_stopped(tmp_path: Path) -> None:
    """However long requests in flight keep it: a drain waits for them."""
    async with fleets(tmp_path) as them:
        a, b = await beside(them)
        await b.tasks.close()
        b.leaving = True
        await b.it.while_stopping(asyncio.sleep(300))
        (seen,) = b.seen_by(a)
        assert seen.leaving
        await b.it.close(leaves=True)
        await asyncio.sleep(0.2)
        assert b.seen_by(a) == []
        assert a.fleet.membership.gone_s == {}


@in_fake_time
async def test_a_gateway_that_works_alone_tells_nobody_anything(tmp_path: Path) -> None:
    """And stops as it ever did."""
    tasks = Tasks("-", Metrics())
    services = cast("Services", cast("Any", PlayedServices()))

    async def flush() -> None:
        raise AssertionError("nobody is told anything")

    alone = InFleet(None, services, dict, flush, tasks, {})
    assert alone.loops == ()
    alone.recall_ports({"told": {}})
    await alone.while_stopping(asyncio.sleep(1))
    await alone.close(leaves=True)


@in_fake_time
async def test_ports_that_were_told_are_recalled_and_what_nobody_can_read_is_ignored(tmp_path: Path) -> None:
    """They are hints."""
    async with fleets(tmp_path) as them:
        _, b = await beside(them)
        told = {"chat/r1": (24001, "chat/r1/1")}
        with capture_logs() as log:
            b.it.recall_ports({})
            b.it.recall_ports({"boot_id": boot_id(), "told": {"chat/r1": [0, "chat/r1/1"]}})
        assert [each["event"] for each in log] == ["state.ignored"]
        b.it.recall_ports({"boot_id": boot_id(), "told": told})
        assert b.site.fleet.ports.told == told


@in_fake_time
async def test_the_others_see_where_its_router_is_in_the_mesh(tmp_path: Path) -> None:
    """As long as that is so, and nothing of a mesh otherwise."""
    async with fleets(tmp_path) as them:
        a, b = await beside(them)
        assert "mesh" not in b.seen_by(a)[0].said
        service: Any = b.services
        assert b.it.mesh_of(service) is None
        b.services.router.mesh = MeshMember("b.chat.1", "10.0.0.2", 23003, "", "/ca", "/certificate", "/key", 1.9e9)
        b.services.router.up = False
        b.services.router.setup.wants_mesh = True
        await asyncio.sleep(6)
        assert [(it.gateway, it.name, it.address) for it in a.fleet.mesh.others("chat")] == [
            ("b", "b.chat.1", "10.0.0.2:23003")
        ]
        assert b.it.mesh_of(service) == "joined, and no other gateway is"
        b.services.router.mesh = None
        await asyncio.sleep(6)
        assert a.fleet.mesh.others("chat") == []
