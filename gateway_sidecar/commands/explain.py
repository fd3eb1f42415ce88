"""`explain`."""

from __future__ import annotations

import argparse
import json

from gateway_sidecar.api.explain_text import render_explained
from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.commands.screen import paint, width


def explain(arguments: argparse.Namespace) -> int:
    """Why a replica is where it is."""
    answer = admin_of(arguments).explain(arguments.service, arguments.replica)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    else:
        paint(render_explained(answer, width()))
    return 0
