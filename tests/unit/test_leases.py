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
    """Quarantine: nobody gets the port until it settles."""
    leases = PortLeases(range(10, 12))
    first = leases.acquire("a")
    leases.release(first)
    assert leases.quarantined == {first}
    assert leases.acquire("b") != first
    with pytest.raises(NoFreePort, match="1 ports leased, 1 in quarantine"):
        leases.acquire("c")
    leases.settle(first, 0)
    assert leases.acquire("c") == first


def test_port_that_has_to_rest_is_nobodys_until_then() -> None:
    """However quiet it is; the rest is over with it, or with whoever had the port before a restart."""
    leases = PortLeases(range(10, 12))
    leases.release(leases.acquire("a"), until=5.0)
    assert leases.rested(4.9) == frozenset()
    assert leases.rested(5.0) == {10}
    leases.settle(10, 4.9)
    assert leases.rests_until == {10: 5.0}
    leases.settle(10, 5.0)
    assert (leases.quarantined, leases.rests_until) == (frozenset(), {})
    leases.quarantine(11, until=7.0)
    assert leases.restore(11, "b")
    assert leases.rests_until == {}


def test_longest_free_port_goes_first() -> None:
    """A late client of an old owner meets nobody."""
    leases = PortLeases(range(10, 14))
    port = leases.acquire("a")
    leases.release(port)
    leases.settle(port, 0)
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


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("acquire", "release", "settle", "quarantine", "restore")),
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
            case "settle":
                leases.settle(port, 0)
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
        leases.settle(port, 0)
    assert {leases.acquire(str(i)) for i in range(5)} == set(range(10, 15))
