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
    return f". An earlier one left {left}: `gateway-sidecar run` takes that up, `gateway-sidecar stop --all` ends it"
