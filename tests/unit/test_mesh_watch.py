"""When a router is replaced by one that joins the mesh of its service."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_sidecar.control.fleet.authorities import KEY, FleetAuthorities
from gateway_sidecar.control.process import mesh_watch
from gateway_sidecar.control.process.mesh_watch import MeshWatch
from gateway_sidecar.domain.fleet_authority import AUTHORITY_S, CERTIFICATE_S, Authority, authorities_in, text_of
from gateway_sidecar.domain.mesh import MeshNode
from gateway_sidecar.errors import MetricsError, RouterUnavailable, StoreAway, StoreFull
from gateway_sidecar.routers.base import MeshMember, RouterPorts
from gateway_sidecar.supervision.loops import Tasks, cancelled
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import fleets

NOW = 1.8e9


def place(name: str, ends: float = NOW + CERTIFICATE_S) -> MeshMember:
    return MeshMember(name, "192.0.2.1", 23005, "", "ca", "certificate", "key", ends)


class PlayedService:
    """One service, whose next router has the next place."""

    def __init__(self, *, wants: bool = True) -> None:
        self.name = "chat"
        self.has_looked = True
        self.book = SimpleNamespace(listed=True)
        self.rounds: Mapping[str, float] = {}
        setup = SimpleNamespace(wants_mesh=wants, read_mesh=lambda _page: self.rounds)
        self.router = SimpleNamespace(up=True, setup=setup, mesh=None, ports=RouterPorts(1, 2))
        self.slots = SimpleNamespace(replace=self.replace, is_replacing=False, names=("chat", "chat~next"))
        self.next: MeshMember | None = place("gw-2.chat.1")
        self.fails = ""
        self.replaced = 0

    async def replace(self, *, only_in_mesh: bool) -> None:
        assert only_in_mesh
        self.replaced += 1
        if self.fails:
            raise RouterUnavailable(self.fails)
        self.router.mesh = self.next


class PlayedMesh:
    """What is known of the others (as of a `FleetMesh`)."""

    def __init__(self) -> None:
        self.nodes: list[MeshNode] = []
        self.seen: dict[str, frozenset[str]] = {}
        self.troubles: dict[str, str] = {}
        self.signer = 0.0
        self.is_heard = True
        self.kept: set[str] = set()

    async def keep_only(self, slots: set[str]) -> None:
        self.kept = slots

    def trusts_the_fleet(self, it: MeshMember) -> bool:
        return self.signer in (0.0, *it.trusts)

    def others(self, _service: str) -> list[MeshNode]:
        return self.nodes

    def node(self, it: MeshMember) -> MeshNode:
        return MeshNode("gw-2", it.name, it.address, self.seen.get(it.name, frozenset()))

    def note_seen(self, it: MeshMember, seen: frozenset[str]) -> None:
        self.seen[it.name] = seen


class Stage:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, service: PlayedService) -> None:
        self.service, self.mesh, self.now = service, PlayedMesh(), NOW
        self.reached = True
        services: Any = {"chat": service}
        mesh: Any = self.mesh
        self.watch = MeshWatch(lambda: services, mesh, Tasks("-", Metrics()), lambda: self.now)
        monkeypatch.setattr(self.watch._pages, "read", self._page)
        monkeypatch.setattr(mesh_watch, "reaches", self._reaches)

    def describe(self) -> str | None:
        service: Any = self.service
        return self.watch.describe(service)

    async def _page(self, _url: str, _timeout_s: float) -> bytes:
        self.service.rounds = {name: count + 1 for name, count in self.service.rounds.items()}
        return b""

    async def _reaches(self, _address: str) -> bool:
        return self.reached


@asynccontextmanager
async def stage(monkeypatch: pytest.MonkeyPatch, *, wants: bool = True) -> AsyncIterator[Stage]:
    made = Stage(monkeypatch, PlayedService(wants=wants))
    running = asyncio.create_task(made.watch.run())
    try:
        yield made
    finally:
        await cancelled(running)


FIRST = MeshNode("gw-1", "gw-1.chat.9", "192.0.2.9:23005")


@in_fake_time
async def test_a_router_joins_once_it_is_up_and_knows_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced: before it has its own workers no router hears of others'."""
    async with stage(monkeypatch) as it:
        it.service.router.up = False
        await asyncio.sleep(60)
        assert (it.service.replaced, it.describe()) == (0, "not joined yet")
        it.service.router.up = True
        await asyncio.sleep(6)
        assert (it.service.replaced, it.describe()) == (1, "joined, and no other gateway is")
        await asyncio.sleep(3600)
        assert it.service.replaced == 1


