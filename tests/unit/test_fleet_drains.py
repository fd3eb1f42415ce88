"""A drain means the whole fleet: safe to stop is only what no living gateway needs any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from multidict import MultiDict

from gateway_sidecar.api.answers import DAEMON, Refused
from gateway_sidecar.api.replicas import delete_replica
from gateway_sidecar.control.replicas.drain import DrainReport, Drains
from gateway_sidecar.control.replicas.tenure import Presence
from gateway_sidecar.domain.fleet import (
    AskedDrain,
    DrainSeen,
    Gateway,
    drain_elsewhere,
    drains_in,
    gateways_in,
    is_over,
)
from gateway_sidecar.domain.model import Ready, ReplicaId
from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.errors import StoreAway, StoreError
from tests.fake_store import FakeStore
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import ENTRY, OTHER, Site, fleets
from tests.unit.world import FACTS, READY, World, Worlds

R1 = ReplicaId("r1")
KEY = "chat/r1"
ASKED = AskedDrain("d1", "a")


# -- what gateways say of each other


def gateway(name: str, seen: DrainSeen | None = None) -> Gateway:
    return Gateway(name, name, drains={} if seen is None else {KEY: seen})


def test_a_drain_is_done_where_every_living_gateway_says_so_and_each_other_one_is_named_with_the_reason() -> None:
    others = [
        gateway("safe", DrainSeen("d1", True, True, 0)),
        gateway("busy", DrainSeen("d1", False, True, 2)),
        gateway("uncounted", DrainSeen("d1", False, True)),
        gateway("silent"),
        gateway("late", DrainSeen("an earlier drain", True)),
    ]
    found = drain_elsewhere(KEY, ASKED, others, {"restarts": 4.0, "dead": 20.0}, grace_s=15.0, age_s=7.0)
    assert {it.gateway: (it.is_safe, it.reason, it.silent_s) for it in found} == {
        "busy": (False, "2 connections in flight", None),
        "dead": (True, "its lease ended 20 s ago: it counts as dead, and was not asked", 20.0),
        "late": (False, "it has not answered for 7 s", 7.0),
        "restarts": (False, "its lease ended 4 s ago; it counts as dead in 11 s", 4.0),
        "safe": (True, "", None),
        "silent": (False, "it has not answered for 7 s", 7.0),
        "uncounted": (False, "an unknown number of connections in flight", None),
    }


def test_a_drain_is_over_once_no_gateway_holds_an_engine_for_it() -> None:
    """One that has not answered yet may hold one."""
    gone, holds = DrainSeen("d1", True), DrainSeen("d1", True, holds=True)
    assert is_over(KEY, ASKED, gone, [gateway("b", gone)])
    assert not is_over(KEY, ASKED, gone, [gateway("b", holds)])
    assert not is_over(KEY, ASKED, holds, [gateway("b", gone)])
    assert not is_over(KEY, ASKED, gone, [gateway("b")])
    assert not is_over(KEY, ASKED, gone, [gateway("b", DrainSeen("another", True))])


def test_what_no_gateway_wrote_is_no_drain() -> None:
    entries = {"drains/chat/r1": Entry(ASKED.to_json(), 3), "drains/chat/r2": Entry("[]", 4), "x": Entry("{}", 5)}
    assert drains_in(Snapshot("one", 9, entries), "drains/") == {KEY: ASKED}


def test_a_gateway_whose_key_nobody_can_read_is_there_and_has_said_nothing() -> None:
    """Its requests are no fewer for it."""
    texts = ("", "null", "[" * 100_000, '{"instance": "b", "drains": {"chat/r1": {"in_flight": 1e999}}, "services": 5}')
    entries = {f"gateways/{number}": Entry(text, 3) for number, text in enumerate(texts)}
    entries["gateways/b"] = Entry('{"instance": "b", "ports": {"number": 1e999, "busy": []}}', 4)
    seen = gateways_in(Snapshot("one", 9, entries), "gateways/")
    assert [it.name for it in seen] == ["0", "1", "2", "3", "b"]
    assert seen[-1].ports is None
    assert not any(it.is_safe for it in drain_elsewhere(KEY, ASKED, seen, {}, grace_s=15.0, age_s=7.0))


# -- what one gateway makes of it


@asynccontextmanager
async def of_api(worlds: Worlds) -> AsyncIterator[World]:
    """A gateway whose replicas were put over the API, and so are those of all gateways."""
    async with worlds() as world:
        world.source.owner = "api"
        yield world


def says(world: World, id_: str = "d1") -> DrainSeen:
    return world.service.drains.says(R1, id_)


@in_fake_time
async def test_a_drain_of_the_fleet_holds_here_until_it_is_taken_back(worlds: Worlds) -> None:
    """What is in flight is waited for, and said."""
    async with of_api(worlds) as world:
        port = await world.in_use("r1", 2)
        world.asks.ask("r1", "d1")
        assert says(world) == DrainSeen("d1", False, True), "it is not heeded yet"
        await world.until(lambda: says(world).in_flight == 2)
        assert not says(world).is_safe
        assert world.router.ready() == set()
        world.connections[port] = 0
        await world.until(lambda: says(world) == DrainSeen("d1", True, True, 0))
        world.asks.ask("r1", "d2")  # Asked again, at another gateway: what is drained stays so.
        await world.until(lambda: says(world, "d2") == DrainSeen("d2", True, True, 0))
        world.asks.ask("r1", None)
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_a_gateway_that_joins_knows_of_the_drain_before_it_serves_the_replica(worlds: Worlds) -> None:
    """Nothing is ever registered: the drain is what comes first."""
    async with of_api(worlds) as world:
        world.asks.ask("r1", "d1")
        world.appear("r1")
        await asyncio.sleep(60)
        assert world.router.calls == []
        assert says(world) == DrainSeen("d1", True, True, 0)


@in_fake_time
async def test_a_gateway_without_the_replica_is_safe_and_one_that_still_answers_an_earlier_request_is_not(
    worlds: Worlds,
) -> None:
    """A replica that was deleted has left the router at once; what it has in flight goes on."""
    async with of_api(worlds) as world:
        assert says(world) == DrainSeen("d1", True, False, 0)
        port = await world.in_use("r1")
        world.vanish("r1")
        await world.until(lambda: world.states() == {} and says(world).in_flight == 1)
        assert not says(world).is_safe
        world.connections[port] = 0
        await world.until(lambda: says(world) == DrainSeen("d1", True, False, 0))


@in_fake_time
async def test_what_is_in_flight_to_a_replica_that_was_deleted_is_waited_for_as_long_as_the_fleet_asks(
    worlds: Worlds,
) -> None:
    """`drain.timeout_s` ends its stay here, but for what another gateway may be told of it."""
    async with of_api(worlds) as world:
        port = await world.in_use("r1")
        world.vanish("r1")
        world.asks.ask("r1", "d1")
        await asyncio.sleep(700)
        assert says(world) == DrainSeen("d1", False, False, 1)
        world.asks.ask("r1", None)
        await world.until(lambda: not world.service.tenures, 60)
        world.connections[port] = 0


@in_fake_time
async def test_the_engine_that_takes_its_place_serves_although_the_drain_stands(worlds: Worlds) -> None:
    """A drain means an engine, and not a name; also after a restart of the daemon."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        world.asks.ask("r1", "d1")
        await world.until(lambda: says(world).is_safe)
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert says(world) == DrainSeen("d1", True, False, 0)
        await world.restart()
        await world.until(lambda: world.serves("r1"))
        await asyncio.sleep(60)
        assert world.serves("r1")
        world.asks.ask("r1", "d2")  # This one is about the engine that is there now.
        await world.until(lambda: says(world, "d2") == DrainSeen("d2", True, True, 0))


