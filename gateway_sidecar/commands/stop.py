"""`stop`."""

from __future__ import annotations

import argparse
import os
import select
from contextlib import suppress

from gateway_sidecar.api.client import Remote
from gateway_sidecar.commands.defaults import STOP_S
from gateway_sidecar.commands.place import admin_of
from gateway_sidecar.errors import DaemonAway


def stop(arguments: argparse.Namespace) -> int:
    """Ends the daemon; with `--all` what an earlier one left, too."""
    if arguments.timeout is not None and not arguments.all:
        arguments.misused("--timeout belongs to --all; give both, or neither")
    client = admin_of(arguments)
    is_here = not isinstance(client.place, Remote)
    timeout_s = STOP_S if arguments.timeout is None else arguments.timeout
    try:
        answer = client.stop(everything=arguments.all, timeout_s=timeout_s)
    except DaemonAway:
        if arguments.all and is_here:
            from gateway_sidecar.commands.end_left import end_left  # All of the daemon.

            if end_left(arguments.config, timeout_s):
                return 0
        raise
    if not is_here:
        print("it stops, with nginx and all routers" if arguments.all else "it stops; nginx and the routers go on")
        return 0
    with suppress(ProcessLookupError):
        daemon = os.pidfd_open(answer["pid"])
        select.select([daemon], [], [])
    print("stopped, with nginx and all routers" if arguments.all else "stopped; nginx and the routers go on")
    return 0
