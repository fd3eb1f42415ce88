"""All gateways of a fleet use the same bridge ports, and no replica waits long for that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.control.replicas.bridging import FleetPort
from gateway_sidecar.domain.fleet_ports import PortNeeds, PortsSeen, PortTable, next_table
from gateway_sidecar.domain.leases import NoFreePort, PortLeases
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.errors import StoreAway
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import ENTRY, Fleets, Site, fleets
from tests.unit.world import World, Worlds

R1, R2 = ReplicaId("r1"), ReplicaId("r2")
KEY = "chat/r1"


# -- the table


def needs(
    wants: dict[str, int | None] | None = None, has: dict[str, int] | None = None, gone: tuple[str, ...] = ()
) -> PortNeeds:
    return PortNeeds(wants or {}, has or {}, {"a", "b", "c"} - set(gone), range(1, 6), [6])


def test_each_replica_gets_a_port_that_nobody_has_and_what_a_gateway_has_already_is_kept() -> None:
    table = next_table(PortTable(), needs({"a": None}, {"b": 1}), [])
    assert (table.current, table.number, table.taken) == ({"a": 2, "b": 1}, 1, frozenset({1, 2}))
    assert next_table(table, needs({"a": None}, {"b": 5}), []) is table, "who is late takes what is there"
    assert next_table(table, needs({"x": None}, {"y": 5}), []) is table, "nobody knows of these replicas"
    assert next_table(table, needs(has={"c": 1}), []) is table, "that port is another replica's"


def test_the_next_engine_of_a_replica_gets_another_port_and_its_last_one_rests_until_all_have_counted_zero() -> None:
    table = PortTable(7, 1, {"a": 1})
    table = next_table(table, needs({"a": 1}), [PortsSeen(7)])
    assert (table.current, table.rests) == ({"a": 2}, {1: 8})
    assert next_table(table, needs({"a": 1}), [PortsSeen(7)]) is table, "another gateway has asked for it, too"
    for says in ([PortsSeen(8), PortsSeen(7)], [PortsSeen(8), PortsSeen(8, frozenset({1}))], [PortsSeen(8), None]):
        assert next_table(table, needs(), says) is table
    assert next_table(table, needs(), [PortsSeen(8, frozenset({3})), PortsSeen(9)]).rests == {}


def test_the_port_of_a_replica_that_is_gone_rests() -> None:
    """And is not given out in the same breath in which it is free."""
    table = PortTable(1, 1, {"a": 1})
    table = next_table(table, needs({"b": None}, gone=("a",)), [PortsSeen(9)])
    assert (table.current, table.rests) == ({"b": 2}, {1: 2})
    table = next_table(table, needs({"c": None}), [PortsSeen(9)])
    assert (table.current, table.rests) == ({"b": 2, "c": 3}, {})


def test_the_port_that_was_given_out_longest_ago_comes_first_and_a_full_table_gives_none() -> None:
    table = PortTable(1, 4)
    table = next_table(table, needs({"a": None, "b": None}), [])
    assert (table.current, table.last) == ({"a": 5, "b": 1}, 1)
    table = PortTable(1, 4, rests=dict.fromkeys(range(1, 6), 1))
    assert next_table(table, needs({"a": None}), [None]).current == {"a": 6}, "for want of others"
    full = PortTable(1, 6, rests=dict.fromkeys(range(1, 7), 1))
    assert next_table(full, needs({"a": None}), [None]) is full


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(1, 6)),
            st.dictionaries(st.sampled_from("abc"), st.integers(1, 6)),
            st.sets(st.sampled_from("abc")),
            st.lists(st.none() | st.builds(PortsSeen, st.integers(0, 9), st.frozensets(st.integers(1, 6)))),
        ),
        max_size=8,
    )
)
def test_no_port_is_ever_two_replicas_nor_anybodys_while_it_rests(steps: list[tuple[object, ...]]) -> None:
    """Whatever gateways want, have and say; and what is written is read as it was."""
    table = PortTable()
    for wants, has, gone, says in steps:
        before = table
        table = next_table(table, needs(wants, has, tuple(gone)), says)  # type: ignore[arg-type]
        ports = list(table.current.values())
        assert len(ports) == len(set(ports))
        assert not table.rests.keys() & set(ports)
        assert before.taken - table.taken <= before.rests.keys(), "what was in use rests first"
        assert PortTable.from_json(table.to_json()) == table
        assert (table is before) == (table.number == before.number)


def test_what_no_gateway_wrote_is_no_table_and_says_nothing() -> None:
    infinite = '{"number": 1, "last": 2, "current": {"chat/r1": 1e999}, "rests": {}}'
    for text in ("", "[]", "{}", '{"number": 1, "last": 2, "current": [], "rests": {}}', infinite, "[" * 100_000):
        assert PortTable.from_json(text) is None
    unread: tuple[object, ...] = (None, [], {"number": 1}, {"number": 1, "busy": 3}, {"number": "x", "busy": []})
    for said in unread:
        assert PortsSeen.of(said) is None
    seen = PortsSeen(3, frozenset({2, 1}))
    assert PortsSeen.of(seen.said()) == seen


# -- what is left for this gateway alone


def test_ports_of_the_fleet_are_only_claimed_and_local_ones_come_from_the_other_part() -> None:
    leases = PortLeases(range(1, 7))
    leases.set_apart({1, 2, 3}, {2, 5})
    assert leases.acquire("mine") == 4
    assert leases.acquire("preferred", 5) == 6, "that one is the fleet's"
    assert leases.acquire("overflow") == 1
    assert leases.free == [2, 3, 5]
    assert leases.claim(5, "theirs", service="chat")
    assert leases.claim(5, "theirs"), "it has it"
    assert not leases.claim(5, "somebody else")
    assert leases.acquire("last") == 3
    with pytest.raises(NoFreePort, match="2 of them by the fleet"):
        leases.acquire("one more")
    leases.release(5)
    assert leases.holds(5)
    assert not leases.claim(5, "next"), "it rests here"
    leases.note_quiet(5, 0.0)
    assert not leases.holds(5)
    assert not leases.claim(99, "next"), "it is not in the range"


def test_a_claim_keeps_to_the_share_of_its_service() -> None:
    leases = PortLeases(range(1, 5))
    leases.share_among(["chat", "images"])
    for port in (1, 2):
        assert leases.claim(port, f"r{port}", service="chat")
    with pytest.raises(NoFreePort, match="its share"):
        leases.claim(3, "r3", service="chat")


# -- what a bridge makes of it


def port_of(world: World, replica: str = "r1") -> int | None:
    return world.tenure(replica).bridge.port


@in_fake_time
async def test_a_replica_of_the_api_gets_the_fleets_port_and_one_of_this_gateway_alone_does_not(worlds: Worlds) -> None:
    async with worlds() as world:
        world.table.current = {"r1": 24017}
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert port_of(world) == 24001
        world.vanish("r1")
        world.source.owner = "api"
        await world.until(lambda: world.states() == {})
        world.appear("r1")
        await world.until(lambda: world.serves("r1"))
        assert port_of(world) == 24017


@in_fake_time
async def test_it_waits_for_the_port_while_that_is_asked_for_and_says_so(worlds: Worlds) -> None:
    """No error is logged for it."""
    async with worlds() as world:
        world.source.owner = "api"
        world.table.otherwise = FleetPort.WAIT
        world.appear("r1")
        await world.until(lambda: "r1" in world.states())
        await asyncio.sleep(1)
        assert world.tenure("r1").status.reason == "waits for the port that all gateways use for it"
        world.table.give("r1", 24009)
        await world.until(lambda: world.serves("r1"), within_s=0.5)
        assert port_of(world) == 24009
        assert not [it for it in world.log if it["event"] == "replica.not_bridged"]


@in_fake_time
async def test_the_next_engine_of_a_replica_asks_for_another_port_while_the_last_one_is_in_use(worlds: Worlds) -> None:
    async with worlds() as world:
        world.source.owner = "api"
        world.table.otherwise = FleetPort.WAIT
        world.table.current = {"r1": 24009}
        assert await world.in_use("r1") == 24009
        world.appear("r1")
        await world.until(lambda: world.table.asked == [("r1", 24009)])
        world.table.give("r1", 24010)
        await world.until(lambda: world.serves("r1"))
        assert port_of(world) == 24010


@in_fake_time
async def test_a_port_that_is_another_replicas_here_or_out_of_the_range_is_not_waited_for(worlds: Worlds) -> None:
    """It gets one of this gateway's own: the same port everywhere is worth less than a replica that serves."""
    async with worlds() as world:
        world.source.owner = "api"
        world.table.current = {"r1": 24009, "r2": 24009, "r3": 30000}
        for name in ("r1", "r2", "r3"):
            world.appear(name)
            await world.until(lambda name=name: world.states().get(name) is ReplicaState.SERVING)  # type: ignore[misc]
        assert port_of(world) == 24009
        assert {port_of(world, "r2"), port_of(world, "r3")} == {24001, 24002}
        assert world.table.asked == []


