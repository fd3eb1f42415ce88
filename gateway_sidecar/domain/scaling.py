"""How many replicas a service, or one role of it, should have. Pure: what is seen and the time are passed in.

The rules are those of Kubernetes' horizontal autoscaler where it has one: a tolerance around the target within which
nothing changes, and a time for which a change must have been wanted (`up_after_s`, `down_after_s`: the least of the
wishes of that time goes up, the greatest goes down). Unknown is not zero: a metric that is missing changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

_ALL_BUT_FEW = 0.95
"""Streams that end while a source is read are missing for a moment."""

TOLERANCE = 0.1  # As Kubernetes' HorizontalPodAutoscaler has by default.


class Metric(StrEnum):
    """What is held at its target: a load for each replica, or a latency."""

    RPS = "rps"
    CONCURRENCY = "concurrency"
    TTFT = "ttft"
    ITL = "itl"

    @property
    def is_latency(self) -> bool:
        """Whether it is a time that more replicas make shorter, rather than a load that they share."""
        return self in (Metric.TTFT, Metric.ITL)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted. `target`: requests per second or at once for each replica; seconds for a latency."""

    metric: Metric
    target: float
    least: int
    most: int
    up_after_s: float = 0.0
    down_after_s: float = 300.0
    idle_after_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is observed of one role.

    value: all of the load, or the latency; None where it is not known.
    share: how many of the requests a latency is of, from 0 to 1; None where that is not known.
    serving: replicas that get requests. coming: those that load or are being registered.
    waiting: requests that wait for a replica.
    idle: nothing came, nothing is in flight and nothing waits; None where that is not known.
    """

    value: float | None
    serving: int
    coming: int = 0
    waiting: int = 0
    idle: bool | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Scaler:
    """What has to be remembered from one recommendation to the next. `wishes`: (when, how many)."""

    desired: int | None = None
    wishes: tuple[tuple[float, int], ...] = ()
    idle_since_s: float | None = None
    reason: str = ""


def recommend(policy: Policy, before: Scaler, seen: Seen, now_s: float) -> Scaler:
    """The next recommendation: `desired` and its `reason`."""
    there = seen.serving + seen.coming
    last = before.desired if before.desired is not None else there
    # Whoever was there when we began was wanted by somebody.
    wishes = before.wishes or ((now_s, there),)
    idle_since_s = None if not seen.idle else (now_s if before.idle_since_s is None else before.idle_since_s)
    wish, reason = _wish(policy, seen, last)
    is_called = not seen.serving and (seen.waiting > 0 or seen.idle is False)
    if is_called:
        wish = max(wish, 1)
        wait = f"{seen.waiting} request{'s wait' if seen.waiting != 1 else ' waits'}"
        reason = wait if seen.waiting else "requests are refused"
        reason += " and no replica serves"
    least = policy.least
    if least == 0 and (idle_since_s is None or now_s - idle_since_s < policy.idle_after_s) and (last or is_called):
        least = 1  # The last one goes only after `idle_after_s` without a request.
    bounded = min(max(wish, least), policy.most)
    horizon_s = max(policy.up_after_s, policy.down_after_s)
    wishes = (*((at, n) for at, n in wishes if at > now_s - horizon_s), (now_s, bounded))
    if policy.least == 0 and idle_since_s is not None and now_s - idle_since_s >= policy.idle_after_s:
        return Scaler(0, ((now_s, 0),), idle_since_s, f"no request for {now_s - idle_since_s:.0f} s")
    desired, held = _decide(policy, wishes, last, now_s)
    if is_called and desired == 0:
        desired, held = bounded, ""  # From zero on demand: nothing else is waited for.
    within = min(max(desired, policy.least), policy.most)
    if bounded != wish:
        reason += f"; wanted {wish}, {'min' if bounded > wish else 'max'} is {bounded}"
    return Scaler(within, wishes, idle_since_s, reason + held)


def _decide(policy: Policy, wishes: tuple[tuple[float, int], ...], last: int, now_s: float) -> tuple[int, str]:
    """Up to what was wished all through `up_after_s`, down to what was wished all through `down_after_s`."""
    *earlier, (_, wish) = wishes
    up = min([wish, *(n for at, n in earlier if at > now_s - policy.up_after_s)])
    down = max([wish, *(n for at, n in earlier if at > now_s - policy.down_after_s)])
    if last < up:
        return up, "" if up == wish else f"; {wish} not wanted for {policy.up_after_s:g} s yet"
    if last > down:
        return down, "" if down == wish else f"; {wish} not wanted for {policy.down_after_s:g} s yet"
    after_s = policy.up_after_s if wish > last else policy.down_after_s
    return last, "" if wish == last else f"; {wish} not wanted for {after_s:g} s yet"


def _wish(policy: Policy, seen: Seen, last: int) -> tuple[int, str]:
    """How many there would be if nothing else counted, and why."""
    name, target = policy.metric.value, policy.target
    if seen.idle:
        return policy.least, "no requests"
    if seen.value is None:
        return last, f"{name} is not known; nothing changes"
    if policy.metric.is_latency:
        return _wish_for_latency(policy, seen, last)
    said = f"{name} {seen.value:.4g}, target {target:g} for each"
    ratio = seen.value / target
    if last > 0 and abs(ratio / last - 1) <= TOLERANCE:
        return last, f"{said}: within tolerance"
    return math.ceil(ratio - 1e-9), said


def _wish_for_latency(policy: Policy, seen: Seen, last: int) -> tuple[int, str]:
    assert seen.value is not None
    some = "" if seen.share is None or seen.share > _ALL_BUT_FEW else f" of {seen.share:.0%} of the requests"
    said = f"{policy.metric.value} p90 {seen.value:.4g} s{some}, target {policy.target:g} s"
    if seen.serving == 0:
        return last, f"{said}; no replica serves, nothing changes"
    ratio = seen.value / policy.target
    if abs(ratio - 1) <= TOLERANCE:
        return seen.serving, f"{said}: within tolerance"
    # A latency does not grow in proportion as replicas go: down one at a time.
    return max(math.ceil(seen.serving * ratio - 1e-9), seen.serving - 1), said


def forget_wishes(scaler: Scaler) -> Scaler:
    """The same recommendation under a policy that has changed: earlier wishes followed the old one."""
    return replace(scaler, wishes=())
