"""The judge of freezes knows what was heard, and the schedule is that of its seed."""

from __future__ import annotations

from tests.chaos.events import DAEMON, Freeze, Starve, router_of
from tests.chaos.freezes import LEAST_S, MOST_S, check_freezes, make_freezes, silent_s
from tests.chaos.history import Frozen, History, LogLine
from tests.chaos.schedule import CHAT

ROUTER = router_of(CHAT)


def killed(*frozen: Frozen, at: float = 7.0) -> set[str]:
    """The laws that are broken if the router is killed then."""
    history = History(1, frozen=list(frozen))
    text = '{"service":"chat","reason":"its API stopped answering","event":"router.exited"}'
    history.log.append(LogLine(at, "error", "router.exited", text))
    return {violation.law for violation in check_freezes(history)}


def test_only_what_the_daemon_could_hear_is_silence() -> None:
    frozen = [Frozen(ROUTER, 1.0, 7.0), Frozen(DAEMON, 2.0, 6.5)]
    assert silent_s(frozen, ROUTER, 7.0) == 1.5
    assert silent_s(frozen, ROUTER, 1.5) == 0.5
    assert silent_s(frozen, DAEMON, 7.0) == 0.0
    assert silent_s(frozen, ROUTER, 60.0) == 0.0, "an old one is no excuse"


def test_a_router_may_be_killed_for_its_own_silence_alone() -> None:
    law = "no healthy router is killed"
    assert law not in killed(Frozen(ROUTER, 1.0, 7.0))
    assert law in killed(Frozen(ROUTER, 1.0, 7.0), Frozen(DAEMON, 2.0, 6.5))
    assert law in killed(Frozen(ROUTER, 5.0, 7.0))
    assert law in killed(Frozen(router_of("pairs"), 1.0, 7.0))
    assert law in killed()


def test_seed_means_the_same_freezes() -> None:
    """All within the bounds, and all kinds of them."""
    schedule = make_freezes(7, 60)
    assert str(make_freezes(7, 60)) == str(schedule)
    assert str(make_freezes(8, 60)) != str(schedule)
    events = [event for one in schedule.rounds for event in one.events]
    assert {type(event) for event in events} == {Freeze, Starve}
    parts = [part for event in events if isinstance(event, Freeze) for part in event.parts]
    assert all(LEAST_S <= part.for_s <= MOST_S for part in parts)
    assert len({part.who for part in parts}) == 8
