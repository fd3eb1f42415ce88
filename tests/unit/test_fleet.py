"""Several gateways on a store in memory, in fake time: what each of them knows, tells, and refuses to believe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gateway_sidecar.config.store import store_model
from gateway_sidecar.control.fleet import build
from gateway_sidecar.control.fleet.acme import FleetAcme
from gateway_sidecar.control.fleet.alike import Alike
from gateway_sidecar.control.fleet.authorities import FleetAuthorities
from gateway_sidecar.control.fleet.certificates import FleetCertificates
from gateway_sidecar.control.fleet.drains import FleetDrains
from gateway_sidecar.control.fleet.fleet import Fleet, Telling
from gateway_sidecar.control.fleet.keys import FleetKeys
from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.memory import RememberedStore, record_in
from gateway_sidecar.control.fleet.mesh import FleetMesh
from gateway_sidecar.control.fleet.ports import FleetPorts
from gateway_sidecar.control.fleet.reflector import TOPICS, StoreReflector
from gateway_sidecar.control.fleet.replicas import SharedReplicas, read_remembered
from gateway_sidecar.control.fleet.seen import Seen
from gateway_sidecar.control.fleet.usage import FleetUsage
from gateway_sidecar.control.state.records import write_record
from gateway_sidecar.domain.fleet import AskedDrain, DrainSeen
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import StateError, StateInDoubt, StoreAway, StoreDenied, StoreError, StoreFull
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.fake_store import FakeStore, Held
from tests.unit.fake_time import in_fake_time
from tests.unit.test_used_up import PlayedUsage

R1, R2 = ReplicaId("r1"), ReplicaId("r2")
ENTRY: dict[str, object] = {"socket": "/run/r1.sock"}
OTHER: dict[str, object] = {"socket": "/run/r2.sock"}


class Site:
    """One gateway, as far as its fleet goes."""

    def __init__(self, directory: Path, held: Held, name: str, client: type[FakeStore] = FakeStore) -> None:
        directory.mkdir(exist_ok=True)
        self.store = client(held)
        self.problems, self.metrics = Problems(), Metrics()
        remembered = RememberedStore(record_in(directory), self.problems, self.metrics)
        problem = self.problems.of("store")
        reflector = StoreReflector(self.store, remembered, problem, self.metrics, read_every_s=5.0)
        membership = Membership(self.store, reflector, remembered, name, self.problems.of("store: gateway"), lease_s=15)
        local = directory / "replicas.json"
        replicas = SharedReplicas(self.store, reflector, remembered, membership.joined, local)
        drains = FleetDrains(self.store, reflector, membership, replicas)
        seen = Seen(self.store, reflector, membership)
        self.leases = PortLeases(range(24001, 24021))
        ports = FleetPorts(self.store, reflector, membership, replicas, self.leases)
        keys = FleetKeys(reflector, membership, directory / "keys", self.problems.of("store: keys"))
        alike = Alike(membership, self.problems.of("store: settings"))
        self.usage = PlayedUsage()
        used = FleetUsage(self.store, reflector, membership, remembered, self.usage, directory / "used-elsewhere")
        self.counts: list[str] = []
        self.ports: dict[str, int] = {}
        self.alike: dict[str, str] = {}
        self.sees: dict[str, Any] = {}
        problem = self.problems.of("store: certificates")
        certificates = FleetCertificates(reflector, directory / "certificates", problem)
        places = directory / "acme", directory / "challenges"
        acme = FleetAcme(reflector, membership, remembered, *places, self.problems)
        authorities = FleetAuthorities(self.store, reflector, lambda: 1.8e9)
        mesh = FleetMesh(membership, authorities, lambda: "127.0.0.1", directory / "mesh", lambda: 1.8e9)
        self.fleet = Fleet(
            *("memory", self.store, remembered, reflector, membership, replicas, drains, seen, ports, keys),
            *(certificates, acme, alike, used, mesh),
        )
        self.says: dict[str, DrainSeen] = {}
        self.written = 0

    def describe(self) -> dict[str, Any]:
        held = self.fleet.drains.held
        drains = {key: self.says_of(key, it).said() for key, it in held.items()}
        ports, challenges = self.fleet.ports.says().said(), self.fleet.acme.says()
        mesh = {"mesh": mesh} if (mesh := self.fleet.mesh.said({})) else {}
        return {"drains": drains, "ports": ports, "challenges": challenges, "alike": self.alike, **mesh}

    def says_of(self, key: str, asked: AskedDrain) -> DrainSeen:
        return replace(self.says.get(key, DrainSeen("", True)), id=asked.id)

    def telling(self) -> Telling:
        return Telling(
            self.describe, self.says_of, lambda: self.sees, lambda: self.ports, self.written_down, lambda: self.counts
        )

    async def written_down(self) -> None:
        self.written += 1

    @property
    def state(self) -> str:
        return self.fleet.reflector.status.state

    def entries(self) -> dict[ReplicaId, Any]:
        return dict(self.fleet.replicas.of("chat").entries)

    def errors(self, kind: str) -> float:
        value = self.metrics.registry.get_sample_value("gateway_sidecar_store_errors_total", {"kind": kind})
        return value or 0.0


class Fleets:
    """Gateways of one store, which run until the end of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held = Held()
        self._tasks: dict[Site, Tasks] = {}

    async def start(self, name: str, before: dict[str, list[ReplicaId]] | None = None, **site: Any) -> Site:
        made = Site(self.directory / name, self.held, site.get("called", name), site.get("client", FakeStore))
        made.store.failing = site.get("failing")
        made.says = site.get("says", {})
        await made.fleet.replicas.load(before or {})
        self.run(made)
        await asyncio.sleep(6)
        return made

    def run(self, site: Site) -> None:
        tasks = self._tasks[site] = Tasks("-", site.metrics)
        for loop in [
            *site.fleet.loops(site.telling()),
            site.fleet.replicas.run,
        ]:
            tasks.run_forever(loop)

    async def stop(self, site: Site) -> None:
        await self._tasks.pop(site).close()

    async def close(self) -> None:
        for site in list(self._tasks):
            await self.stop(site)