# -- what a fleet makes of it


async def bridged(site: Site, replica: ReplicaId, owner: str | None = None) -> int:
    """As a bridge asks, until it has a port."""
    ports, owner = site.fleet.ports, owner or f"chat/{replica}/1"
    for _ in range(400):
        port = ports.port_of("chat", replica, owner, site.entries().get(replica))
        if port is FleetPort.OWN:
            return site.leases.acquire(owner)
        if isinstance(port, int):
            if site.leases.claim(port, owner):
                return port
            ports.ask_next("chat", replica, port)
        await asyncio.sleep(0.01)
    raise AssertionError("it waits for ever")


async def both_at_one_port(them: Fleets) -> tuple[Site, Site, int]:
    """Two gateways that have the replica, and its port."""
    a, b = await them.start("a"), await them.start("b")
    await a.fleet.replicas.put("chat", R1, ENTRY)
    port = await bridged(a, R1)
    assert await bridged(b, R1) == port
    return a, b, port


def free(site: Site, port: int) -> None:
    """Its bridge is gone, and nothing is in flight there."""
    site.leases.release(port)
    site.leases.note_quiet(port, 0.0)


@in_fake_time
async def test_gateways_that_ask_at_once_use_the_same_ports(tmp_path: Path) -> None:
    """Whoever of them writes the table. Each replica has its port within a tenth of a second."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        for replica in (R1, R2):
            await a.fleet.replicas.put("chat", replica, ENTRY)
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(bridged(site, replica) for site in (a, b) for replica in (R1, R2)))
        assert asyncio.get_running_loop().time() - began < 0.2
        assert found[:2] == found[2:]
        assert len(set(found)) == 2
        assert max(found) < 24011, "the first half of the range is for what all have"
        assert a.leases.acquire("a socket of this machine") == 24011


@in_fake_time
async def test_a_departed_replicas_port_rests_until_every_living_gateway_has_counted_zero(tmp_path: Path) -> None:
    """One that does not answer holds it up until it counts as dead."""
    async with fleets(tmp_path) as them:
        c = await them.start("c")
        a, b, port = await both_at_one_port(them)
        await a.fleet.replicas.take_out("chat", R1)
        free(a, port)
        await asyncio.sleep(60)
        assert list(a.fleet.ports.table.rests) == [port]
        b.leases.release(port)
        await asyncio.sleep(60)
        assert list(a.fleet.ports.table.rests) == [port], "it is still in use at b"
        await them.stop(c)
        b.leases.note_quiet(port, 0.0)
        await asyncio.sleep(30)
        assert a.fleet.ports.table.rests == {}, "c has counted zero as well, before it ended"
        await a.fleet.replicas.put("chat", R1, ENTRY)
        assert await bridged(a, R1) != port
        await a.fleet.replicas.take_out("chat", R1)
        for taken in list(a.leases.leased):
            free(a, taken)
        await asyncio.sleep(60)
        assert a.fleet.ports.table.rests, "c does not answer"
        them.held.end(next(lease for lease, keys in them.held.leases.items() if "gateways/c" in keys))
        await asyncio.sleep(10)
        assert a.fleet.ports.table.rests, "it may be started again"
        await asyncio.sleep(10)
        assert a.fleet.ports.table.rests == {}


@in_fake_time
async def test_an_engine_that_was_replaced_has_another_port_at_all_gateways(tmp_path: Path) -> None:
    """Whichever of them notices first."""
    async with fleets(tmp_path) as them:
        a, b, first = await both_at_one_port(them)
        later = await asyncio.gather(*(bridged(site, R1, "chat/r1/2") for site in (a, b)))
        assert later[0] == later[1] != first
        assert list(a.fleet.ports.table.rests) == [first]


@in_fake_time
async def test_a_gateway_that_took_another_port_has_the_next_engines_one_with_the_others(tmp_path: Path) -> None:
    """What the table has is the last engine's port, also here: it would be one turn behind the others for ever."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        first = await bridged(a, R1)
        assert b.fleet.ports.port_of("chat", R1, "chat/r1/1", ENTRY) == first
        b.leases.acquire("chat/r1/1")  # That port was somebody else's there.
        for turn in (2, 3):
            later = [await bridged(site, R1, f"chat/r1/{turn}") for site in (b, a)]
            assert later[0] == later[1]
            assert later[0] != first


