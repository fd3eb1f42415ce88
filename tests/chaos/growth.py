"""Does something grow? Pure: from samples over time to a verdict for each series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP_SHARE = 0.25
"""This much of the run, from its beginning, is not judged: caches and pools fill."""
_FEWEST = 9


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much more the last third of a series may have than the first: the larger of the two. `most`: never beyond."""

    absolute: float
    share: float = 0.0
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One series: medians of its first and last third after the warm-up, a straight line's slope, and the verdict."""

    name: str
    first: float
    last: float
    most: float
    per_hour: float
    flat: bool
    reason: str = ""

    def __str__(self) -> str:
        verdict = "flat" if self.flat else f"GROWS: {self.reason}"
        return (
            f"{self.name:<28} first {self.first:>10.1f}  last {self.last:>10.1f}  most {self.most:>10.1f}"
            f"  {self.per_hour:>+11.1f} an hour  {verdict}"
        )


def judge(name: str, samples: Sequence[tuple[float, float]], tolerance: Tolerance) -> Judgement:
    """Judges samples of (seconds, value), oldest first. Too few of them are no proof of being flat."""
    most = max((value for _, value in samples), default=0.0)
    judged = after_warm_up(samples)
    if len(judged) < _FEWEST:
        return Judgement(name, 0.0, 0.0, most, 0.0, False, f"only {len(judged)} samples after the warm-up")
    third = len(judged) // 3
    first = median(value for _, value in judged[:third])
    last = median(value for _, value in judged[-third:])
    allowed = max(tolerance.absolute, tolerance.share * first)
    reason = ""
    if last - first > allowed:
        reason = f"{last - first:.1f} more at the end, {allowed:.1f} are tolerated"
    elif tolerance.most is not None and most > tolerance.most:
        reason = f"{most:.1f} at one time, {tolerance.most:.1f} are the most"
    return Judgement(name, first, last, most, slope(judged) * 3600, not reason, reason)


def after_warm_up(samples: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """The samples that are judged."""
    if not samples:
        return samples
    begins = samples[0][0] + WARM_UP_SHARE * (samples[-1][0] - samples[0][0])
    return [sample for sample in samples if sample[0] >= begins]


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares through the samples, per second; 0 where there is none."""
    count = len(samples)
    mean_t = sum(at for at, _ in samples) / count
    mean_v = sum(value for _, value in samples) / count
    spread = sum((at - mean_t) ** 2 for at, _ in samples)
    if spread == 0:
        return 0.0
    return sum((at - mean_t) * (value - mean_v) for at, value in samples) / spread


def judge_all(
    series: Mapping[str, Sequence[tuple[float, float]]], tolerances: Mapping[str, Tolerance]
) -> list[Judgement]:
    """Every series that has a tolerance, in that order; one that was never sampled does not pass."""
    return [judge(name, series.get(name, ()), tolerance) for name, tolerance in tolerances.items()]