@in_fake_time
async def test_another_engine_behind_the_same_socket_serves_although_the_drain_stands(worlds: Worlds) -> None:
    """The stay that was meant has ended, whatever ends it."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        world.asks.ask("r1", "d1")
        await world.until(lambda: says(world).is_safe)
        world.asks.ask("r1", None)
        await world.until(lambda: world.serves("r1"))
        world.asks.ask("r1", "d2")
        await world.until(lambda: says(world, "d2").holds)
        world.vanish("r1")
        await world.until(lambda: world.states() == {})
        world.appear("r1", Ready(FACTS))
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_a_drain_that_was_asked_for_after_the_engine_was_replaced_means_the_new_one(worlds: Worlds) -> None:
    """Both while the daemon was away: what it remembers is the engine before."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        left = await world.die()
        world.appear("r1")
        world.asks.ask("r1", "d1")
        await world.come_back(left)
        await world.until(lambda: says(world) == DrainSeen("d1", True, True, 0))
        await asyncio.sleep(60)
        assert world.router.ready() == set()


@in_fake_time
async def test_a_drain_of_a_replica_that_moves_means_the_engine_that_it_moves_to(worlds: Worlds) -> None:
    """Its old engine serves only until the new one does, and so goes, too."""
    async with worlds() as world:
        world.source.names = "api"
        for name in ("old", "new"):
            (world.directory / name).touch()
        world.answer("old", READY)
        world.source.named["r1"] = world.directory / "old"
        world.source.hint()
        await world.until(lambda: world.serves("r1"))
        stay = world.tenure("r1")
        world.source.named["r1"] = world.directory / "new"
        world.source.hint()
        await world.until(lambda: world.tenure("r1") is not stay)
        assert stay.presence is Presence.SUPERSEDED
        world.asks.ask("r1", "d1")
        await world.until(lambda: stay.gone and says(world) == DrainSeen("d1", True, True, 0))
        world.answer("new", READY)
        await asyncio.sleep(60)
        assert world.router.ready() == set()


