"""The last hour of each service: bounded, and what is not known is no zero."""

from __future__ import annotations

import sys
from dataclasses import replace

from gateway_sidecar.domain.history import EVERY_S, MEASURES, POINTS, History, Point, _Ring

QUIET = Point(0.0, 0.0, 0.0, 0.0, None, None, None, None)


def test_an_hour_is_kept_in_order_and_no_more() -> None:
    """The oldest points give way."""
    it = History()
    for number in range(POINTS + 5):
        it.take(number * EVERY_S, {"chat": replace(QUIET, requests=float(number))})
    numbers = it.columns()["chat"]["requests"]
    assert numbers == [float(number) for number in range(5, POINTS + 5)]
    assert it.times[0] == 5 * EVERY_S
    assert it.times[-1] - it.times[0] == 3600 - EVERY_S
    assert it.taken == POINTS + 5


def test_what_is_not_known_is_none() -> None:
    """A plot has a gap there."""
    it = History()
    it.take(0.0, {"chat": replace(QUIET, ttft_p50=0.12345)})
    it.take(10.0, {"chat": QUIET})
    columns = it.columns()["chat"]
    assert columns["ttft_p50"] == [0.123, None]
    assert columns["took_p99"] == [None, None]
    assert it.last["chat"] == [0.0, 0.0, 0.0, 0.0, None, None, None, None]
    assert tuple(columns) == MEASURES


def test_services_come_and_go() -> None:
    """One that comes later has fewer points, which end with the last one; one that has gone takes no memory."""
    it = History()
    it.take(0.0, {"chat": QUIET})
    it.take(10.0, {"chat": QUIET, "code": QUIET})
    assert len(it.columns()["code"]["requests"]) == 1
    it.take(20.0, {"code": QUIET})
    assert set(it.columns()) == {"code"}
    assert set(it.last) == {"code"}


def test_it_takes_as_much_memory_as_it_says() -> None:
    """12 KB for each service, whatever it has measured."""
    ring = _Ring()
    for number in range(2 * POINTS):
        ring.add(replace(QUIET, requests=number / 3))
    assert sys.getsizeof(ring._values) < 12_000
