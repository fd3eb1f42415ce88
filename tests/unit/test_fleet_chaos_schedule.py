"""A seed means the same events of a fleet for ever, and events that make sense."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.chaos.fleet.events import (
    AtGateway,
    AtReplica,
    AwayDaemon,
    AwayMembers,
    Die,
    DrainAndRemove,
    DrainAndResume,
    Leave,
    LoseGateway,
    Put,
    Renew,
)
from tests.chaos.fleet.schedule import MEMBERS, NODES, Mix, make_schedule

SEEDS = st.integers(min_value=0, max_value=2**32)
FLEETS = st.integers(min_value=2, max_value=5)


@settings(max_examples=30)
@given(seed=SEEDS, gateways=FLEETS, rounds=st.integers(min_value=1, max_value=4))
def test_the_same_seed_is_the_same_schedule(seed: int, gateways: int, rounds: int) -> None:
    """Replayable: also by what is printed of it, and a longer one begins like a shorter one."""
    schedule = make_schedule(seed, gateways, rounds)
    assert schedule == make_schedule(seed, gateways, rounds)
    assert str(schedule) == str(make_schedule(seed, gateways, rounds))
    assert make_schedule(seed, gateways, rounds + 1).rounds[:rounds] == schedule.rounds


def test_another_seed_is_another_schedule() -> None:
    """Else there would be no point in seeds."""
    assert len({str(make_schedule(seed, 3, 1)) for seed in range(50)}) == 50


@settings(max_examples=30)
@given(seed=SEEDS, gateways=FLEETS)
def test_every_event_finds_its_replica_as_it_needs_it(seed: int, gateways: int) -> None:
    """Nothing is put twice, nobody is killed or drained who is not there, and anchors are only drained."""
    schedule = make_schedule(seed, gateways, 4)
    there = {anchor.replica for anchor in schedule.anchors}
    anchors = frozenset(there)
    engines: list[str] = [anchor.engine.name for anchor in schedule.anchors]
    for event in (event for one in schedule.rounds for event in one.events):
        if not isinstance(event, AtReplica):
            continue
        assert event.replica not in anchors or isinstance(event, DrainAndResume)
        match event:
            case Put():
                assert event.replica not in there
                there.add(event.replica)
                engines.append(event.engine.name)
            case Renew():
                engines.append(event.engine.name)
        assert event.replica in there
        if isinstance(event, DrainAndRemove):
            there.remove(event.replica)
    assert max(Counter(engines).values()) == 1, "an engine's name is its own for ever"
    events = [event for one in schedule.rounds for event in one.events if isinstance(event, AtReplica)]
    assert anchors - {event.replica for event in events}, "somebody serves all the time"


@settings(max_examples=30)
@given(seed=SEEDS, gateways=FLEETS)
def test_every_event_is_within_its_round_and_of_this_fleet(seed: int, gateways: int) -> None:
    """In the order of time; gateways, members of etcd and nodes are there."""
    mix = Mix()
    for one in make_schedule(seed, gateways, 3).rounds:
        assert [event.at for event in one.events] == sorted(event.at for event in one.events)
        assert 1 <= one.drained_at <= gateways
        for event in one.events:
            assert 0 <= event.at <= mix.round_s
            if isinstance(event, AtGateway | Put | DrainAndRemove | DrainAndResume):
                assert 1 <= event.gateway <= gateways
            if isinstance(event, Put):
                assert event.node in (0, *NODES)
            if isinstance(event, AwayMembers):
                assert set(event.members) <= set(MEMBERS)


@settings(max_examples=30)
@given(seed=SEEDS)
@example(seed=1105762)  # Its second one would come in the last hundredth of a second.
def test_one_gateway_at_most_is_lost_or_leaves_in_a_round(seed: int) -> None:
    """So that somebody serves at all times, as where an operator takes one after the other."""
    for one in make_schedule(seed, 3, 4).rounds:
        assert sum(isinstance(event, LoseGateway | Leave) for event in one.events) <= 1


def test_every_fault_is_drawn_and_gateways_count_as_dead_at_times() -> None:
    """Fifty seeds have all kinds of events, in all their ways, and absences of more than two leases."""
    events = [event for seed in range(50) for one in make_schedule(seed, 3, 2).rounds for event in one.events]
    kinds = Counter(type(event).__name__ for event in events)
    assert len(kinds) == 17, kinds
    for kind, ways in ((AwayDaemon, 3), (LoseGateway, 3), (AwayMembers, 3)):
        assert len({event.how for event in events if isinstance(event, kind)}) == ways
    assert {event.joins for event in events if isinstance(event, Leave)} == {False, True}
    assert any(event.for_s > 12 for event in events if isinstance(event, AwayDaemon | LoseGateway))
    assert any(isinstance(event, Die) for event in events)