@in_fake_time
async def test_a_drain_means_the_engine_that_the_others_have_if_this_gateway_is_behind(worlds: Worlds) -> None:
    """It was cut off from the store while the replica was put anew: the others drain the engine that it sees next."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        world.asks.has_another.add("r1")
        world.asks.ask("r1", "d1")
        await world.until(lambda: says(world) == DrainSeen("d1", True, True, 0))
        world.appear("r1")
        world.asks.has_another.clear()
        calls = len(world.router.calls)
        await asyncio.sleep(60)
        assert says(world) == DrainSeen("d1", True, True, 0)
        assert world.router.ready() == set()
        assert "register" not in {what for what, _ in world.router.calls[calls:]}
        world.appear("r1")  # That one is not meant any more.
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_a_drain_of_the_fleet_outlives_the_daemon_and_a_store_of_which_nothing_is_known(worlds: Worlds) -> None:
    """Unknown is not taken back."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        world.asks.ask("r1", "d1")
        await world.until(lambda: says(world).is_safe)
        world.asks.asked = None
        await world.restart()
        await asyncio.sleep(60)
        assert world.router.ready() == set()
        world.asks.ask("r1", None)
        await world.until(lambda: world.serves("r1"))


@in_fake_time
async def test_a_replica_that_only_this_gateway_has_is_no_matter_of_the_fleet(worlds: Worlds) -> None:
    """Sockets and inventories are local: the same name elsewhere is another engine."""
    async with worlds() as world:
        await world.in_use("r1")
        world.asks.ask("r1", "d1")
        await asyncio.sleep(10)
        assert world.serves("r1")
        assert says(world) == DrainSeen("d1", True, False, 0)
        assert not world.service.drains.is_for_fleet(R1)


@in_fake_time
async def test_a_drain_that_only_this_gateway_was_asked_for_is_not_ended_by_the_store(worlds: Worlds) -> None:
    """It was asked while the store was away."""
    async with of_api(worlds) as world:
        await world.in_use("r1", 0)
        await world.service.drains.drain(R1, 60.0)
        assert world.service.drains.is_asked_here_alone(R1)
        world.asks.ask("r2", "d1")
        await asyncio.sleep(60)
        assert world.router.ready() == set()
        world.service.drains.resume(R1)
        await world.until(lambda: world.serves("r1"))


# -- what a fleet makes of it


class Engine:
    """This gateway's own part: an engine that is drained as soon as it is asked for, if there is one."""

    service = "chat"

    def __init__(self, *, drained: bool = True, takes_s: float = 0.1) -> None:
        self.drained = drained
        self.takes_s = takes_s
        self.later = SAFE
        self.alone = False

    async def drain(self, replica: ReplicaId, timeout_s: float) -> DrainReport:
        await asyncio.sleep(self.takes_s if self.drained else timeout_s)
        return DrainReport(
            self.drained, 0, 0.1, reason="" if self.drained else "1 connection in flight at this gateway"
        )

    def is_asked_here_alone(self, replica: ReplicaId) -> bool:
        return self.alone

    def says(self, replica: ReplicaId, asked: str) -> DrainSeen:
        return replace(self.later, id=asked) if self.drained else DrainSeen(asked, False, True, 1)


SAFE = DrainSeen("", True, True, 0)


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    ends = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() >= ends:
            return False
        await asyncio.sleep(0.1)
    return True