@in_fake_time
async def test_a_service_without_a_mesh_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced, and nothing said."""
    async with stage(monkeypatch, wants=False) as it:
        await asyncio.sleep(60)
        assert (it.service.replaced, it.describe()) == (0, None)
        assert it.mesh.kept == {"chat", "chat~next"}, "it may just have been given one"


@in_fake_time
async def test_one_that_cannot_join_is_tried_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh is a gain, and no reason to trouble who serves. A day is long: it is looked at less often here."""
    monkeypatch.setattr(mesh_watch, "_LOOK_S", 30.0)
    async with stage(monkeypatch) as it:
        it.service.fails = "no memory"
        await asyncio.sleep(24 * 3600)
        assert 20 < it.service.replaced < 40
        it.service.fails, it.service.next, it.mesh.troubles["chat"] = "", None, "the store cannot be read"
        await asyncio.sleep(2 * 3600)
        assert it.describe() == "not joined: the store cannot be read"


@in_fake_time
async def test_a_router_is_replaced_before_its_certificate_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """SMG reads certificates once."""
    async with stage(monkeypatch) as it:
        await asyncio.sleep(120)
        it.now = NOW + CERTIFICATE_S * 0.6
        await asyncio.sleep(120)
        assert it.service.replaced == 1
        it.now = NOW + CERTIFICATE_S * 0.7
        it.service.next = place("gw-2.chat.2", it.now + CERTIFICATE_S)
        await asyncio.sleep(120)
        assert it.service.replaced == 2


@in_fake_time
async def test_a_router_that_does_not_know_who_signs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that lost the fleet's authority has another one when somebody joins: all follow."""
    async with stage(monkeypatch) as it:
        await asyncio.sleep(120)
        it.mesh.signer = NOW
        it.service.next = replace(place("gw-2.chat.2"), trusts=(NOW,))
        await asyncio.sleep(120)
        assert it.service.replaced == 2
        await asyncio.sleep(3600)
        assert it.service.replaced == 2


@in_fake_time
async def test_of_two_that_do_not_see_each_other_the_later_one_joins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh that fell apart is whole again, and both do not move at once."""
    async with stage(monkeypatch) as it:
        it.mesh.nodes = [FIRST]
        await asyncio.sleep(20)
        assert (it.service.replaced, it.describe()) == (1, "not connected to gw-1")
        it.reached = False
        await asyncio.sleep(600)
        assert it.service.replaced == 1, "it would not help: nobody is reached there"
        it.reached = True
        it.service.next = place("gw-2.chat.2")
        await asyncio.sleep(20)
        assert it.service.replaced == 2
        it.mesh.nodes = [MeshNode("gw-1", FIRST.name, FIRST.address, frozenset({"gw-2.chat.2"}))]
        await asyncio.sleep(2 * 3600)
        assert (it.service.replaced, it.describe()) == (2, "with gw-1")


@in_fake_time
async def test_the_earlier_one_says_whom_it_sees_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows is seen; a page that cannot be read changes nothing."""
    async with stage(monkeypatch) as it:
        it.mesh.nodes = [MeshNode("gw-3", "gw-3.chat.1", "192.0.2.3:1")]
        await asyncio.sleep(600)
        assert (it.service.replaced, it.describe()) == (1, "not connected to gw-3")
        it.service.rounds = {"gw-3.chat.1": 5.0, "gone": 7.0}
        await asyncio.sleep(10)
        assert it.describe() == "with gw-3"

        async def refuse(_url: str, _timeout_s: float) -> bytes:
            raise MetricsError("no answer")

        monkeypatch.setattr(it.watch._pages, "read", refuse)
        await asyncio.sleep(60)
        assert it.describe() == "with gw-3"