@in_fake_time
async def test_an_engine_that_an_outdated_entry_led_to_is_told_no_port(tmp_path: Path) -> None:
    """A gateway that was cut off looks by the old entry once more; the port is for the engine by the new one."""
    async with fleets(tmp_path) as them:
        a, b, first = await both_at_one_port(them)
        await a.fleet.replicas.put("chat", R1, {"socket": "/run/moved.sock"})
        later = await bridged(a, R1, "chat/r1/2")
        assert later != first
        free(b, first)
        await b.fleet.reflector.look()
        assert b.fleet.ports.port_of("chat", R1, "chat/r1/2", ENTRY) is FleetPort.WAIT
        assert await bridged(b, R1, "chat/r1/3") == later
        assert b.fleet.ports.port_of("chat", R1, "chat/r1/2", ENTRY) is FleetPort.WAIT
        await asyncio.sleep(2.1)
        assert b.fleet.ports.port_of("chat", R1, "chat/r1/2", ENTRY) is FleetPort.OWN
        assert a.fleet.ports.table.current == {KEY: later}


@in_fake_time
async def test_a_gateway_that_could_not_reach_the_last_engine_has_the_next_ones_port_with_the_others(
    tmp_path: Path,
) -> None:
    """It was never told the last one's: that the replica was put elsewhere shows whose port the table has."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        first = await bridged(a, R1)
        await b.fleet.reflector.look()
        await a.fleet.replicas.put("chat", R1, ENTRY | {"labels": {"rack": "7"}})
        await b.fleet.reflector.look()
        assert b.fleet.ports.port_of("chat", R1, "chat/r1/1", b.entries()[R1]) == first, "it is the same engine"
        c = await them.start("c")
        await c.fleet.reflector.look()
        await a.fleet.replicas.put("chat", R1, {"socket": "/run/moved.sock"})
        await asyncio.gather(*(site.fleet.reflector.look() for site in (b, c)))
        later = await asyncio.gather(*(bridged(site, R1, "chat/r1/2") for site in (c, b, a)))
        assert later[0] == later[1] == later[2] != first


@in_fake_time
async def test_a_stay_asks_for_another_port_than_the_last_ones_also_after_an_outdated_entry(tmp_path: Path) -> None:
    """What that waits for is not what the next stay wants."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        first = await bridged(a, R1)
        await a.fleet.replicas.put("chat", R1, {"socket": "/run/moved.sock"})
        assert a.fleet.ports.port_of("chat", R1, "chat/r1/2", ENTRY) is FleetPort.WAIT
        free(a, first)
        assert await bridged(a, R1, "chat/r1/3") != first


