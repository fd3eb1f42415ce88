"""Recommendations for load traces with known answers, and laws that hold for any trace."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.domain.scaling import Metric, Policy, Scaler, Seen, forget_wishes, recommend
from gateway_sidecar.domain.signals import RequestEnd, Traffic

STEP_S = 5
RPS = Policy(Metric.RPS, 10.0, 1, 20)


def run(
    policy: Policy,
    load: Callable[[float], float | None],
    for_s: int,
    *,
    serving: int = 1,
    obeyed_after_s: float = 30.0,
    idle: Callable[[float], bool | None] | None = None,
    waiting: Callable[[float, int], int] = lambda _at, _serving: 0,
) -> list[int]:
    """The recommendation every five seconds, each of them followed after a while, as an autoscaler would."""
    scaler = Scaler()
    asked: list[tuple[int, int]] = []
    desired: list[int] = []
    for at in range(0, for_s, STEP_S):
        for since, count in asked:
            if at - since >= obeyed_after_s:
                serving = count
        value = load(at)
        is_idle = idle(at) if idle else (None if value is None else value == 0)
        seen = Seen(value, serving, waiting=waiting(at, serving), idle=is_idle)
        scaler = recommend(policy, scaler, seen, float(at))
        assert scaler.desired is not None
        assert scaler.reason
        if not asked or asked[-1][1] != scaler.desired:
            asked.append((at, scaler.desired))
        desired.append(scaler.desired)
    return desired


def changes(desired: list[int]) -> list[int]:
    """Each new value, in order."""
    return desired[:1] + [after for before, after in pairwise(desired) if after != before]


def test_step() -> None:
    """10 a second, then 75: eight replicas, at once and for good."""
    desired = run(RPS, lambda at: 10.0 if at < 100 else 75.0, 900)
    assert changes(desired) == [1, 8]
    assert desired[100 // STEP_S] == 8


def test_step_down_waits_its_time() -> None:
    """75 a second, then 10: eight replicas for `down_after_s` more, then one."""
    desired = run(RPS, lambda at: 75.0 if at < 300 else 10.0, 1200)
    assert changes(desired) == [8, 1]
    went = next(i for i in range(1, len(desired)) if desired[i] < desired[i - 1]) * STEP_S
    assert 300 + RPS.down_after_s - STEP_S <= went <= 300 + RPS.down_after_s + STEP_S


def test_ramp() -> None:
    """From 10 to 100 a second in ten minutes: up step by step, never down, never a tenth too few for the load."""

    def load(at: float) -> float:
        return 10 + min(at, 600) * 0.15

    desired = run(RPS, load, 900)
    assert desired == sorted(desired)
    assert desired[-1] == 10
    for index, count in enumerate(desired):
        assert count * 10 * 1.101 >= load(index * STEP_S)


def test_spike() -> None:
    """Ten seconds of 200 a second: up to the maximum at once, one step down after `down_after_s`."""
    desired = run(RPS, lambda at: 200.0 if 100 <= at < 110 else 10.0, 900)
    assert changes(desired) == [1, 20, 1]


def test_spike_that_is_not_to_be_followed() -> None:
    """With `up_after_s` a spike that is shorter changes nothing."""
    policy = Policy(Metric.RPS, 10.0, 1, 20, up_after_s=30)
    assert changes(run(policy, lambda at: 200.0 if 100 <= at < 110 else 10.0, 900)) == [1]
    assert changes(run(policy, lambda at: 200.0 if at >= 100 else 10.0, 900)) == [1, 20]


def test_zero_and_back() -> None:
    """No request for `idle_after_s`: none. A request that waits: one, at once."""
    policy = Policy(Metric.RPS, 10.0, 0, 20, idle_after_s=600)

    def load(at: float) -> float:
        return 30.0 if at < 100 or at >= 1500 else 0.0

    desired = run(policy, load, 1800, serving=3, waiting=lambda at, serving: 5 if at >= 1500 and serving == 0 else 0)
    assert changes(desired) == [3, 1, 0, 3]
    assert desired[695 // STEP_S] == 1, "ten minutes after the last request at the earliest"
    assert desired[710 // STEP_S] == 0
    assert desired[1500 // STEP_S] >= 1, "at once"


def test_waking_does_not_wait_for_up_after_s() -> None:
    """A request is waiting: no evidence is missing."""
    policy = Policy(Metric.TTFT, 0.5, 0, 4, up_after_s=60)
    scaler = recommend(policy, Scaler(), Seen(None, 0, idle=True), 0.0)
    assert scaler.desired == 0
    scaler = recommend(policy, scaler, Seen(None, 0, waiting=1, idle=False), 5.0)
    assert scaler.desired == 1
    assert scaler.reason == "1 request waits and no replica serves"
    scaler = recommend(policy, scaler, Seen(None, 0, coming=1, waiting=1, idle=False), 10.0)
    assert scaler.desired == 1, "while it loads"


def test_refused_requests_wake_as_well() -> None:
    """A service that lets nobody wait (`hold.max_waiting: 0`) has nothing in flight and nothing waiting, ever."""
    policy = Policy(Metric.CONCURRENCY, 4, 0, 4)
    scaler = recommend(policy, Scaler(), Seen(0.0, 0, idle=True), 0.0)
    assert scaler.desired == 0
    scaler = recommend(policy, scaler, Seen(0.0, 0, idle=False), 5.0)
    assert (scaler.desired, scaler.reason) == (1, "requests are refused and no replica serves")


def test_never_to_zero_unless_it_is_allowed() -> None:
    """`min` is 1: an hour without a request leaves one."""
    assert run(RPS, lambda _: 0.0, 3600, serving=4)[-1] == 1


def arrivals(rate: float, for_s: int, chance: random.Random) -> Iterator[float]:
    """A Poisson process."""
    at = 0.0
    while (at := at + chance.expovariate(rate)) < for_s:
        yield at


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [23.0, 25.0, 47.0])
def test_noise_does_not_flap(seed: int, rate: float) -> None:
    """Minutes of random arrivals around a steady rate, through the real windows: not one change down."""
    traffic, values = Traffic(0.0), {}
    due = list(arrivals(rate, 600, random.Random(seed)))[::-1]
    for at in range(0, 600, STEP_S):
        while due and due[-1] <= at:
            traffic.record(due.pop(), RequestEnd("chat", 200, 0.1))
        values[at] = traffic.windows(float(at))[60].rps
    desired = run(RPS, lambda at: values[int(at)], 600, serving=math.ceil(rate / 10))
    settled = desired[120 // STEP_S :]
    assert len(changes(settled)) <= 2, changes(settled)
    assert settled == sorted(settled)
    assert settled[-1] == math.ceil(rate / 10)


def test_noise_around_a_boundary_does_not_flap() -> None:
    """Exactly as much as three replicas bear, a tenth more or less each time."""
    chance = random.Random(3)
    desired = run(RPS, lambda _: 30.0 * chance.uniform(0.91, 1.09), 3600, serving=3)
    assert changes(desired) == [3]


def test_missing_metrics_keep_what_is() -> None:
    """Unknown is not zero: five minutes without a metric in the middle of a load change nothing."""
    desired = run(RPS, lambda at: None if 300 <= at < 900 else 75.0, 1500)
    assert changes(desired) == [8]
    silent = run(Policy(Metric.TTFT, 0.5, 0, 9), lambda _: None, 3600, serving=4)
    assert changes(silent) == [4]


def test_latency_grows_with_what_it_exceeds() -> None:
    """Twice the target with three replicas: six, and no more while those three still load."""
    policy = Policy(Metric.TTFT, 0.5, 1, 20)
    scaler = Scaler()
    for at in range(0, 100, STEP_S):
        scaler = recommend(policy, scaler, Seen(1.0, 3, coming=0 if at < 5 else 3, idle=False), float(at))
        assert scaler.desired == 6
    scaler = recommend(policy, scaler, Seen(0.52, 6, idle=False), 100.0)
    assert scaler.desired == 6
    assert "within tolerance" in scaler.reason


def test_latency_goes_down_one_at_a_time() -> None:
    """A tenth of the target with ten replicas does not mean that one is enough."""
    policy = Policy(Metric.ITL, 0.1, 1, 20, down_after_s=60)
    desired = run(policy, lambda _: 0.01, 300, serving=10, idle=lambda _: False)
    assert changes(desired) == list(range(10, desired[-1] - 1, -1))
    assert desired[-1] >= 7


def test_the_reason_says_what_holds() -> None:
    """In words: the measure, the bound, the wait."""
    scaler = recommend(RPS, Scaler(), Seen(500.0, 2, idle=False), 0.0)
    assert (scaler.desired, scaler.reason) == (20, "rps 500, target 10 for each; wanted 50, max is 20")
    scaler = recommend(RPS, scaler, Seen(10.0, 20, idle=False), 5.0)
    assert (scaler.desired, scaler.reason) == (20, "rps 10, target 10 for each; 1 not wanted for 300 s yet")
    scaler = recommend(RPS, scaler, Seen(None, 20), 10.0)
    assert (scaler.desired, scaler.reason) == (20, "rps is not known; nothing changes")


def test_a_new_policy_forgets_the_wishes_of_the_old_one() -> None:
    """A reload that raises the target may go down without waiting for wishes of another policy."""
    scaler = recommend(RPS, Scaler(), Seen(100.0, 10, idle=False), 0.0)
    assert forget_wishes(scaler).wishes == ()
    assert forget_wishes(scaler).desired == 10


seen = st.builds(
    Seen,
    st.none() | st.floats(0, 1000),
    st.integers(0, 30),
    st.integers(0, 5),
    st.integers(0, 10),
    st.none() | st.booleans(),
)
policies = st.builds(
    lambda metric, target, bounds, up, down, idle: Policy(metric, target, min(bounds), max(bounds), up, down, idle),
    st.sampled_from(Metric),
    st.floats(0.01, 100),
    st.tuples(st.integers(0, 10), st.integers(1, 20)),
    st.floats(0, 300),
    st.floats(0, 600),
    st.floats(0, 600),
)


@given(policies, st.lists(st.tuples(st.floats(0.1, 60), seen), min_size=1, max_size=60))
def test_whatever_is_seen_the_bounds_hold(policy: Policy, trace: list[tuple[float, Seen]]) -> None:
    """Always between min and max; to zero only after `idle_after_s` of known idleness; memory is bounded."""
    scaler, now, idle_for = Scaler(), 0.0, 0.0
    for pause, what in trace:
        now += pause
        idle_for = idle_for + pause if what.idle and scaler.idle_since_s is not None else 0.0
        before = scaler
        scaler = recommend(policy, scaler, what, now)
        assert scaler.desired is not None
        assert policy.least <= scaler.desired <= policy.most
        if scaler.desired == 0 and (before.desired or 0) > 0:
            assert what.idle
            assert idle_for >= policy.idle_after_s - 1e-6
        if (what.waiting or what.idle is False) and what.serving == 0 and not what.idle and policy.most:
            assert scaler.desired >= 1
        assert all(at > now - max(policy.up_after_s, policy.down_after_s) or at == now for at, _ in scaler.wishes)


@given(policies, st.lists(st.tuples(st.floats(0.1, 60), seen), min_size=1, max_size=30), st.integers(0, 30))
def test_unknown_moves_nothing(policy: Policy, trace: list[tuple[float, Seen]], serving: int) -> None:
    """After any past, a look that shows nothing at all does not go below what was recommended or there."""
    scaler, now = Scaler(), 0.0
    for pause, what in trace:
        now += pause
        scaler = recommend(policy, scaler, what, now)
    after = recommend(policy, scaler, Seen(None, serving), now + 1)
    assert after.desired is not None
    assert scaler.desired is not None
    assert after.desired >= min(scaler.desired, policy.most)


@pytest.mark.parametrize(
    ("share", "said"), [(0.3, "ttft p90 2 s of 30% of the requests, target 1 s"), (0.99, "ttft p90 2 s, target 1 s")]
)
def test_latency_of_a_part_of_the_requests_says_so(share: float, said: str) -> None:
    """Whoever follows the recommendation learns that it leaves the others out."""
    seen = Seen(2.0, serving=2, share=share)
    assert recommend(Policy(Metric.TTFT, 1.0, 1, 9), Scaler(), seen, 100.0).reason.startswith(said)
