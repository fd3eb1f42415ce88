"""Defaults that `--help` shows and the commands use."""

from __future__ import annotations

from pathlib import Path

DEFAULT_CONFIG = Path("/etc/gateway-sidecar/gateway-sidecar.yaml")
STOP_S = 30.0
"""For how long `stop --all` lets requests in flight end."""
WAIT_S = 60.0
"""For how long `replica add --wait` waits."""
