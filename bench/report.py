"""Rows of the report, their text and their JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: the full figures, or fewer rounds of them."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """The number of rounds."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    figure: its name for `--only`. case: which of the figure's measurements. `met` is None where it was not measured.
    numbers: everything behind it, for the JSON; times in ms where the name says so.
    """

    figure: str
    case: str
    bar: str
    floor: str
    ours: str
    verdict: str
    met: bool | None
    numbers: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def not_measured(cls, figure: str, reason: str) -> Row:
        """A figure that could not be had, and why."""
        return cls(figure, reason, "-", "-", "-", "not measured", None)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` % of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def median(values: Sequence[float]) -> float:
    """The value in the middle, or the mean of the two there."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def in_ms(seconds: float) -> str:
    """A duration as text."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def rounded_ms(values: Iterable[float]) -> list[float]:
    """Durations for the JSON."""
    return [round(value * 1000, 3) for value in values]


def table(rows: Sequence[Row]) -> str:
    """The report as text."""
    head = ("figure", "case", "bar", "floor", "ours", "verdict", "")
    lines = [head, *((r.figure, r.case, r.bar, r.floor, r.ours, r.verdict, _mark(r.met)) for r in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def as_json(rows: Sequence[Row], *, quick: bool, took_s: float) -> str:
    """The report for programs."""
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    load = [round(value, 2) for value in os.getloadavg()]
    content = {
        "quick": quick,
        "took_s": round(took_s, 1),
        "machine": machine,
        "load_average_after": load,
        "figures": [asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2)


def _mark(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "-"}[met]