async def drain(site: Site, timeout_s: float = 60.0, engine: Engine | None = None) -> DrainReport:
    of = engine or Engine()
    return await site.fleet.drains.drain(of, R1, timeout_s, until)  # type: ignore[arg-type]


def busy(connections: int) -> DrainSeen:
    return DrainSeen("", False, True, connections)


@in_fake_time
async def test_a_drain_waits_for_what_is_in_flight_at_another_gateway(tmp_path: Path) -> None:
    """And is done within half a second of it."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = busy(2)
        report = await drain(a, 5.0)
        assert (report.drained, report.reason) == (False, "b: 2 connections in flight")
        waiting = asyncio.create_task(drain(a))
        await asyncio.sleep(10)
        assert not waiting.done()
        b.says[KEY] = SAFE
        await asyncio.sleep(0.5)
        assert waiting.done()
        report = waiting.result()
        assert (report.drained, report.reason) == (True, "")
        assert [(it.gateway, it.is_safe) for it in report.elsewhere] == [("b", True)]
        assert 10 <= report.took_s < 11


@in_fake_time
async def test_two_gateways_that_are_asked_at_once_both_say_when_it_is_safe(tmp_path: Path) -> None:
    """The later word is in the store, and both mean it."""
    async with fleets(tmp_path) as them:
        a, b, c = await them.start("a"), await them.start("b"), await them.start("c")
        for site in (a, b, c):
            site.says[KEY] = busy(1)
        waiting = [asyncio.create_task(drain(site)) for site in (a, b)]
        await asyncio.sleep(5)
        for site in (a, b, c):
            site.says[KEY] = SAFE
        assert [report.drained for report in await asyncio.gather(*waiting)] == [True, True]


@in_fake_time
async def test_a_gateway_that_does_not_answer_is_named_and_counts_as_dead_after_its_lease_and_a_grace(
    tmp_path: Path,
) -> None:
    """A frozen daemon is one that is dead, once its lease has ended."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await them.stop(b)
        report = await drain(a, 10.0)
        assert not report.drained
        assert "b: it has not answered for 10 s" in report.reason
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/b" in keys))
        report = await drain(a, 5.0)
        assert not report.drained
        assert "b: its lease ended 5 s ago; it counts as dead in 10 s" in report.reason
        report = await drain(a, 60.0)
        assert report.drained
        assert 9 < report.took_s < 11
        assert [(it.gateway, it.is_safe) for it in report.elsewhere] == [("b", True)]
        assert "it counts as dead, and was not asked" in report.elsewhere[0].reason


@in_fake_time
async def test_a_gateway_that_is_started_again_within_the_grace_is_asked(tmp_path: Path) -> None:
    """It may have requests in flight: its nginx went on without it."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await them.stop(b)
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/b" in keys))
        waiting = asyncio.create_task(drain(a, 120.0))
        await asyncio.sleep(5)
        b = await them.start("b", says={KEY: busy(1)})
        await asyncio.sleep(60)
        assert not waiting.done()
        b.says[KEY] = SAFE
        assert (await waiting).drained


@in_fake_time
async def test_a_gateway_that_joins_during_a_drain_is_asked_and_takes_up_no_replica_before_the_others_see_it(
    tmp_path: Path,
) -> None:
    """So there is no moment at which it serves a replica and nobody waits for it."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        b.says[KEY] = busy(1)
        waiting = asyncio.create_task(drain(a))
        c = Site(tmp_path / "c", them.held, "c")
        c.says[KEY] = busy(1)
        await c.fleet.replicas.load({})
        assert c.fleet.replicas.of("chat").unread
        them.run(c)
        await until(lambda: c.fleet.replicas.of("chat").unread is None, 5.0)
        assert c.entries() == {R1: ENTRY}
        assert "gateways/c" in them.held.entries
        assert c.fleet.drains.asked_of("chat") == a.fleet.drains.asked_of("chat")
        b.says[KEY] = SAFE
        await asyncio.sleep(5)
        assert not waiting.done()
        c.says[KEY] = SAFE
        assert (await waiting).drained


