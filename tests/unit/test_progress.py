"""What requests prove of an engine, and what they do not."""

from __future__ import annotations

import math

import pytest

from gateway_sidecar.domain.progress import Answers, Work, found_dead, stays_dead

HUNG_S = 8.0
ALONE_S = 10.0


def watched(until_s: float, counters: tuple[float, ...] | None = (1.0,), *, busy: bool = True) -> Work:
    """An engine that gave its last sign at 0, looked at every two seconds, whose counters say the same each time."""
    work, now = Work().seen(0.0, 0.0, busy=busy), 0.0
    while now < until_s:
        now += 2.0
        work = work.seen(now, 0.0, busy=busy)
        if work.is_suspect(now):
            work = work.read(now, counters)
    return work


def test_an_engine_whose_requests_wait_while_others_answer_and_whose_counters_stand_still_hangs() -> None:
    assert watched(6.0).hung_for_s(6.0, HUNG_S, others_answered_at=5.0) is None
    assert watched(8.0).hung_for_s(8.0, HUNG_S, others_answered_at=7.0) == 8.0


def test_where_no_other_answers_it_takes_longer() -> None:
    """The requests may be what is slow."""
    assert watched(8.0).hung_for_s(8.0, HUNG_S, others_answered_at=-math.inf) is None
    assert watched(ALONE_S).hung_for_s(ALONE_S, HUNG_S, others_answered_at=-math.inf) == ALONE_S


def test_an_engine_without_counters_never_hangs_by_this() -> None:
    """Busy and hung look alike from outside."""
    assert watched(600.0, None).hung_for_s(600.0, HUNG_S, others_answered_at=599.0) is None


def test_an_engine_without_requests_may_stand_still() -> None:
    assert watched(600.0, busy=False).hung_for_s(600.0, HUNG_S, others_answered_at=599.0) is None


def test_what_turns_it_off() -> None:
    assert watched(600.0).hung_for_s(600.0, 0.0, others_answered_at=599.0) is None


@pytest.mark.parametrize("sign", ["a byte", "a counter"])
def test_any_sign_of_life_begins_the_count_anew(sign: str) -> None:
    work = watched(6.0)
    work = work.seen(7.0, 7.0, busy=True) if sign == "a byte" else work.read(7.0, (2.0,))
    assert work.hung_for_s(14.0, HUNG_S, others_answered_at=13.0) is None


def test_a_request_after_a_long_rest_is_not_old_at_once() -> None:
    """Its last sign of life is an hour ago, and its request a second."""
    work = Work().seen(3600.0, 0.0, busy=True)
    assert not work.is_suspect(3601.0)


def test_counters_that_moved_while_nothing_was_asked_are_a_sign_of_life() -> None:
    """So an engine that was taken out is seen to work again."""
    work = watched(20.0).seen(22.0, 0.0, busy=False).read(24.0, (2.0,))
    assert work.alive_at == 24.0


def failed(*times_s: float) -> Answers:
    answers = Answers(0.0)
    for at in times_s:
        answers = answers.failed(at)
    return answers


def test_failures_in_a_row_while_others_answer_prove_it() -> None:
    row = failed(1.0, 1.2, 1.4, 1.6, 1.8)
    assert row.prove_it(others_answered_at=1.5)
    assert not row.prove_it(others_answered_at=0.5), "all fail: it is the requests"


def test_a_burst_of_failures_is_one_event_and_a_few_are_none() -> None:
    assert not failed(1.0, 1.0, 1.0, 1.0, 1.0, 1.0).prove_it(others_answered_at=2.0)
    assert not failed(1.0, 2.0, 3.0, 4.0).prove_it(others_answered_at=5.0)


@pytest.mark.parametrize(
    ("answers", "work", "why"),
    [
        (Answers(0.0), Work(), None),
        (failed(1.0, 1.2, 1.4, 1.6, 1.8), Work(), "5 requests in a row failed while other replicas answered"),
        (Answers(0.0), watched(9.0), "its own counters stand still for 10 s"),
    ],
)
def test_an_engine_is_found_dead_by_its_failures_or_by_its_counters(
    answers: Answers, work: Work, why: str | None
) -> None:
    found = found_dead(answers, work, others_answered_at=9.0, hung_after_s=HUNG_S, now=10.0)
    assert (found is None) if why is None else (found is not None and found.reason.endswith(why))


def test_an_engine_stays_dead_until_it_shows_work_or_a_minute_has_passed_without_a_request() -> None:
    """Its requests proved it, so what it says of itself does not count."""
    assert stays_dead(Work(), since=10.0, now=69.0)
    assert not stays_dead(Work(), since=10.0, now=70.0)
    assert stays_dead(Work(busy_since=12.0), since=10.0, now=700.0), "its requests still wait"
    assert not stays_dead(Work(busy_since=12.0, alive_at=13.0), since=10.0, now=14.0)