@asynccontextmanager
async def fleets(directory: Path) -> AsyncIterator[Fleets]:
    made = Fleets(directory)
    try:
        yield made
    finally:
        await made.close()


@in_fake_time
async def test_what_is_put_at_one_gateway_is_there_at_the_others_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    """By the watch; without it by the next full read."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        put = await a.fleet.replicas.put("chat", R1, ENTRY)
        assert (put.created, put.changed) == (True, True)
        assert a.entries() == {R1: ENTRY}
        await asyncio.sleep(0.1)
        assert b.entries() == {R1: ENTRY}
        assert await b.fleet.replicas.take_out("chat", R1) == ENTRY
        await asyncio.sleep(0.1)
        assert a.entries() == b.entries() == {}
        assert b.fleet.replicas.of("chat").leaving == {R1: ENTRY}
        assert b.fleet.replicas.of("chat").forget(R1, b.fleet.replicas.of("chat").leaving[R1])


@in_fake_time
async def test_a_source_is_told_of_what_others_changed_and_an_unchanged_entry_stays_the_same_object(
    tmp_path: Path,
) -> None:
    """A service looks at once; what did not change is not read anew."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(0.1)
        record = b.fleet.replicas.of("chat")
        before = record.entries[R1]
        assert record.news is not None
        record.news.clear()
        await a.fleet.replicas.put("chat", R2, OTHER)
        await asyncio.sleep(0.1)
        assert record.news.is_set()
        assert record.entries[R1] is before


@in_fake_time
async def test_a_put_that_says_the_same_writes_nothing(tmp_path: Path) -> None:
    """At whichever gateway, and however it is written."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        revision = them.held.revision
        put = await b.fleet.replicas.put("chat", R1, {**ENTRY, "labels": {}})
        assert (put.created, put.changed, them.held.revision) == (False, False, revision)


@in_fake_time
async def test_a_replica_put_again_elsewhere_while_it_drains_here_stays(tmp_path: Path) -> None:
    """The last word counts, wherever it was said."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        entry = await a.fleet.replicas.take_out("chat", R1)
        await b.fleet.replicas.put("chat", R1, OTHER)
        await asyncio.sleep(0.1)
        assert not a.fleet.replicas.of("chat").forget(R1, entry)
        assert a.entries() == {R1: OTHER}


@pytest.mark.parametrize("failing", [StoreAway("gone"), StoreDenied("wrong password"), StoreError("nonsense")])
def test_a_store_that_is_away_changes_nothing(tmp_path: Path, failing: StoreError) -> None:
    """However long: what was known stays, from memory and for the next daemon from disk; a PUT changes nothing."""

    @in_fake_time
    async def test() -> None:
        async with fleets(tmp_path) as them:
            a = await them.start("a")
            await a.fleet.replicas.put("chat", R1, ENTRY)
            await asyncio.sleep(1)
            assert read_remembered(tmp_path / "a") == {"chat": {R1: ENTRY}}
            a.store.failing = failing
            await asyncio.sleep(1800)
            assert (a.state, a.entries()) == ("away", {R1: ENTRY})
            assert str(failing) in a.problems.told()["store"]
            assert a.errors(failing.kind) > 0
            with pytest.raises(StateError, match=str(failing)):
                await a.fleet.replicas.put("chat", R2, OTHER)
            with pytest.raises(StateError):
                await a.fleet.replicas.take_out("chat", R1)
            await them.stop(a)
            again = await them.start("a", {"chat": [R1]}, failing=failing)
            assert again.entries() == {R1: ENTRY}
            again.store.failing = None
            await asyncio.sleep(6)
            assert (again.state, again.entries(), again.problems.told()) == ("up", {R1: ENTRY}, {})

    test()


