"""A seed means the same events for ever, and events that make sense."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.events import (
    CALM,
    Appear,
    AtReplica,
    Die,
    DrainAndResume,
    DrainAndStop,
    Hold,
    KillHost,
    Misbehave,
    RemoveDead,
    Restart,
    Retire,
    Schedule,
    Stop,
)
from tests.chaos.schedule import WILD_HOSTS, Mix, make_schedule

SEEDS = st.integers(min_value=0, max_value=2**32)


@settings(max_examples=30)
@given(seed=SEEDS, rounds=st.integers(min_value=1, max_value=4))
def test_the_same_seed_is_the_same_schedule(seed: int, rounds: int) -> None:
    """Replayable: also by what is printed of it, and a longer one begins like a shorter one."""
    schedule = make_schedule(seed, rounds)
    assert schedule == make_schedule(seed, rounds)
    assert str(schedule) == str(make_schedule(seed, rounds))
    assert make_schedule(seed, rounds + 1).rounds[:rounds] == schedule.rounds


def test_another_seed_is_another_schedule() -> None:
    """Else there would be no point in seeds."""
    assert len({str(make_schedule(seed, 1)) for seed in range(50)}) == 50


@settings(max_examples=30)
@given(seed=SEEDS)
def test_every_event_finds_its_replica_as_it_needs_it(seed: int) -> None:
    """Nobody is killed who is not there, and nobody appears where somebody lives."""
    schedule = make_schedule(seed, 4)
    living: dict[str, int] = {}
    dead: set[str] = set()
    for event in in_order(schedule):
        if isinstance(event, KillHost):
            gone = [place for place, host in living.items() if host == event.host]
            dead |= set(gone)
            for place in gone:
                del living[place]
            continue
        if not isinstance(event, AtReplica):
            continue
        place = f"{event.service}/{event.replica}"
        match event:
            case Appear():
                assert place not in living
                dead.discard(place)
                living[place] = event.engine.host
            case RemoveDead():
                assert place in dead
                dead.remove(place)
            case Restart():
                assert place in living
                living[place] = event.engine.host
            case Die():
                del living[place]
                dead.add(place)
            case Retire() | DrainAndStop() | Stop():
                del living[place]
            case DrainAndResume() | Misbehave() | Hold():
                assert place in living


@settings(max_examples=30)
@given(seed=SEEDS)
def test_anchors_are_left_alone_and_the_calm_stay_calm(seed: int) -> None:
    """The strictest laws are judged on them: no engine's fault may be an excuse."""
    schedule = make_schedule(seed, 4)
    anchors = {(a.service, a.replica) for a in schedule.anchors}
    assert all(anchor.engine.host not in WILD_HOSTS for anchor in schedule.anchors)
    calm: set[tuple[str, str]] = set()
    for event in in_order(schedule):
        if isinstance(event, AtReplica):
            key = event.service, event.replica
            assert key not in anchors
            if isinstance(event, Appear | Restart) and event.engine.model == CALM:
                assert event.engine.host == 0
                calm.add(key)
            if key in calm:
                assert isinstance(event, Appear | Retire | DrainAndStop | DrainAndResume | Hold)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_engines_have_names_of_their_own_and_events_their_time(seed: int) -> None:
    """Whoever answered can be told from the answer."""
    mix = Mix(round_s=12.0)
    schedule = make_schedule(seed, 3, mix)
    names = [e.engine.name for e in in_order(schedule) if isinstance(e, Appear | Restart)]
    assert len(names) == len(set(names))
    for one in schedule.rounds:
        assert [event.at for event in one.events] == sorted(event.at for event in one.events)
        assert all(0 <= event.at <= one.length_s for event in one.events)


def in_order(schedule: Schedule) -> list[object]:
    """All events, anchors aside, one after the other."""
    return [event for one in schedule.rounds for event in one.events]