@in_fake_time
async def test_a_router_that_is_being_replaced_is_not_replaced_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the mesh is switched on by a restart. Until the old one has ended, what the new one sees is told."""
    async with stage(monkeypatch) as it:
        it.service.slots.is_replacing = True
        await asyncio.sleep(60)
        it.service.router.mesh = it.service.next
        it.mesh.nodes = [MeshNode("gw-3", "gw-3.chat.1", "192.0.2.3:1")]
        it.service.rounds = {"gw-3.chat.1": 5.0}
        await asyncio.sleep(600)
        assert (it.service.replaced, it.describe()) == (0, "with gw-3")
        it.service.slots.is_replacing = False
        it.service.router.mesh = None
        await asyncio.sleep(6)
        assert it.service.replaced == 1


@in_fake_time
async def test_while_the_store_is_away_no_router_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others said before this router was there is no word about it, and nobody would learn of another place."""
    async with stage(monkeypatch) as it:
        it.mesh.nodes = [FIRST]
        await asyncio.sleep(20)
        it.mesh.is_heard = False
        it.service.router.mesh = place("gw-2.chat.2")  # Replaced by a reload: it has joined by what was known.
        await asyncio.sleep(3600)
        it.service.router.mesh = None  # It ended, and was started again in its place.
        await asyncio.sleep(3600)
        assert it.service.replaced == 1
        it.mesh.is_heard = True
        await asyncio.sleep(6)
        assert (it.service.replaced, it.describe()) == (2, "not connected to gw-1")


@in_fake_time
async def test_who_cannot_read_the_store_or_write_to_it_is_not_heard(tmp_path: Path) -> None:
    """A full store says what the others told, and nothing of this gateway's new place."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        assert await a.fleet.mesh.join("chat", "chat", lambda _host: 23005) is not None
        assert a.fleet.mesh.is_heard
        a.store.failing = StoreAway("nobody answers")
        await asyncio.sleep(6)
        assert not a.fleet.mesh.is_heard
        a.store.failing = None
        await asyncio.sleep(6)
        assert a.fleet.mesh.is_heard

        async def refuse(*_args: object, **_options: object) -> int:
            raise StoreFull("no room")

        swap, a.store.swap = a.store.swap, refuse
        assert await a.fleet.mesh.join("chat", "chat~next", lambda _host: 23006) is not None
        await asyncio.sleep(60)
        assert not a.fleet.mesh.is_heard
        a.store.swap = swap
        await asyncio.sleep(6)
        assert a.fleet.mesh.is_heard


@in_fake_time
async def test_a_place_is_known_to_the_others_before_its_router_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that join at once one at least knows of the other. Keys are for us alone."""

    async def nobody(_address: str) -> bool:
        return False

    monkeypatch.setattr("gateway_sidecar.control.fleet.mesh.reaches", nobody)
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        first, second = await asyncio.gather(
            a.fleet.mesh.join("chat", "chat", lambda _host: 23005),
            b.fleet.mesh.join("chat", "chat", lambda _host: 23006),
        )
        assert first is not None
        assert second is not None
        assert first.name != second.name
        assert {first.peer, second.peer} & {"127.0.0.1:23005", "127.0.0.1:23006"}
        assert stat.S_IMODE(Path(first.key).stat().st_mode) == 0o600
        assert [it.name for it in b.fleet.mesh.others("chat")] == [first.name]
        assert b.fleet.mesh.others("other") == []
        await asyncio.sleep(600)
        assert b.fleet.mesh.others("chat") == [], "its router never came"


