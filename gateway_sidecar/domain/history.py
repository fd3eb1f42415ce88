"""The last hour of a service, as one number every ten seconds for each of eight measures. The time is passed in.

A ring has a fixed size: 360 points of eight measures take 12 KB for each service, however much happens.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

EVERY_S = 10.0  # 360 points are an hour: a plot has some hundred columns, and 12 KB hold it.
POINTS = 360
"""An hour."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured in ten seconds; None is not known.

    requests, errors: per second, of those that ended. in_flight, waiting: at the end. ttft, took: seconds to the first
        token, and to the end of the answer.
    """

    requests: float | None
    errors: float | None
    in_flight: float | None
    waiting: float | None
    ttft_p50: float | None
    ttft_p99: float | None
    took_p50: float | None
    took_p99: float | None


MEASURES = tuple(it.name for it in fields(Point))


class _Ring:
    """One service's numbers, oldest first; NaN is not known. Single precision: a plot has fewer than 1,000 steps."""

    def __init__(self) -> None:
        self._values = array("f", [math.nan] * (POINTS * len(MEASURES)))
        self._next = self.length = 0

    def add(self, point: Point) -> None:
        for number, value in enumerate(astuple(point)):
            self._values[number * POINTS + self._next] = math.nan if value is None else value
        self._next = (self._next + 1) % POINTS
        self.length = min(POINTS, self.length + 1)

    def column(self, number: int) -> list[float | None]:
        values = self._values[number * POINTS : (number + 1) * POINTS]
        ordered = values[self._next :] + values[: self._next]
        return [_shown(value) for value in ordered[POINTS - self.length :]]


def _shown(value: float) -> float | None:
    """Three digits are more than a plot shows."""
    return None if math.isnan(value) else float(f"{value:.3g}")


class History:
    """The last hour of all services. Points are taken of all at once, and those of a service end with the last one."""

    def __init__(self) -> None:
        self._rings: dict[str, _Ring] = {}
        self._at: deque[float] = deque(maxlen=POINTS)
        self._last: dict[str, list[float | None]] = {}
        self.taken = 0
        """How many points were taken so far."""

    def take(self, at_s: float, points: Mapping[str, Point]) -> None:
        """What all services that there are did. One that is not among them is forgotten."""
        for gone in self._rings.keys() - points.keys():
            del self._rings[gone]
        for name, point in points.items():
            self._rings.setdefault(name, _Ring()).add(point)
        self._last = {
            name: [None if it is None else _shown(it) for it in astuple(point)] for name, point in points.items()
        }
        self._at.append(round(at_s, 1))
        self.taken += 1

    @property
    def times(self) -> Sequence[float]:
        """When each point was taken, oldest first; a service that came later has fewer."""
        return tuple(self._at)

    def columns(self) -> dict[str, dict[str, list[float | None]]]:
        """Service -> measure -> its numbers, oldest first."""
        return {
            name: {measure: ring.column(number) for number, measure in enumerate(MEASURES)}
            for name, ring in self._rings.items()
        }

    @property
    def last(self) -> Mapping[str, list[float | None]]:
        """Service -> the numbers of the last point, in the order of MEASURES."""
        return self._last