@in_fake_time
async def test_a_gateway_that_never_read_the_store_knows_that_it_knows_nothing(tmp_path: Path) -> None:
    """Unread is not empty: the source says that it sees nothing of what it owns."""
    async with fleets(tmp_path) as them:
        a = await them.start("a", {"chat": [R1]}, failing=StoreAway("gone"))
        assert a.fleet.replicas.of("chat").unread
        a.store.failing = None
        await asyncio.sleep(6)
        assert a.state == "refused"  # The store holds nothing, and r1 was there.
        assert a.fleet.replicas.of("chat").unread


@in_fake_time
async def test_a_write_without_an_answer_is_said_to_be_in_doubt(tmp_path: Path) -> None:
    """And what came of it is seen at the next read."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        a.store.in_doubt = True
        with pytest.raises(StateInDoubt):
            await a.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(6)
        assert a.entries() == {R1: ENTRY}


@in_fake_time
async def test_a_full_store_is_said_as_such(tmp_path: Path) -> None:
    """The API answers 507."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        a.store.failing = StoreFull("no room")
        with pytest.raises(StateError) as refused:
            await a.fleet.replicas.put("chat", R1, ENTRY)
        assert isinstance(refused.value.__cause__, StoreFull)


@pytest.mark.parametrize("refill", [False, True])
def test_an_empty_store_is_refused_by_all_and_one_word_of_an_operator_serves_all(tmp_path: Path, refill: bool) -> None:
    """Also for a gateway that was off meanwhile. Until then nobody writes to it, not even that it is alive."""

    @in_fake_time
    async def test() -> None:
        async with fleets(tmp_path) as them:
            a, b, off = await them.start("a"), await them.start("b"), await them.start("off")
            await a.fleet.replicas.put("chat", R1, ENTRY)
            await asyncio.sleep(1)
            await them.stop(off)
            them.held.entries.clear()
            them.held.leases.clear()
            them.held.revision = 1
            await asyncio.sleep(600)
            assert (a.state, b.state, a.entries(), b.entries()) == ("refused", "refused", {R1: ENTRY}, {R1: ENTRY})
            assert "store refill" in a.problems.told()["store"]
            assert them.held.entries == {}
            assert await a.fleet.reflector.accept(refill=refill) == refill
            await asyncio.sleep(10)
            wanted = {R1: ENTRY} if refill else {}
            off = await them.start("off", {"chat": [R1]})
            for site in (a, b, off):
                assert (site.state, site.entries(), site.problems.told()) == ("up", wanted, {})
            with pytest.raises(ValueError, match="believed as it is"):
                await a.fleet.reflector.accept(refill=refill)

    test()


@in_fake_time
async def test_a_store_that_was_set_back_stays_refused_over_a_restart(tmp_path: Path) -> None:
    """Also when it has grown again meanwhile."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(1)
        del them.held.entries["replicas/chat/r1"]
        them.held.revision -= 3
        await asyncio.sleep(6)
        assert a.state == "refused"
        await them.stop(a)
        them.held.revision += 100
        again = await them.start("a", {"chat": [R1]})
        assert (again.state, again.entries()) == ("refused", {R1: ENTRY})


@in_fake_time
async def test_gateways_see_each_other_and_a_lost_lease_is_taken_anew(tmp_path: Path) -> None:
    """Nothing else comes of it. One that leaves is gone at once."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await asyncio.sleep(1)
        assert [it.name for it in a.fleet.membership.others] == ["b"]
        for lease in list(them.held.leases):
            them.held.end(lease)
        await asyncio.sleep(12)
        assert [it.name for it in a.fleet.membership.others] == ["b"]
        assert [it.name for it in b.fleet.membership.others] == ["a"]
        await them.stop(b)
        await b.fleet.close(leaves=True)
        await asyncio.sleep(0.2)
        assert a.fleet.membership.others == []