@in_fake_time
async def test_a_router_without_a_place_is_started_all_the_same(tmp_path: Path) -> None:
    """The mesh is a gain: what it lacks is said, and nobody waits for it."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        a.store.failing = StoreAway("nobody answers")
        assert await a.fleet.mesh.join("chat", "chat", lambda _host: 23005) is None
        assert a.fleet.mesh.troubles["chat"] == "nobody answers"
        a.store.failing = None
        assert await a.fleet.mesh.join("chat", "chat", lambda _host: 23005) is not None
        assert not a.fleet.mesh.troubles


@in_fake_time
async def test_keys_of_a_service_that_was_removed_are_removed(tmp_path: Path) -> None:
    """They prove to be of the fleet for months. Those of a router that is just being started are left to it."""
    async with fleets(tmp_path) as them:
        mesh = (await them.start("a")).fleet.mesh
        await mesh.keep_only(set())
        for slot in ("chat", "gone"):
            assert await mesh.join(slot, slot, lambda _host: 23005) is not None
        await asyncio.sleep(200)
        joining = asyncio.create_task(mesh.join("new", "new", lambda _host: 23006))
        while "new" not in mesh.said({}):
            await asyncio.sleep(0.001)
            await mesh.keep_only({"chat"})
        await mesh.keep_only({"chat"})
        place = await joining
        await mesh.keep_only({"chat"})
        assert place is not None
        assert all(Path(file).exists() for file in (place.ca, place.certificate, place.key))
        assert sorted(it.name for it in Path(place.key).parent.parent.iterdir()) == ["chat", "new"]
        await asyncio.sleep(200)
        mesh.said({"new": [place]})
        await mesh.keep_only({"chat"})
        assert not Path(place.key).exists(), "its service was removed, too"


@in_fake_time
async def test_a_place_is_good_as_long_as_its_router_believes_who_signs(tmp_path: Path) -> None:
    """The next authority is known to every router before it signs; one that came out of nothing is not."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        joined = await a.fleet.mesh.join("chat", "chat", lambda _host: 23005)
        assert joined is not None
        assert a.fleet.mesh.trusts_the_fleet(joined)
        them.held.write(KEY, text_of([Authority("another", "key", NOW - 1, NOW + AUTHORITY_S)]))
        await asyncio.sleep(6)
        assert not a.fleet.mesh.trusts_the_fleet(joined)
        them.held.write(KEY, None)
        await asyncio.sleep(6)
        assert a.fleet.mesh.trusts_the_fleet(joined), "nobody else is believed yet"


@in_fake_time
async def test_deleting_the_authorities_helps_against_one_that_a_clock_years_ahead_made(tmp_path: Path) -> None:
    """What the guide says: one router joins anew, and the others are no good any more."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        now = 1.8e9  # As all gateways of `fleets` believe.
        ahead = FleetAuthorities(a.store, a.fleet.reflector, lambda: now + AUTHORITY_S / 2)
        [wrong] = await ahead.current()
        before = await b.fleet.mesh.join("chat", "chat", lambda _host: 23005)
        assert before is not None
        assert b.fleet.mesh.trusts_the_fleet(before)
        them.held.write(KEY, None)
        await asyncio.sleep(6)
        restarted = await a.fleet.mesh.join("chat", "chat", lambda _host: 23006)
        await asyncio.sleep(6)
        [right] = authorities_in(them.held.entries[KEY].value)
        assert (right.made, wrong.made) == (now, now + AUTHORITY_S / 2)
        assert restarted is not None
        assert a.fleet.mesh.trusts_the_fleet(restarted)
        assert not b.fleet.mesh.trusts_the_fleet(before)
