"""`plan`."""

from __future__ import annotations

import argparse
import asyncio
import json

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.models import ReloadPlan
from gateway_sidecar.api.table import reload_lines
from gateway_sidecar.config import load_config
from gateway_sidecar.control.process.left_running import look_for_left
from gateway_sidecar.dry_run import dry_run
from gateway_sidecar.errors import DaemonAway


def plan(arguments: argparse.Namespace) -> int:
    """Asks the daemon; works it out where none runs."""
    settings = load_config(arguments.config)
    reload: ReloadPlan | None = None
    left = None
    try:
        found = Client(settings.run_dir / "admin.sock").plan()
        actions, reload, whose = found["actions"], found["reload"], "the running daemon"
    except DaemonAway:
        left = look_for_left(settings.run_dir, settings.state_dir)
        actions, whose = asyncio.run(dry_run(settings, left)), "a new daemon"
    if arguments.json:
        print(json.dumps({"by": whose, "actions": actions, "reload": reload}, indent=2))
        return 0
    if left is not None:
        print(f"no daemon runs; {left.prospect}" if left else "no daemon runs")
    if reload is not None:
        print("\n".join(reload_lines(reload)))
    print(f"{whose} would do:" if actions else f"{whose} would do nothing next")
    for action in actions:
        print(f"  {action['service']}/{action['replica']}: {action['action']}")
    return 0
