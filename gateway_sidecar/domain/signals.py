"""What an autoscaler has to know of a service, over windows of time. The time is passed in, in seconds that only grow.

Three kinds of measure: requests as they end, counted by the second (`Traffic`); counters and histograms that others
export and that are read now and then (`Growth`); and numbers that stand for a moment (`Level`). What was not
measured is None, never zero.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from gateway_sidecar.domain.model import WorkerType

WINDOWS_S = (30, 60, 300)
"""A choice: a burst, the minute that `status` shows, and what somebody decides on who looks now and then."""
QUANTILES = (0.5, 0.9, 0.99)
"""A choice: the middle, and what slow requests take."""

_LOW_S = 0.001  # A choice: no first token comes sooner.
_FACTOR = 1.1  # A quantile is off by a tenth of itself at the most, and 160 buckets reach an hour.
_PER_BUCKET = math.log(_FACTOR)
_LAST_BUCKET = 160
"""Its upper bound is above an hour; what takes longer counts as that."""

K = TypeVar("K", bound=Hashable)


DIVERTED = 399
"""No status of HTTP: nginx tells it of a request that a shared address gave to another service."""


class Outcome(StrEnum):
    """What became of a request, as its client saw it. `diverted`: another service got it."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    CLIENT_LEFT = "client_left"
    ERROR = "error"
    DIVERTED = "diverted"

    @classmethod
    def of(cls, status: int) -> Outcome:
        """Of nginx's status; 499 is its word for a client that did not wait for the end."""
        if status >= 500:
            return cls.ERROR
        if status == 499:
            return cls.CLIENT_LEFT
        if status == DIVERTED:
            return cls.DIVERTED
        return cls.CLIENT_ERROR if status >= 400 else cls.OK


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """One request's end.

    first_s: how long the first event of a streamed answer took; None for an answer in one piece.
    is_whole: whether the client got all of it. A stream that it left, or that broke off, has status 200 too.
    worker: the URL of the worker that answered, as the router says it; anything else where it does not.
    """

    service: str
    status: int
    took_s: float
    first_s: float | None = None
    worker: str = "-"
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles in seconds, out of `samples` observations."""

    p50: float
    p90: float
    p99: float
    samples: int


@dataclass(frozen=True, slots=True)
class TrafficWindow:
    """What ended within a window.

    covered_s: how much of it was watched.
    first: how long streams took to their first event: of each role, and of all under None.
    """

    covered_s: float
    outcomes: Mapping[Outcome, int]
    took: Latency | None
    first: Mapping[WorkerType | None, Latency]

    @property
    def requests(self) -> int:
        """All that ended, however."""
        return sum(self.outcomes.values())

    @property
    def rps(self) -> float | None:
        """Requests per second; None where too little was watched to say."""
        return None if self.covered_s < 1 else self.requests / self.covered_s

    @property
    def errors_per_s(self) -> float | None:
        """Answers of 500 and more per second."""
        return None if self.covered_s < 1 else self.outcomes.get(Outcome.ERROR, 0) / self.covered_s


@dataclass(frozen=True, slots=True)
class Tally:
    """What ended within a window, counted so that it can be added to what others counted.

    took, first: as in `TrafficWindow`, but bucket -> observations, in buckets that are the same everywhere.
    """

    covered_s: float
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    took: Mapping[int, int] = field(default_factory=dict)
    first: Mapping[WorkerType | None, Mapping[int, int]] = field(default_factory=dict)

    def window(self) -> TrafficWindow:
        """What it comes to."""
        firsts = {role: told for role, counts in self.first.items() if (told := latency_in([counts])) is not None}
        return TrafficWindow(self.covered_s, self.outcomes, latency_in([self.took]), firsts)


@dataclass(slots=True)
class _Second:
    at: int
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    took: dict[int, int] = field(default_factory=dict)
    first: dict[WorkerType | None, dict[int, int]] = field(default_factory=dict)


def _count(buckets: dict[int, int], seconds: float) -> None:
    """Counts one observation. Buckets are numbered, and each is a tenth wider than the one before."""
    index = 0 if seconds <= _LOW_S else min(_LAST_BUCKET, math.ceil(math.log(seconds / _LOW_S) / _PER_BUCKET))
    buckets[index] = buckets.get(index, 0) + 1


def _merge(into: dict[K, int], more: Mapping[K, int]) -> None:
    for key, count in more.items():
        into[key] = into.get(key, 0) + count


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which this share lies; interpolated within a bucket, as Prometheus does it.

    `buckets`: upper bound -> observations in the bucket (not cumulative). Beyond the last finite bound nothing is
    known: that bound is the answer. None without observations.
    """
    total = sum(buckets.values())
    if total <= 0:
        return None
    wanted, seen, lower = share * total, 0.0, 0.0
    for upper in sorted(buckets):
        count = buckets[upper]
        if count > 0 and seen + count >= wanted:
            if math.isinf(upper):
                return lower
            return lower + (upper - lower) * max(0.0, wanted - seen) / count
        seen += count
        if not math.isinf(upper):
            lower = upper
    return lower


def latency_of(buckets: Mapping[float, float]) -> Latency | None:
    """The quantiles of a histogram; None without observations."""
    p50, p90, p99 = (quantile(buckets, share) for share in QUANTILES)
    if p50 is None or p90 is None or p99 is None:
        return None
    return Latency(p50, p90, p99, round(sum(buckets.values())))


def latency_in(tallies: Iterable[Mapping[int, int]]) -> Latency | None:
    """The quantiles of all that these count together, by buckets of a `Tally`; None without observations."""
    counts: dict[int, int] = {}
    for tally in tallies:
        _merge(counts, tally)
    buckets: dict[float, float] = {}
    for index, count in counts.items():
        # Both bounds, so that an empty neighbour does not stretch the bucket.
        buckets.setdefault(_LOW_S * _FACTOR ** (index - 1) if index else 0.0, 0.0)
        buckets[_LOW_S * _FACTOR**index] = count
    return latency_of(buckets)


