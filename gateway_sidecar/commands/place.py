"""Where the commands that ask a daemon find it, and what they ask for there."""

from __future__ import annotations

import argparse
import os
import sys
from urllib.parse import quote

from gateway_sidecar.api.client import Place, Remote, ask_daemon
from gateway_sidecar.config.places import find_places
from gateway_sidecar.errors import AdminError


def admin_of(arguments: argparse.Namespace) -> Place:
    """The admin API that is meant. Raises AdminError, ConfigError."""
    if arguments.admin is None:
        if any((arguments.cert, arguments.key, arguments.ca)):
            raise AdminError("--cert, --key and --ca belong to --admin: which daemon is meant?")
        return find_places(arguments.config).run_dir / "admin.sock"
    if None in (arguments.cert, arguments.key, arguments.ca):
        raise AdminError("--admin needs --cert, --key and --ca: the API listens with mutual TLS only")
    return Remote(arguments.admin, arguments.cert, arguments.key, arguments.ca)


def replica_target(service: str, replica: str) -> str:
    """The API's path for a replica."""
    return f"/v1/services/{quoted(service)}/replicas/{quoted(replica)}"


def quoted(name: str) -> str:
    """A name as a part of a path, whatever bytes it holds."""
    return quote(os.fsencode(name), safe="")


def warn_of_drain(place: Place, target: str, replica: str) -> None:
    """Says what nobody would answer without this replica, before anything is done to it. Raises AdminError."""
    code, answer = ask_daemon(place, "GET", f"{target}/drain")
    if code == 200:  # Otherwise the drain itself says what is wrong.
        for line in answer["missed"]:
            print(f"without {replica} nobody answers for {line}", file=sys.stderr, flush=True)
