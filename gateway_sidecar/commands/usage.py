"""`usage`: what clients have used, by key and model."""

from __future__ import annotations

import argparse
import csv
import json
import sys

from gateway_sidecar.api.table import render_usage
from gateway_sidecar.commands.place import admin_of

_COLUMNS = (
    *("frontend", "service", "key", "model", "requests", "refused", "failed", "aborted", "streams"),
    *("tokens_in", "tokens_out", "unknown"),
)


def usage(arguments: argparse.Namespace) -> int:
    """Prints it."""
    asked = {
        "since": arguments.since,
        "until": arguments.until,
        "service": arguments.service,
        "key": arguments.of_key,
        "model": arguments.model,
    }
    answer = admin_of(arguments).usage({name: value for name, value in asked.items() if value is not None})
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(answer["rows"])
    else:
        print(render_usage(answer))
    return 0