@pytest.mark.parametrize("took_its_own", [True, False])
def test_what_was_told_is_known_after_a_restart_of_the_daemon(tmp_path: Path, took_its_own: bool) -> None:
    """Whether that gateway's engine had the table's port, which is quiet there now, or another one."""

    @in_fake_time
    async def play() -> None:
        async with fleets(tmp_path) as them:
            a, b = await them.start("a"), await them.start("b")
            await a.fleet.replicas.put("chat", R1, ENTRY)
            first = await bridged(a, R1)
            if took_its_own:
                assert b.fleet.ports.port_of("chat", R1, "chat/r1/1", ENTRY) == first
            else:
                assert await bridged(b, R1) == first
            told = b.fleet.ports.told
            await them.stop(b)
            b = await them.start("b")
            b.fleet.ports.recall(told)
            later = [await bridged(site, R1, "chat/r1/2") for site in (b, a)]
            assert later[0] == later[1] != first
            b.fleet.ports.recall(told)
            assert b.fleet.ports.port_of("chat", R1, "chat/r1/2", ENTRY) == later[0], (
                "what is out of date means nothing"
            )

    play()


@in_fake_time
async def test_a_replica_that_is_put_again_at_once_has_another_port_at_all_gateways(tmp_path: Path) -> None:
    """Its old port may be free at one gateway, and in use at another one."""
    async with fleets(tmp_path) as them:
        a, b, first = await both_at_one_port(them)
        free(a, first)
        later = [await bridged(site, R1, "chat/r1/2") for site in (a, b)]
        assert later[0] == later[1] != first


