"""`key add`, `key revoke` and `key list`."""

from __future__ import annotations

import argparse
import sys

from gateway_sidecar.frontend.keys import add_key, described, read_keys, revoke_key


def add(arguments: argparse.Namespace) -> int:
    """Makes a key."""
    given = sys.stdin.readline().strip() if arguments.stdin else None
    key = add_key(arguments.file, arguments.name, given, expires=arguments.expires)
    if not arguments.stdin:
        print(key)
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Removes a key."""
    revoke_key(arguments.file, arguments.name)
    print(f"{arguments.name} is revoked")
    return 0


def list_names(arguments: argparse.Namespace) -> int:
    """Prints the names."""
    for owner in sorted(read_keys(arguments.file).values()):
        print(described(owner))
    return 0
