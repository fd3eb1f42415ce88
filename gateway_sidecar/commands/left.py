"""What an earlier daemon left running, where none runs."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.config.places import find_places
from gateway_sidecar.control.process.left_running import look_for_left


def left_beside(config: Path) -> str:
    """What serves on, for the end of a sentence; empty if nothing does. Raises ConfigError."""
    places = find_places(config)
    left = look_for_left(places.run_dir, places.state_dir)
    if not left:
        return ""
    said = left.prospect
    return f". {said[0].upper()}{said[1:]}"
