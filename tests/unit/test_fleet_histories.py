"""Random histories of a fleet in fake time: three gateways on one store, each a whole service, and everything happens.

What must hold: whoever is told "safe to stop" may stop the engine. No gateway that is alive has a request there, or a
router that would send one. `FLEET_HISTORIES=100` plays more of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.api.answers import Refused
from gateway_sidecar.api.replicas import remove
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.in_fleet import InFleet
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.replicas import liveness, refused_sockets
from gateway_sidecar.control.routers import replacement as router_slots
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import Overrides, ReplicaId
from gateway_sidecar.errors import StateError, StoreAway, StoreError
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.sources.entry import ApiRecord
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from tests.fake_store import Held
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import Site
from tests.unit.world import Left, PlayedSource, World

REPLICAS = [ReplicaId("r1"), ReplicaId("r2")]
_HISTORIES = int(os.environ.get("FLEET_HISTORIES", "3"))
_LEASE_S = 15.0
_EVENTS = 60


class ApiSourceOf(PlayedSource):
    """The replicas that were put over the API, where their sockets are there."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.record = ApiRecord()

    def hint(self) -> None:
        if self.record.news is not None:
            self.record.news.set()

    async def look(self) -> Listing:
        if self.record.unread is not None:
            return Listing(unseen={"api": self.record.unread})
        present = {}
        for replica, entry in {**self.record.leaving, **self.record.entries}.items():
            path = self.directory / f"{replica}.sock"
            if path.exists():
                occupant = socket_identity(path)
                present[replica] = Sighting(
                    replica, path, occupant, "api", described=True, overrides=Overrides(), entry=entry
                )
        return Listing(present)

    async def hints(self) -> AsyncIterator[None]:
        while True:
            assert self.record.news is not None
            await self.record.news.wait()
            self.record.news.clear()
            yield


class OfFleet(World):
    """One gateway of a fleet: a whole service, and what it has in common with the others."""

    def __init__(self, name: str, directory: Path, held: Held) -> None:
        self.name, self.held, self.home = name, held, directory
        self.site: Site = None  # type: ignore[assignment]
        self.left: Left | None = None
        self.down_since = self.away_since = float("inf")
        self.is_seen, self.seen_since = False, -float("inf")
        (directory / "sockets").mkdir(parents=True)
        super().__init__(directory / "sockets")

    def look(self, now: float) -> None:
        """Notes whether the others can see it."""
        if (f"gateways/{self.name}" in self.held.entries) is not self.is_seen:
            self.is_seen, self.seen_since = not self.is_seen, now

    @property
    def counts(self) -> bool:
        """Whether the others wait for it: it is alive, and they know, or its lease and the grace are not over."""
        for_s = awake.now() - self.seen_since
        return for_s > 1 if self.is_seen else for_s < _LEASE_S - 1

    def _new_service(self) -> Service:
        if not isinstance(self.source, ApiSourceOf):
            self.source = ApiSourceOf(self.directory)
        self.site = Site(self.home / "state", self.held, self.name)
        if self.away_since < float("inf"):
            self.site.store.failing = StoreAway("cut off")
        self.asks, self.table = cast("Any", self.site.fleet.drains), cast("Any", self.site.fleet.ports)
        self.leases = self.site.leases
        self.source.record = self.site.fleet.replicas.of("chat")
        return super()._new_service()

    @property
    def daemon(self) -> Daemon:
        shared = SimpleNamespace(api=self.site.fleet.replicas, fleet=self.site.fleet)
        return cast("Daemon", cast("Any", SimpleNamespace(shared=shared)))

    async def begin(self) -> None:
        await self.site.fleet.replicas.load({})
        self.tasks = Tasks("-", self.metrics)
        services = cast(
            "Services", cast("Any", SimpleNamespace(by_name=lambda: {"chat": self.service}, frontends=dict))
        )
        standing = {"ready": True, "leaving": False}
        it = InFleet(self.site.fleet, services, lambda: standing, self._flush, self.tasks, {})
        for loop in [*it.loops, self.site.fleet.replicas.run]:
            self.tasks.run_forever(loop)
        await super().begin()

    async def end(self) -> None:
        await self.tasks.close()
        await super().end()

    async def _flush(self) -> None:
        await asyncio.sleep(0.01)

    # -- what happens to it

    async def crash(self) -> None:
        self.left, self.down_since = await self.die(), awake.now()

    async def revive(self) -> None:
        assert self.left is not None
        left, self.left, self.down_since = self.left, None, float("inf")
        await self.come_back(left)

    def cut(self) -> None:
        self.site.store.failing, self.away_since = StoreAway("cut off"), awake.now()

    def mend(self) -> None:
        self.site.store.failing, self.away_since = None, float("inf")

    # -- what clients see of it, whether its daemon runs or not

    def ports_of(self, replica: ReplicaId) -> list[int]:
        """Where its router would send a request for this replica."""
        urls = self.router.ready() if self.process.router is not None else set()
        return [int(url.rpartition(":")[2]) for url in urls if self.links.names.get(url) == replica]


