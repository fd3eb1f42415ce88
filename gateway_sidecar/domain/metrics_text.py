"""Prometheus' text format, as far as it is needed here: a few series out of thousands. Pure.

A page is not trusted: reading takes time and memory in proportion to its length, and what is found is bounded. Lines
are never split off but sought by their names, so that those of others cost nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

LONGEST_LINE = 16 * 1024
"""Bytes. What is longer is no sample."""
MOST_LABELS = 64
"""Of one sample. What has more is none."""
MOST_SAMPLES = 20_000
"""Of one name on one page: those of eight ranks of a thousand workers, or of a thousand histograms. 40 ms."""

_LABEL = re.compile(rb'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*+)="((?:[^"\\]++|\\.)*+)"[ \t]*,?')


def samples(text: bytes, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """(name, labels, value) of every sample of these names; lines that cannot be read are left out."""
    for name in names:
        wanted = name.encode()
        for number, line in enumerate(_lines(text, wanted)):
            if number >= MOST_SAMPLES:
                break
            found = _read(line[len(wanted) :])
            if found is not None:
                yield name, *found


def histogram(text: bytes, name: str) -> dict[float, float]:
    """Upper bound -> cumulative count, of all series of one histogram together; empty if there is none."""
    found: dict[float, float] = {}
    for _, labels, value in samples(text, (f"{name}_bucket",)):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue
        if not math.isnan(bound):
            found[bound] = found.get(bound, 0.0) + value
    return found


def _lines(text: bytes, start: bytes) -> Iterator[bytes]:
    """The lines that begin so, those of a length that a sample may have."""
    sought, at = b"\n" + start, 0
    while True:
        if text.startswith(start, at):
            end = text.find(b"\n", at, at + LONGEST_LINE)
            if end >= 0 or len(text) - at < LONGEST_LINE:
                yield text[at : end if end >= 0 else len(text)]
        at = text.find(sought, at) + 1
        if at == 0:
            return


def _read(rest: bytes) -> tuple[dict[str, str], float] | None:
    """What follows the name: labels, if there are any, and the value. None where it cannot be read."""
    labels: dict[str, str] = {}
    if rest.startswith(b"{"):
        at = 1
        for _ in range(MOST_LABELS):
            label = _LABEL.match(rest, at)
            if label is None:
                break
            labels[label[1].decode()] = label[2].decode("utf-8", "replace")
            at = label.end()
        if rest[at : at + 1] != b"}":
            return None
        rest = rest[at + 1 :]
    elif not rest.startswith((b" ", b"\t")):
        return None  # Another name, which begins like this one.
    numbers = rest.split(None, 1)
    try:
        value = float(numbers[0])
    except (IndexError, ValueError):
        return None
    return (labels, value) if math.isfinite(value) else None