@in_fake_time
async def test_a_gateway_that_came_after_anothers_lease_had_ended_waits_for_that_one_too(tmp_path: Path) -> None:
    """It never saw it; those that did say so for as long as it may be started again."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await them.stop(b)
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/b" in keys))
        await asyncio.sleep(2)
        c = await them.start("c")
        a.says[KEY] = c.says[KEY] = SAFE
        assert (await drain(c, 1.0)).reason.startswith("b: its lease ended")
        b = await them.start("b", says={KEY: busy(1)})
        assert (await drain(c, 5.0)).reason == "b: 1 connection in flight"
        await them.stop(b)
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/b" in keys))
        report = await drain(c)
        assert report.drained
        assert report.took_s > 14
        await asyncio.sleep(20)
        assert not any(it.missing for site in (a, c) for it in site.fleet.membership.others), "nobody says it for ever"


@in_fake_time
async def test_a_gateway_that_has_stopped_in_order_is_waited_for_no_more(tmp_path: Path) -> None:
    """It says that it has ended: no lease has to run out, and no grace is given."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = busy(1)
        waiting = asyncio.create_task(drain(a))
        await asyncio.sleep(5)
        assert not waiting.done()
        await them.stop(b)
        await b.fleet.close(leaves=True)
        report = await waiting
        assert (report.drained, list(report.elsewhere)) == (True, [])
        assert report.took_s < 6
        b = await them.start("b", called="b")
        assert [it.name for it in a.fleet.membership.others] == ["b"]


@in_fake_time
async def test_a_drain_that_the_others_cannot_be_asked_for_is_not_safe_and_says_so(tmp_path: Path) -> None:
    """It holds at this gateway. So does one during which the store goes away."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        a.store.failing = StoreAway("no answer in 2 s")
        report = await drain(a)
        assert (report.drained, report.reason) == (False, "the other gateways could not be asked: no answer in 2 s")
        assert report.took_s < 1, "this gateway's own part is done, and there is nothing to wait for"
        assert them.held.entries.get("drains/chat/r1") is None
        a.store.failing = None
        b.says[KEY] = busy(1)
        await asyncio.sleep(6)
        waiting = asyncio.create_task(drain(a, 20.0))
        await asyncio.sleep(1)
        a.store.failing = StoreAway("no answer in 2 s")
        report = await waiting
        assert not report.drained
        assert report.reason == "b: 1 connection in flight; the store cannot be read: no answer in 2 s"
        with pytest.raises(StoreError):
            await a.fleet.drains.take_back(Engine(), R1)  # type: ignore[arg-type]


@in_fake_time
async def test_a_gateway_that_cannot_read_the_store_takes_back_its_own_drain_alone(tmp_path: Path) -> None:
    """It may not have heard of a drain that another one was asked for: that would go on."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.store.failing = StoreAway("no answer in 2 s")
        a.says[KEY] = SAFE
        await drain(a, 5.0)
        here = Engine()
        assert b.fleet.drains.asked_of("chat") == {}
        with pytest.raises(StoreError):
            await b.fleet.drains.take_back(here, R1)  # type: ignore[arg-type]
        here.alone = True
        await b.fleet.drains.take_back(here, R1)  # type: ignore[arg-type]


class OneKeyAtATime(FakeStore):
    """One that came back a moment ago, in the middle of a request: nobody has read it whole yet."""

    is_read_whole = True

    async def read(self, *prefixes: str) -> Snapshot:
        if not self.is_read_whole and len(prefixes) > 2:
            raise StoreAway("no answer in 2 s")
        return await super().read(*prefixes)


