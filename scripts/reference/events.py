"""docs/reference/events.md, from the registry of events."""

from __future__ import annotations

from gateway_sidecar.telemetry.events import GROUPS
from scripts.reference.tables import table

HEAD = ("event", "level", "means", "do")


def events() -> str:
    """A table for each group."""
    parts = []
    for title, group in GROUPS.items():
        rows = [(f"`{name}`", ", ".join(it.levels), it.meaning, it.cure) for name, it in group.items()]
        parts.append(f"### {title}\n\n{table(HEAD, rows)}")
    return "\n\n".join(parts)
