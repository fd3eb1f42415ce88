"""`events`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.event_lines import event_line
from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.errors import AdminError, DaemonAway, DaemonUnready

_AGAIN_S = 1.0  # systemd starts a daemon again after 2 s (`RestartSec`).
_LAST = 50  # A screen of them.


def events(arguments: argparse.Namespace) -> int:
    """Prints the last events, and with `--follow` each one as it is logged."""
    client = admin_of(arguments)
    query = {"service": arguments.service, "replica": arguments.replica, "since": arguments.since}
    query["said"] = None if arguments.said or arguments.json else "0"
    last = arguments.last if arguments.last is not None else None if arguments.since else _LAST
    if not arguments.follow:
        answer = client.events(**query, last=last)
        for event in answer["events"]:
            _show(event, as_json=arguments.json)
        if not answer["events"] and not arguments.json:
            print("no events", file=sys.stderr)
        return 0
    _follow(client, {**query, "last": last}, as_json=arguments.json)
    return 0


def _follow(client: Client, query: dict[str, str | int | None], *, as_json: bool) -> None:
    """Until Ctrl-C. A daemon that ends may be started again: what it logs then comes next."""
    is_away = False
    after: int | None = None
    while True:
        try:
            with client.following(**{**query, "after": after}) as stream:
                is_away = False
                for event in stream:
                    if "error" in event and "event" not in event:
                        raise AdminError(str(event["error"]))
                    after = int(str(event["seq"]))
                    query = {**query, "last": None, "since": None}
                    _show(event, as_json=as_json)
        except (DaemonAway, DaemonUnready):
            if after is None and not is_away:
                raise
        if not is_away:
            print("-- the daemon has ended; waiting for the next one", file=sys.stderr, flush=True)
        is_away = True
        time.sleep(_AGAIN_S)


def _show(event: Mapping[str, object], *, as_json: bool) -> None:
    print(json.dumps(event, ensure_ascii=False) if as_json else event_line(event), flush=True)
