"""Prometheus' text format, as far as it is needed here: a few series out of thousands. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(text: bytes, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """(name, labels, value) of every sample of these names; lines that cannot be read are left out."""
    wanted = tuple(name.encode() for name in names)
    for line in text.splitlines():
        if not line.startswith(wanted):
            continue
        labelled, _, rest = line.rpartition(b"}")
        name, _, labels = labelled.partition(b"{") if labelled else (line.partition(b" ")[0], b"", b"")
        numbers = (rest if labelled else line.partition(b" ")[2]).split()
        if name not in wanted or not numbers:
            continue
        try:
            value = float(numbers[0])
        except ValueError:
            continue
        if math.isfinite(value):
            found = {key.decode(): value.decode("utf-8", "replace") for key, value in _LABEL.findall(labels)}
            yield name.decode(), found, value


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