@in_fake_time
async def test_a_drain_that_is_asked_for_holds_here_once_what_else_the_store_has_is_known(tmp_path: Path) -> None:
    """Before that the engine that is known here may be another than the one that the others drain."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a", client=OneKeyAtATime), await them.start("b")
        assert isinstance(a.store, OneKeyAtATime)
        await a.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(1)
        b.says[KEY], a.store.is_read_whole = SAFE, False
        await b.fleet.replicas.put("chat", R1, OTHER)
        asking = await a.fleet.drains.ask("chat", R1)
        await asyncio.sleep(1)
        assert not asking.trouble
        assert set(b.fleet.drains.asked_of("chat") or {}) == {R1}
        assert a.fleet.drains.asked_of("chat") == {}
        assert a.entries() == {R1: ENTRY}
        a.store.failing, here = StoreAway("no answer in 2 s"), Engine()
        here.alone = True
        with pytest.raises(StoreError):
            await a.fleet.drains.take_back(here, R1)  # type: ignore[arg-type]
        a.store.failing, a.store.is_read_whole = None, True
        a.says[KEY] = busy(1)
        await asyncio.sleep(20)
        assert set(a.fleet.drains.asked_of("chat") or {}) == {R1}
        assert a.fleet.drains.is_outdated("chat", R1, ENTRY)
        assert not a.fleet.drains.is_outdated("chat", R1, OTHER)
        assert not a.fleet.drains.is_outdated("chat", R1, None), "what it was found by is not known"


@in_fake_time
async def test_a_gateway_that_cannot_read_the_store_calls_nothing_safe_since_a_drain_may_have_been_taken_back(
    tmp_path: Path,
) -> None:
    """Once it can it says what is so then."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = SAFE
        waiting = [asyncio.create_task(drain(a, timeout_s, Engine(takes_s=10))) for timeout_s in (20, 60)]
        await asyncio.sleep(5)
        a.store.failing = StoreAway("no answer in 2 s")
        await asyncio.sleep(20)
        assert not waiting[1].done()
        assert (await waiting[0]).reason == "the store cannot be read: no answer in 2 s"
        a.store.failing = None
        await asyncio.sleep(6)
        assert waiting[1].result().drained
        waiting = [asyncio.create_task(drain(a, 30.0, Engine(takes_s=10)))]
        await asyncio.sleep(5)
        # What is known says that all is safe, and is not found to be old before this gateway's own part is done.
        a.store.failing = StoreAway("no answer in 2 s")
        await b.fleet.drains.take_back(Engine(), R1)  # type: ignore[arg-type]
        report = await waiting[0]
        assert not report.drained


@in_fake_time
async def test_a_drain_that_was_taken_back_and_asked_again_begins_anew_for_who_asked_first(tmp_path: Path) -> None:
    """This gateway has sent requests there in between."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY], here = busy(1), Engine()
        waiting = asyncio.create_task(drain(a, 60.0, here))
        await asyncio.sleep(5)
        await b.fleet.drains.take_back(Engine(), R1)  # type: ignore[arg-type]
        await asyncio.sleep(1)
        here.later = busy(3)
        again = asyncio.create_task(drain(b, 20.0))
        b.says[KEY] = a.says[KEY] = SAFE
        assert (await again).drained
        await asyncio.sleep(5)
        assert not waiting.done()
        here.later = SAFE
        assert (await waiting).drained
        here.later = busy(3)
        assert (await drain(a, 5.0, here)).reason == "3 connections in flight at this gateway"


@in_fake_time
async def test_a_gateway_writes_its_key_again_if_somebody_else_wrote_there(tmp_path: Path) -> None:
    """Until then it has said nothing of any drain."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = SAFE
        assert (await drain(a)).drained
        them.held.write("gateways/b", "garbage")
        await asyncio.sleep(0.1)
        assert [(it.name, dict(it.drains)) for it in a.fleet.membership.others] == [("b", {})]
        await asyncio.sleep(6)
        assert a.fleet.membership.others[0].drains[KEY].is_safe


@in_fake_time
async def test_a_gateway_alone_in_its_fleet_is_safe_when_it_is_drained_itself(tmp_path: Path) -> None:
    """And not before."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        assert (await drain(a)).drained
        report = await drain(a, 5.0, Engine(drained=False))
        assert (report.drained, report.reason) == (False, "1 connection in flight at this gateway")


@in_fake_time
async def test_a_resume_at_any_gateway_holds_at_all_and_ends_the_waiting(tmp_path: Path) -> None:
    """Who still waits is told that it was taken back."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        for site in (a, b):
            site.says[KEY] = busy(1)
        waiting = asyncio.create_task(drain(a, 10.0))
        await asyncio.sleep(5)
        assert b.fleet.drains.asked_of("chat")
        await b.fleet.drains.take_back(Engine(), R1)  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        assert a.fleet.drains.asked_of("chat") == b.fleet.drains.asked_of("chat") == {}
        report = await waiting
        assert (report.drained, report.reason) == (False, "it was taken back meanwhile")