class Traffic:
    """A service's requests as they end. Buckets grow by a tenth, so a quantile is right to within a tenth."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._seconds: deque[_Second] = deque()

    def record(self, now_s: float, end: RequestEnd, roles: Iterable[WorkerType] = ()) -> None:
        """One request has ended, which workers of these roles answered."""
        at = int(now_s)
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(_Second(at))
            while self._seconds[0].at <= at - WINDOWS_S[-1]:
                self._seconds.popleft()
        second = self._seconds[-1]
        outcome = Outcome.of(end.status)
        second.outcomes[outcome] = second.outcomes.get(outcome, 0) + 1
        if outcome is Outcome.OK:
            _count(second.took, end.took_s)
            if end.first_s is not None:
                for role in (None, *roles):
                    _count(second.first.setdefault(role, {}), end.first_s)

    def windows(self, now_s: float, lengths_s: Iterable[int] = WINDOWS_S) -> dict[int, TrafficWindow]:
        """Windows that end now, by their lengths in seconds, the shortest first."""
        return {window_s: tally.window() for window_s, tally in self.tallies(now_s, lengths_s).items()}

    def tallies(self, now_s: float, lengths_s: Iterable[int] = WINDOWS_S) -> dict[int, Tally]:
        """The same, as it can be added up."""
        outcomes: dict[Outcome, int] = {}
        took: dict[int, int] = {}
        first: dict[WorkerType | None, dict[int, int]] = {}
        found = {}
        waiting = list(self._seconds)
        for window_s in lengths_s:
            begin = int(now_s) - window_s + 1
            while waiting and waiting[-1].at >= begin:
                second = waiting.pop()
                _merge(outcomes, second.outcomes)
                _merge(took, second.took)
                for role, counts in second.first.items():
                    _merge(first.setdefault(role, {}), counts)
            covered_s = max(0.0, min(now_s - begin, now_s - self._began_s))
            firsts = {role: dict(counts) for role, counts in first.items()}
            found[window_s] = Tally(covered_s, dict(outcomes), dict(took), firsts)
        return found


@dataclass(frozen=True, slots=True)
class _Step:
    since_s: float
    at_s: float
    growth: Mapping[float, float]


class Growth:
    """How much counters grew; a process that restarts or goes does no harm. The first reading of a source is only its
    beginning. Keys tell the counters apart, such as a histogram's upper bounds.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[float, Mapping[float, float]]] = {}
        self._steps: deque[_Step] = deque()

    def take(self, now_s: float, source: Hashable, counters: Mapping[float, float]) -> None:
        """What a source says now."""
        last = self._last.get(source)
        self._last[source] = now_s, dict(counters)
        if last is None:
            return
        since_s, before = last
        # One that fell began anew: what it shows now has all come since.
        restarted = any(value < before.get(key, 0.0) for key, value in counters.items())
        growth = {key: value - (0.0 if restarted else before.get(key, 0.0)) for key, value in counters.items()}
        self._steps.append(_Step(since_s, now_s, growth))
        while self._steps[0].at_s <= now_s - WINDOWS_S[-1]:
            self._steps.popleft()

    def keep_only(self, sources: Container[Hashable]) -> None:
        """Forgets where the others stood; what they counted so far still counts."""
        for gone in [source for source in self._last if source not in sources]:
            del self._last[gone]

    def within(self, now_s: float, window_s: float) -> list[Mapping[float, float]]:
        """How much the counters of one source grew, each time that they were read within the window."""
        return [step.growth for step in self._steps if step.at_s > now_s - window_s]

    def rate(self, now_s: float, window_s: float) -> float | None:
        """The growth of all counters per second within the window; None where it is not known."""
        steps = [step for step in self._steps if step.at_s > now_s - window_s]
        if not steps:
            return None
        covered_s = max(step.at_s for step in steps) - min(step.since_s for step in steps)
        return sum(sum(step.growth.values()) for step in steps) / covered_s if covered_s > 0 else None


def latency_over(growths: Iterable[Growth], now_s: float, window_s: float) -> Latency | None:
    """Of histograms whose keys are upper bounds and whose counters are cumulative, as Prometheus has them."""
    return latency_of(buckets_over(growths, now_s, window_s))


def buckets_over(growths: Iterable[Growth], now_s: float, window_s: float) -> dict[float, float]:
    """Upper bound -> observations in the bucket. Each source has bounds of its own, as engines of several makes do."""
    buckets: dict[float, float] = {}
    for step in (step for growth in growths for step in growth.within(now_s, window_s)):
        below = 0.0
        for bound in sorted(step):
            buckets[bound] = buckets.get(bound, 0.0) + max(0.0, step[bound] - below)
            below = max(below, step[bound])
    return buckets


class Level:
    """A number that stands for a moment, such as requests in flight: its latest value and its mean over a window."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque()

    def take(self, now_s: float, value: float) -> None:
        """What it is now."""
        self._readings.append((now_s, value))
        while self._readings[0][0] <= now_s - WINDOWS_S[-1]:
            self._readings.popleft()

    def latest(self, now_s: float, most_age_s: float) -> float | None:
        """The last reading, unless it is too old to say anything of now."""
        if not self._readings or self._readings[-1][0] < now_s - most_age_s:
            return None
        return self._readings[-1][1]

    def mean(self, now_s: float, window_s: float) -> float | None:
        """The mean of the readings within the window; None if there are none."""
        values = [value for at_s, value in self._readings if at_s > now_s - window_s]
        return sum(values) / len(values) if values else None
