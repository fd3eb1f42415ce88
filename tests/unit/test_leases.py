"""Ports: stable for their owner, never two owners, never reused while someone may hold a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.leases import NoFreePort, PortLeases


def test_an_owner_keeps_its_port() -> None:
    """The same owner gets the same port, whatever its neighbours do."""
    leases = PortLeases(range(10, 13))
    port = leases.acquire("a")
    leases.acquire("b")
    assert leases.acquire("a") == port
    assert leases.port_of("a") == port


def test_released_port_rests_until_it_is_quiet() -> None:
    """Quarantine: nobody gets the port until it is quiet."""
    leases = PortLeases(range(10, 12))
    first = leases.acquire("a")
    leases.release(first)
    assert leases.quarantined == {first}
    assert leases.acquire("b") != first
    with pytest.raises(NoFreePort, match="all 2 are held: nobody 2; 1 of them rest"):
        leases.acquire("c")
    leases.note_quiet(first, 0)
    assert leases.acquire("c") == first


def test_port_that_has_to_rest_is_nobodys_until_then() -> None:
    """However quiet it is; the rest is over with it, or with whoever had the port before a restart."""
    leases = PortLeases(range(10, 12))
    leases.release(leases.acquire("a"), until=5.0)
    assert leases.rested(4.9) == frozenset()
    assert leases.rested(5.0) == {10}
    leases.note_quiet(10, 4.9)
    assert leases.rests_until == {10: 5.0}
    leases.note_quiet(10, 5.0)
    assert (leases.quarantined, leases.rests_until) == (frozenset(), {})
    leases.quarantine(11, until=7.0)
    assert leases.restore(11, "b")
    assert leases.rests_until == {}


def test_longest_free_port_goes_first() -> None:
    """A late client of an old owner meets nobody."""
    leases = PortLeases(range(10, 14))
    port = leases.acquire("a")
    leases.release(port)
    leases.note_quiet(port, 0)
    assert [leases.acquire(name) for name in "bcd"] == [11, 12, 13]
    assert leases.acquire("e") == port


def test_restore_gives_the_very_port_or_says_no() -> None:
    """After a restart an owner has its old port, unless somebody else has it or it is out of the range."""
    leases = PortLeases(range(10, 14))
    assert leases.restore(12, "a")
    assert not leases.restore(12, "b")
    assert not leases.restore(13, "a")
    assert not leases.restore(99, "c")
    leases.quarantine(13)
    assert leases.restore(13, "d")
    assert leases.leased == {12: "a", 13: "d"}


def test_quarantine_of_a_leased_or_foreign_port_does_nothing() -> None:
    """Only a free port can be set aside."""
    leases = PortLeases(range(10, 12))
    port = leases.acquire("a")
    leases.quarantine(port)
    leases.quarantine(99)
    assert leases.quarantined == frozenset()


def leases_of(total: int, services: str) -> PortLeases:
    """So many ports, shared by services of these one-letter names."""
    leases = PortLeases(range(10, 10 + total))
    leases.share_among(services)
    return leases


def test_the_greedy_leave_the_others_their_share() -> None:
    """Thousands of replicas of one service take nothing from another; what cannot be divided is lent."""
    leases = leases_of(7, "ab")
    taken = [leases.acquire(f"a{number}", service="a") for number in range(4)]
    with pytest.raises(NoFreePort, match="a holds 4; its share of 7 among 2 services is 3, and the rest is kept"):
        leases.acquire("a4", service="a")
    assert [leases.acquire(f"b{number}", service="b") for number in range(3)]
    assert leases.acquire("a0", service="a") == taken[0], "what it has stays its own"
    with pytest.raises(NoFreePort, match="all 7 are held: a 4, b 3; 0 of them rest"):
        leases.acquire("b3", service="b")


def test_a_port_at_rest_is_held_by_whoever_had_it() -> None:
    """Replicas that come and go use up their own service's share and no other's, across a restart as well."""
    leases = leases_of(4, "ab")
    for number in range(2):
        leases.release(leases.acquire(f"a{number}", service="a"))
    with pytest.raises(NoFreePort):
        leases.acquire("a2", service="a")
    assert {leases.acquire(f"b{number}", service="b") for number in range(2)} == {12, 13}
    leases.note_quiet(10, 0)
    assert leases.acquire("a2", service="a") == 10
    after = leases_of(4, "ab")
    after.quarantine(11, service="a")
    assert (after.held_by("a"), after.holder_of(11), after.holder_of(12)) == (1, "a", "")


def test_a_further_service_makes_shares_smaller_and_takes_nothing_away() -> None:
    """Who holds more than the new share keeps it, and gets no more until the others have theirs."""
    leases = leases_of(6, "a")
    ports = [leases.acquire(f"a{number}", service="a") for number in range(4)]
    leases.share_among("abc")
    assert (leases.share, leases.held_by("a")) == (2, 4)
    assert leases.port_of("a3") == ports[3]
    with pytest.raises(NoFreePort):
        leases.acquire("a4", service="a")
    assert leases.acquire("b0", service="b")
    assert leases.restore(15, "c0", service="c")
    leases.release(ports[0])
    leases.note_quiet(ports[0], 0)
    with pytest.raises(NoFreePort):
        leases.acquire("a4", service="a")
    leases.share_among("a")
    assert leases.acquire("a4", service="a"), "a service that is gone needs no share"


def test_what_comes_back_is_theirs_who_have_less_than_their_share() -> None:
    """Where one held all before, others lack more than is free: none of them waits for the rest of it."""
    leases = leases_of(6, "a")
    ports = [leases.acquire(f"a{number}", service="a") for number in range(6)]
    leases.share_among("abc")
    leases.release(ports[0])
    leases.note_quiet(ports[0], 0)
    with pytest.raises(NoFreePort):
        leases.acquire("a6", service="a")
    assert leases.acquire("b0", service="b") == ports[0]


def test_more_services_than_ports_share_as_they_come() -> None:
    """Nobody is sure of anything then, and nobody is refused what is there."""
    leases = leases_of(2, "abc")
    assert {leases.acquire(name, service=name) for name in "ca"} == {10, 11}


STEPS = st.lists(
    st.tuples(st.sampled_from(("acquire", "release", "note_quiet")), st.sampled_from("abc"), st.integers(0, 12)),
    max_size=80,
)


@given(st.integers(3, 14), STEPS)
def test_who_holds_less_than_its_share_gets_a_port(total: int, steps: list[tuple[str, str, int]]) -> None:
    """Whatever the others took before, in whatever order, and whatever still rests."""
    leases = leases_of(total, "abc")
    for step, service, number in steps:
        match step:
            case "acquire":
                below = leases.held_by(service) < leases.share
                try:
                    leases.acquire(f"{service}{number}", service=service)
                except NoFreePort:
                    assert not below
            case "release":
                leases.release(10 + number)
            case "note_quiet":
                leases.note_quiet(10 + number, 0)
        held = {name: leases.held_by(name) for name in "abc"}
        assert sum(held.values()) == len(leases.leased) + len(leases.quarantined)
        lacking = sum(max(0, leases.share - count) for count in held.values())
        assert lacking <= total - sum(held.values()), "what others lack to their share is there"


@given(st.integers(1, 14), st.lists(st.sampled_from("abc"), max_size=60))
def test_the_order_in_which_they_come_does_not_matter(total: int, arrivals: list[str]) -> None:
    """Each service gets what it asks for up to its share; nothing stays free while somebody wants it in vain, but
    what is kept for others."""
    leases = leases_of(total, "abc")
    refused = set()
    for number, service in enumerate(arrivals):
        try:
            leases.acquire(str(number), service=service)
        except NoFreePort:
            refused.add(service)
    for service in "abc":
        assert leases.held_by(service) >= min(arrivals.count(service), leases.share)
    if refused:
        lacking = sum(max(0, leases.share - leases.held_by(name)) for name in "abc")
        assert total - len(leases.leased) == lacking


@given(st.integers(1, 14), st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.sampled_from("abc"))), max_size=60))
def test_services_may_come_and_go(total: int, steps: list[tuple[str, set[str]]]) -> None:
    """Below its share a service is refused only when every single port is held."""
    leases = leases_of(total, "abc")
    for number, (service, services) in enumerate(steps):
        leases.share_among(services)
        try:
            leases.acquire(str(number), service=service)
        except NoFreePort:
            below = service in services and leases.held_by(service) < leases.share
            assert not below or len(leases.leased) == total


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("acquire", "release", "note_quiet", "quarantine", "restore")),
        st.integers(10, 15),
        st.sampled_from("abcdef"),
    )
)


@given(OPERATIONS)
def test_no_port_has_two_owners_and_none_is_lost(operations: list[tuple[str, int, str]]) -> None:
    """Whatever is asked: each port is free, leased to one owner, or resting."""
    leases = PortLeases(range(10, 15))
    for operation, port, owner in operations:
        match operation:
            case "acquire":
                try:
                    leases.acquire(owner)
                except NoFreePort:
                    assert len(leases.leased) + len(leases.quarantined) == leases.size
            case "release":
                leases.release(port)
            case "note_quiet":
                leases.note_quiet(port, 0)
            case "quarantine":
                leases.quarantine(port)
            case "restore":
                leases.restore(port, owner)
        owners = list(leases.leased.values())
        assert len(owners) == len(set(owners))
        assert not leases.quarantined & leases.leased.keys()
        assert all(leases.port_of(o) == p for p, o in leases.leased.items())
    for port in list(leases.leased):
        leases.release(port)
    for port in leases.quarantined:
        leases.note_quiet(port, 0)
    assert {leases.acquire(str(i)) for i in range(5)} == set(range(10, 15))