@in_fake_time
async def test_a_drain_is_forgotten_once_no_gateway_has_the_engine_any_more(tmp_path: Path) -> None:
    """Else the next gateway that comes would keep the next engine of that name out of rotation."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        for site in (a, b):
            site.says[KEY] = SAFE
        assert (await drain(a)).drained
        await asyncio.sleep(600)
        assert a.fleet.drains.held, "it holds for as long as the engine is there"
        a.says[KEY] = DrainSeen("", True)
        await asyncio.sleep(10)
        assert a.fleet.drains.held
        b.says[KEY] = DrainSeen("", True)
        await asyncio.sleep(10)
        assert a.fleet.drains.held == b.fleet.drains.held == {}
        for site in (a, b):
            site.says[KEY] = SAFE
        assert (await drain(b)).drained
        await them.stop(b)
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/b" in keys))
        a.says[KEY] = DrainSeen("", True)
        await asyncio.sleep(1000)
        assert a.fleet.drains.held == {}, "who asked for it is dead: the others see to it"


@in_fake_time
async def test_what_is_put_after_a_delete_is_not_what_an_earlier_drain_was_about(tmp_path: Path) -> None:
    """A new engine of that name serves everywhere; one that is only changed stays drained."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        for site in (a, b):
            site.says[KEY] = SAFE
        await a.fleet.replicas.put("chat", R1, ENTRY)
        await drain(a)
        await b.fleet.replicas.put("chat", R1, OTHER)
        assert a.fleet.drains.held
        await a.fleet.replicas.take_out("chat", R1)
        await b.fleet.replicas.put("chat", R1, ENTRY)
        await asyncio.sleep(0.2)
        assert a.fleet.drains.held == b.fleet.drains.held == {}


@in_fake_time
async def test_the_drain_of_a_delete_is_forgotten_with_it(tmp_path: Path) -> None:
    """Unless somebody has asked for another one since."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = DrainSeen("", True)
        own = cast("Drains", cast("Any", Engine()))
        async with a.fleet.drains.asked_once("chat", R1) as asking:
            report = await a.fleet.drains.finish(own, DrainReport(True, 0, 0.0), asking, 10.0, until)
            assert report.drained
        assert a.fleet.drains.held == {}
        with pytest.raises(KeyError):
            async with a.fleet.drains.asked_once("chat", R1):
                raise KeyError  # It was put again, say.
        assert a.fleet.drains.held == {}
        async with a.fleet.drains.asked_once("chat", R1):
            a.says[KEY] = SAFE
            await drain(b)
        assert a.fleet.drains.held


@in_fake_time
async def test_a_delete_that_meets_a_put_leaves_no_drain_of_what_was_put(tmp_path: Path) -> None:
    """The new engine came before the drain was asked for, and would be kept out of rotation until a `resume`."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)

        class PutMeanwhile:
            of = a.fleet.replicas.of

            async def take_out(self, service: str, replica: ReplicaId) -> object:
                entry = await a.fleet.replicas.take_out(service, replica)
                await b.fleet.replicas.put(service, replica, OTHER)
                return entry

        service = SimpleNamespace(name="chat", until=until, controller=SimpleNamespace(looks=1), drains=Engine())
        service.current = service.owner_of = lambda _: None
        shared = SimpleNamespace(fleet=a.fleet, api=PutMeanwhile())
        app = {DAEMON: SimpleNamespace(services={"chat": service}, shared=shared)}
        match = {"service": "chat", "replica": "r1"}
        request: Any = SimpleNamespace(app=app, match_info=match, query=MultiDict(drain_s="60"))
        with pytest.raises(Refused, match="was put again"):
            await delete_replica(request)
        assert b.entries() == {R1: OTHER}
        assert not [key for key in them.held.entries if key.startswith("drains/")]


@in_fake_time
async def test_what_is_drained_is_told_as_safe_only_once_it_is_written_down(tmp_path: Path) -> None:
    """The next daemon of that gateway must not send there again."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        b.says[KEY] = SAFE
        written = b.written
        assert (await drain(a)).drained
        assert b.written > written
        assert (tmp_path / "b" / "fleet.json").read_text().count("drains/chat/r1") == 1


@in_fake_time
async def test_drains_survive_an_operator_who_has_the_store_filled_again(tmp_path: Path) -> None:
    """They are what was asked for, as replicas are."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        a.says[KEY] = SAFE
        await drain(a)
        before = dict(a.fleet.drains.held)
        them.held.entries.clear()
        them.held.revision = 1
        await asyncio.sleep(10)
        assert (a.state, dict(a.fleet.drains.held)) == ("refused", before)
        await a.fleet.reflector.accept(refill=True)
        await asyncio.sleep(10)
        assert dict(a.fleet.drains.held) == before
