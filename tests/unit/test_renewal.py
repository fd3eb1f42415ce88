"""When certificates are ordered anew, and when again after failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.renewal import Tries, Validity, order_at

DAY_S, HOUR_S = 86400.0, 3600.0
T0 = 1_800_000_000.0
LIFETIMES_S = (DAY_S, 6 * DAY_S, 47 * DAY_S, 90 * DAY_S, 398 * DAY_S)


@given(st.sampled_from(LIFETIMES_S), st.floats(0, 1))
def test_a_third_of_the_lifetime_is_left_at_the_least(lifetime_s: float, share: float) -> None:
    """And those that were ordered together are renewed over a thirtieth of it."""
    validity = Validity(T0, T0 + lifetime_s)
    due = order_at(T0, validity, validity.renewal_at(share), Tries())
    assert (due - T0) / lifetime_s + 1e-9 >= 2 / 3 - 1 / 30
    assert (due - T0) / lifetime_s <= 2 / 3 + 1e-9
    assert validity.ends_at - validity.last_s > due


def test_without_a_certificate_it_is_due_at_once() -> None:
    """Nobody gets in until there is one."""
    assert order_at(T0, None, 0.0, Tries()) == 0.0


def test_the_servers_word_counts_but_not_until_it_is_too_late() -> None:
    """It may want a certificate renewed early, since it will be revoked."""
    validity = Validity(T0, T0 + 90 * DAY_S)
    assert validity.renewal_at(0.5, T0 + 5 * DAY_S) == T0 + 5 * DAY_S
    assert validity.renewal_at(0.5, T0 + 70 * DAY_S) == T0 + 70 * DAY_S
    assert validity.renewal_at(0.5, T0 + 400 * DAY_S) == T0 + 75 * DAY_S


def pauses_s(validity: Validity | None, count: int) -> list[float]:
    """The pauses after failures in a row, each order made when it is due."""
    now, tries, found = T0, Tries(), []
    for _ in range(count):
        tries = tries.failed(now, "no", validity)
        found.append(tries.next_at - now)
        now = tries.next_at
    return found


@pytest.mark.parametrize(
    ("lifetime_s", "wanted"),
    [
        (None, [60, 600, 3600, 3600]),
        (DAY_S, [60, 600, 3600, 3600]),
        (6 * DAY_S, [60, 600, 6000, 6 * HOUR_S, 6 * HOUR_S]),
        (90 * DAY_S, [60, 600, 6000, 60000, DAY_S, DAY_S]),
    ],
)
def test_pauses_grow_to_a_day_and_are_shorter_for_what_lives_shortly(
    lifetime_s: float | None, wanted: list[float]
) -> None:
    """As Let's Encrypt advises. What has a day to live is tried each hour."""
    validity = None if lifetime_s is None else Validity(T0 - lifetime_s * 2 / 3, T0 + lifetime_s / 3)
    assert pauses_s(validity, len(wanted)) == wanted


@given(st.sampled_from((None, *LIFETIMES_S)))
def test_no_limit_of_failed_validations_is_met(lifetime_s: float | None) -> None:
    """Let's Encrypt takes five of a name in an hour."""
    validity = None if lifetime_s is None else Validity(T0, T0 + lifetime_s)
    at = T0
    instants = [at, *(at := at + pause_s for pause_s in pauses_s(validity, 20))]
    assert all(sum(1 for it in instants if begin <= it < begin + HOUR_S) <= 5 for begin in instants)


def test_a_server_that_names_a_time_is_left_alone_until_then() -> None:
    """Not for ever, whatever it says; and it does not shorten a pause."""
    tries = Tries().failed(T0, "too many", None, asked_s=7200.0)
    assert order_at(T0 + 7199, None, 0.0, tries) == T0 + 7200
    assert Tries().failed(T0, "x", None, asked_s=1e12).next_at == T0 + 8 * DAY_S
    assert Tries().failed(T0, "x", None, asked_s=1.0).next_at == T0 + 60


def test_a_clock_that_was_wrong_puts_nothing_off_for_long() -> None:
    """It was a year ahead when an order failed; an hour ahead, and the usual pause counts once it is near."""
    for ahead_s, due_s in (365 * DAY_S, 0.0), (HOUR_S, HOUR_S + 60):
        tries = Tries().failed(T0 + ahead_s, "no", None)
        assert order_at(T0, None, 0.0, tries) == T0 + due_s
        assert order_at(T0 + due_s, None, 0.0, tries) <= T0 + due_s, "the later it is looked, the nearer it comes"


def test_an_expired_certificate_is_tried_as_often_as_none() -> None:
    """Clients wait."""
    expired = Validity(T0 - 90 * DAY_S, T0 - 1)
    assert pauses_s(expired, 3) == [60, 600, 3600]