@in_fake_time
async def test_what_was_put_while_a_gateway_worked_alone_is_moved_and_what_the_store_has_counts(tmp_path: Path) -> None:
    """Nothing is lost, and nothing is undone."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R2, OTHER)
        (tmp_path / "b").mkdir()
        local = {"replicas": {"chat": {"r1": ENTRY, "r2": ENTRY}}, "lost": {}}
        write_record(tmp_path / "b" / "replicas.json", local)
        b = await them.start("b", {"chat": [R1, R2]})
        for site in (a, b):
            assert site.entries() == {R1: ENTRY, R2: OTHER}
        await them.stop(b)
        await a.fleet.replicas.take_out("chat", R1)
        b = await them.start("b")
        assert b.entries() == {R2: OTHER}


@in_fake_time
async def test_it_is_put_together_from_the_settings_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the machine's where none is set."""
    monkeypatch.setattr("socket.gethostname", lambda: "GW_1.example.net")
    metrics = Metrics()
    settings = store_model().model_validate({"etcd": {"endpoints": ["http://127.0.0.1:1"]}})
    usage, leases = PlayedUsage(), PortLeases(range(24001, 24021))
    places = build.FleetPlaces(tmp_path, tmp_path / "challenges", tmp_path / "mesh")
    fleet = build.build_fleet(places, settings, leases, usage, Problems(), metrics)
    assert (fleet.membership.name, fleet.where) == ("gw-1", "etcd http://127.0.0.1:1 /gateway-sidecar/")
    of = {"store": "etcd"}
    assert metrics.registry.get_sample_value("gateway_sidecar_store_up", of) == 0
    assert metrics.registry.get_sample_value("gateway_sidecar_store_read_age_seconds", of) == float("inf")
    assert metrics.registry.get_sample_value("gateway_sidecar_fleet_gateways", of) == 1
    await fleet.close(leaves=True)


@in_fake_time
async def test_what_each_gateway_sees_can_be_read_at_any_of_them(tmp_path: Path) -> None:
    """It ends with the gateway, and is there again with a new lease. What nobody wrote is passed over."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        a.sees = {"chat": {"serving": {"r1": 24001, "r2": 24002}}}
        b.sees = {"chat": {"loading": {"r1": None}}, "images": {}}
        them.held.write("seen/x", "[1]")
        await asyncio.sleep(3)
        seen = await b.fleet.seen.read()
        assert [it.name for it in seen.gateways] == ["a", "b"]
        assert seen.states == {
            "a": {"chat": {"r1": ("serving", 24001), "r2": ("serving", 24002)}},
            "b": {"chat": {"r1": ("loading", None)}, "images": {}},
        }
        for lease in list(them.held.leases):
            them.held.end(lease)
        await asyncio.sleep(5)
        assert (await a.fleet.seen.read()).states.keys() == {"a", "b"}
        await them.stop(b)
        await b.fleet.close(leaves=True)
        assert [it.name for it in (await a.fleet.seen.read()).gateways] == ["a"]
        a.store.failing = StoreAway("gone")
        with pytest.raises(StoreError):
            await a.fleet.seen.read()


class Counting(FakeStore):
    """Counts the reads of all that is followed."""

    def __init__(self, held: Held) -> None:
        super().__init__(held)
        self.whole = self.changes = 0

    async def read(self, *prefixes: str) -> Snapshot:
        self.whole += TOPICS[0] in prefixes
        return await super().read(*prefixes)

    async def read_changes(self, known: Snapshot, since: int, *prefixes: str) -> Snapshot | None:
        whole, found = self.whole, await super().read_changes(known, since, *prefixes)
        self.whole, self.changes = whole, self.changes + 1
        return found


@in_fake_time
async def test_a_hint_is_followed_by_a_read_of_what_has_changed_and_seconds_later_by_one_of_all(tmp_path: Path) -> None:
    """Also of what was removed, of which the watch says so."""
    async with fleets(tmp_path) as them:
        a = await them.start("a", client=Counting)
        b = await them.start("b")
        store = cast("Counting", a.store)
        await asyncio.sleep(7)
        before = store.whole, store.changes
        for number in range(20):
            await b.fleet.replicas.put("chat", ReplicaId(f"r{number}"), ENTRY)
            await asyncio.sleep(0.05)
        await b.fleet.replicas.take_out("chat", ReplicaId("r0"))
        await asyncio.sleep(0.5)
        assert a.entries().keys() == b.entries().keys() == {ReplicaId(f"r{number}") for number in range(1, 20)}
        whole, changes = store.whole - before[0], store.changes - before[1]
        assert whole <= 1 < 20 <= changes
        await asyncio.sleep(60)
        assert store.whole - before[0] >= 10


@in_fake_time
async def test_what_others_wrote_before_a_write_of_ours_is_not_missed(tmp_path: Path) -> None:
    """The revision of our own write is none of a read: what was written before it may not be known."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(1)
        them.held.write("replicas/chat/r1", json.dumps(OTHER))
        revision = await a.store.swap("keys/@team", "plan team concurrent=8", seen=None)
        a.fleet.reflector.note_write("keys/@team", "plan team concurrent=8", revision)
        assert a.entries() == {R1: ENTRY}, "it has not been read yet"
        await a.fleet.reflector.look()
        assert a.entries() == {R1: OTHER}
