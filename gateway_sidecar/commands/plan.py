"""`plan`."""

from __future__ import annotations

import argparse
import asyncio
import json

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.models import ReloadPlan
from gateway_sidecar.api.table import reload_lines
from gateway_sidecar.config import load_config
from gateway_sidecar.dry_run import dry_run
from gateway_sidecar.errors import AdminError


def plan(arguments: argparse.Namespace) -> int:
    """Asks the daemon; works it out where none runs."""
    settings = load_config(arguments.config)
    reload: ReloadPlan | None = None
    try:
        found = Client(settings.run_dir / "admin.sock").plan()
        actions, reload, whose = found["actions"], found["reload"], "the running daemon"
    except AdminError:
        actions, whose = asyncio.run(dry_run(settings)), "a fresh daemon"
    if arguments.json:
        print(json.dumps({"by": whose, "actions": actions, "reload": reload}, indent=2))
        return 0
    if reload is not None:
        print("\n".join(reload_lines(reload)))
    print(f"{whose} would do:" if actions else f"{whose} would do nothing: all is as it should be")
    for action in actions:
        print(f"  {action['service']}/{action['replica']}: {action['action']}")
    return 0