@in_fake_time
async def test_while_the_store_is_away_what_is_known_counts_and_what_is_new_gets_a_port_of_its_own(
    tmp_path: Path,
) -> None:
    """At once; and it stays with that port. A store that never gives one is not waited for either."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        for replica in (R1, R2):
            await a.fleet.replicas.put("chat", replica, ENTRY)
        port = await bridged(a, R1)
        a.store.failing = StoreAway("gone")
        await asyncio.sleep(6)
        free(a, port)
        assert await bridged(a, R1) == port, "it is known"
        assert await bridged(a, R1, "chat/r1/2") == 24011, "the next engine"
        assert await bridged(a, R2) == 24012
        a.store.failing = None
        a.ports = {"chat/r2": 24012}
        await asyncio.sleep(6)
        assert a.fleet.ports.table.current == {"chat/r1": port, "chat/r2": 24012}
        assert a.fleet.ports.port_of("chat", ReplicaId("never-put"), "it", None) is FleetPort.WAIT
        await asyncio.sleep(2.1)
        assert a.fleet.ports.port_of("chat", ReplicaId("never-put"), "it", None) is FleetPort.OWN


@in_fake_time
async def test_a_gateway_that_joins_with_other_ports_keeps_them_and_the_table_keeps_its_own(tmp_path: Path) -> None:
    """An unchanged replica keeps its port, here and there."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        a.ports = {KEY: await bridged(a, R1)}
        b = await them.start("b")
        b.ports = {KEY: 24015}
        await asyncio.sleep(10)
        assert b.fleet.ports.table.current == {KEY: a.ports[KEY]}
        them.held.write("ports", None)
        await asyncio.sleep(10)
        assert a.fleet.ports.table.current in ({KEY: a.ports[KEY]}, {KEY: 24015}), "it is made anew of what there is"