@dataclass
class Request:
    """One that is in flight. engine: which engine of the replica's works on it."""

    world: OfFleet
    replica: ReplicaId
    engine: int
    port: int


class History:
    """What happens, and what is in flight."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.held = Held()
        self.directory = directory
        self.worlds: list[OfFleet] = []
        self.engines = dict.fromkeys(REPLICAS, 0)
        self.requests: list[Request] = []
        self.asked: set[asyncio.Task[None]] = set()
        self.safe = self.unsafe = self.answered = 0
        self.said: list[str] = []
        self.faults: list[BaseException] = []

    def note(self, text: str) -> None:
        self.said.append(f"{awake.now():8.2f} {text}")

    # -- clients

    async def clients(self) -> None:
        """Requests come all the time, at every gateway."""
        while True:
            await asyncio.sleep(self.random.uniform(0.05, 0.5))
            world = self.random.choice(self.worlds)
            reached = [(replica, port) for replica in REPLICAS for port in world.ports_of(replica)]
            if reached:
                replica, port = self.random.choice(reached)
                self.spawn(self.request(Request(world, replica, self.engines[replica], port)))

    async def request(self, it: Request) -> None:
        self.requests.append(it)
        it.world.connections[it.port] += 1
        await asyncio.sleep(self.random.choice([0.1, 1.0, 5.0, 20.0]))
        it.world.connections[it.port] -= 1
        self.requests.remove(it)
        self.answered += 1

    async def leases(self) -> None:
        """The store ends the lease of a gateway that it has not heard of."""
        while True:
            await asyncio.sleep(0.2)
            for world in self.worlds:
                world.look(awake.now())
                if awake.now() - min(world.down_since, world.away_since) > _LEASE_S:
                    for lease, keys in list(self.held.leases.items()):
                        if f"gateways/{world.name}" in keys:
                            self.held.end(lease)

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.asked.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        self.asked.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.faults.append(fault)

    # -- operators

    async def drain(self, world: OfFleet, replica: ReplicaId) -> None:
        drains, engine = world.service.drains, self.engines[replica]
        if not drains.is_for_fleet(replica):
            return
        with suppress(KeyError):
            report = await world.site.fleet.drains.drain(
                drains, replica, self.random.choice([1.0, 10.0, 60.0]), world.service.until
            )
            self.judge(world, replica, engine, report.drained, f"drain {report.reason}")

    async def delete(self, world: OfFleet, replica: ReplicaId) -> None:
        engine = self.engines[replica]
        with suppress(Refused):
            report = await remove(world.daemon, world.service, replica, self.random.choice([0.0, 5.0, 60.0]))
            self.judge(world, replica, engine, report.drained, f"delete {report.reason}")

    def judge(self, world: OfFleet, replica: ReplicaId, engine: int, drained: bool, what: str) -> None:
        self.note(f"{world.name}: {replica} {'safe' if drained else 'not safe'}: {what}")
        self.safe, self.unsafe = self.safe + drained, self.unsafe + (not drained)
        if not drained or world.left is not None or self.engines[replica] != engine:
            return
        for other in self.worlds:
            if not other.counts:
                continue
            flying = [it for it in self.requests if (it.world, it.replica, it.engine) == (other, replica, engine)]
            assert not flying, f"{other.name} has requests in flight\n" + "\n".join(self.said[-70:])
            assert not other.ports_of(replica), (
                f"{other.name} would send there, seen for {awake.now() - other.seen_since} s\n"
                + "\n".join(self.said[-70:])
            )

    async def put(self, world: OfFleet, replica: ReplicaId) -> None:
        with suppress(StateError):
            await world.site.fleet.replicas.put("chat", replica, {"socket": f"/run/{replica}.sock"})

    async def resume(self, world: OfFleet, replica: ReplicaId) -> None:
        with suppress(StoreError, KeyError):
            await world.site.fleet.drains.take_back(world.service.drains, replica)
            world.service.drains.resume(replica)

    # -- the world

    def replace_engine(self, replica: ReplicaId) -> None:
        """Another engine is there, at every gateway."""
        self.engines[replica] += 1
        for world in self.worlds:
            world.appear(replica)

    async def happens(self) -> None:
        """One thing, at one gateway."""
        replica, world = self.random.choice(REPLICAS), self.random.choice(self.worlds)
        is_up = world.left is None
        what = self.random.choices(
            ["put", "drain", "delete", "resume", "crash", "cut", "replace", "join"], [6, 12, 4, 4, 3, 3, 1, 1]
        )[0]
        if what in ("put", "drain", "delete", "resume"):
            if is_up:
                self.note(f"{world.name}: {what} {replica}")
                self.spawn(getattr(self, what)(world, replica))
        elif what == "crash":
            self.note(f"{world.name}: {'crashes' if is_up else 'comes back'}")
            await (world.crash() if is_up else world.revive())
        elif what == "cut":
            is_cut = world.away_since < float("inf")
            self.note(f"{world.name}: {'mended' if is_cut else 'cut off'}")
            (world.mend if is_cut else world.cut)()
        elif what == "replace":
            self.note(f"another engine is {replica}")
            self.replace_engine(replica)
        elif len(self.worlds) < 4:
            self.note("d: joins")
            await self.join("d")

    async def join(self, name: str) -> None:
        world = OfFleet(name, self.directory / name, self.held)
        self.worlds.append(world)
        for replica in REPLICAS:
            world.appear(replica)
        await world.begin()

    async def play(self) -> None:
        for name in "abc":
            await self.join(name)
        self.spawn(self.clients())
        self.spawn(self.leases())
        for replica in REPLICAS:
            await self.put(self.worlds[0], replica)
        for _ in range(_EVENTS):
            await asyncio.sleep(self.random.choice([0.01, 0.1, 1.0, 3.0, 20.0]))
            await self.happens()
            self.hold()
        await self.calm_down()
        self.hold()

    def hold(self) -> None:
        """Raises what a promise broke, or a fault of the test's own."""
        for fault in self.faults:
            raise fault

    async def calm_down(self) -> None:
        """Nothing else happens: in the end all gateways serve the same, on what ports they can."""
        for world in self.worlds:
            if world.away_since < float("inf"):
                world.mend()
            if world.left is not None:
                await world.revive()
        await asyncio.sleep(100)
        for replica in REPLICAS:
            await self.put(self.worlds[0], replica)
            for world in self.worlds:
                await self.resume(world, replica)
        deadline = awake.now() + 120
        while not all(world.serves(*REPLICAS) for world in self.worlds):
            states = {world.name: world.states() for world in self.worlds}
            assert awake.now() < deadline, f"{states}\n" + "\n".join(self.said[-70:])
            await asyncio.sleep(1)
        assert self.worlds[0].site.fleet.drains.held == {}

    async def close(self) -> None:
        for task in list(self.asked):
            task.cancel()
        await asyncio.gather(*self.asked, return_exceptions=True)
        for world in self.worlds:
            if world.left is None:
                await world.end()


@pytest.mark.parametrize("seed", range(_HISTORIES))
def test_whoever_is_told_that_it_is_safe_may_stop_the_engine(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever gateways crash, are cut off from the store or join meanwhile, and whoever else asks for what."""

    async def connect(*_: object, **__: object) -> asyncio.Transport:
        raise ConnectionRefusedError

    def refused(_: Mapping[str, object] | str) -> bool:
        return False

    monkeypatch.setattr(router_slots, "open_connections", lambda _ports: {})
    monkeypatch.setattr(liveness, "connect_liveness", connect)
    monkeypatch.setattr(refused_sockets, "is_refused", refused)

    @in_fake_time
    async def test() -> None:
        history = History(tmp_path, seed)
        try:
            await history.play()
        finally:
            await history.close()
        print(f"seed {seed}: {history.safe} safe, {history.unsafe} not, {history.answered} requests")

    test()
