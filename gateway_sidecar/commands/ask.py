"""The commands that only send a request to the running daemon."""

from __future__ import annotations

import argparse

from gateway_sidecar.api.table import reload_lines
from gateway_sidecar.commands.place import admin_of, gateway_lines, unanswered_lines, warn_of_drain
from gateway_sidecar.errors import AdminError, ConfigError


def drain(arguments: argparse.Namespace) -> int:
    """Returns when the replica's engine may be stopped."""
    client, service, replica = admin_of(arguments), arguments.service, arguments.replica
    warn_of_drain(client, service, replica)
    answer = client.drain(service, replica, timeout_s=arguments.timeout)
    for line in unanswered_lines(answer["unanswered"], replica):
        print(line)
    took_s = answer["took_s"]
    if not answer["drained"]:
        raise AdminError(
            f"{replica} is not safe to stop after {took_s:.0f} s: {answer['reason']}; "
            "it stays out of rotation: drain it again to wait longer, or stop the engine and lose what is in flight"
        )
    for line in gateway_lines(answer):
        print(line)
    print(f"{replica} is drained after {took_s:.1f} s: safe to stop")
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Ends a drain."""
    admin_of(arguments).resume(arguments.service, arguments.replica)
    print(f"{arguments.replica} goes back into rotation")
    return 0


def router(arguments: argparse.Namespace) -> int:
    """Replaces a router."""
    answer = admin_of(arguments).restart_router(arguments.service)
    print(f"{arguments.service} has a new router (pid {answer['pid']}) after {answer['took_s']:.1f} s")
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """Has the configuration read again, or shows what that would change."""
    if arguments.dry_run:
        found = admin_of(arguments).plan()["reload"]
        if found["problems"]:
            raise ConfigError(found["problems"])
        for line in reload_lines(found):
            print(line)
        return 0
    changes = admin_of(arguments).reload()["changes"]
    print("changed: " + "; ".join(changes) if changes else "nothing changed")
    return 0
