"""`usage`: what clients have used, by key and model."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping

from gateway_sidecar.api.table import render_fleet_usage, render_usage
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
    asked = {name: value for name, value in asked.items() if value is not None}
    if arguments.fleet:
        return _of_fleet(arguments, asked)
    answer = admin_of(arguments).usage(asked)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(answer["rows"])
    else:
        print(render_usage(answer))
    return 0


def _of_fleet(arguments: argparse.Namespace, asked: Mapping[str, str]) -> int:
    """Prints what all gateways have counted."""
    if arguments.csv or asked.keys() & {"since", "until", "model"}:
        arguments.misused("--fleet is about this day and month; leave --since, --until, --model and --csv out")
    answer = admin_of(arguments).fleet_usage()
    answer["rows"] = [
        it
        for it in answer["rows"]
        if asked.get("service", it["service"]) == it["service"] and asked.get("key", it["key"]) == it["key"]
    ]
    print(json.dumps(answer, indent=2) if arguments.json else render_fleet_usage(answer))
    return 0
