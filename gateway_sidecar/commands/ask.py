"""The commands that ask a daemon that runs, and do nothing else."""

from __future__ import annotations

import argparse
import json

from gateway_sidecar.api.client import ask_daemon
from gateway_sidecar.api.table import render_status
from gateway_sidecar.commands.place import admin_of, quoted, replica_target, warn_of_drain
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import AdminError, ConfigError, NotInForce


def status(arguments: argparse.Namespace) -> int:
    """Services, routers and replicas."""
    _, answer = ask_daemon(admin_of(arguments), "GET", "/v1/status")
    print(json.dumps(answer, indent=2) if arguments.json else render_status(answer))
    return 0


def drain(arguments: argparse.Namespace) -> int:
    """Returns when the replica's engine may be stopped."""
    query = "" if arguments.timeout is None else f"?timeout_s={arguments.timeout:g}"
    place, target = admin_of(arguments), replica_target(arguments.service, arguments.replica)
    warn_of_drain(place, target, arguments.replica)
    code, answer = ask_daemon(place, "POST", f"{target}/drain{query}", timeout_s=None)
    for line in answer.get("missed", ()):
        print(f"without {arguments.replica} nobody answers for {line}")
    if code == 200:
        print(f"{arguments.replica} is drained after {answer['took_s']:.1f} s: safe to stop")
        return 0
    if code == 504:
        known = answer["in_flight"] is not None
        in_flight = counted(answer["in_flight"], "connection") if known else "an unknown number of connections"
        raise AdminError(
            f"{arguments.replica} still has {in_flight} in flight after {answer['took_s']:.0f} s; "
            "it stays out of rotation: drain it again to wait longer, or stop the engine and lose them"
        )
    raise AdminError(str(answer.get("error")))


def resume(arguments: argparse.Namespace) -> int:
    """Ends a drain."""
    code, answer = ask_daemon(
        admin_of(arguments), "POST", f"{replica_target(arguments.service, arguments.replica)}/resume"
    )
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print(f"{arguments.replica} goes back into rotation")
    return 0


def router(arguments: argparse.Namespace) -> int:
    """Replaces a router."""
    target = f"/v1/services/{quoted(arguments.service)}/router/restart"
    code, answer = ask_daemon(admin_of(arguments), "POST", target, timeout_s=None)
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print(f"{arguments.service} has a new router (pid {answer['pid']}) after {answer['took_s']:.1f} s")
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """Has the configuration read again."""
    code, answer = ask_daemon(admin_of(arguments), "POST", "/v1/reload", timeout_s=None)
    if code == 422:
        raise ConfigError(list(answer["problems"]))
    if code == 503 and "changes" in answer:
        raise NotInForce(list(answer["problems"]), list(answer["changes"]))
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print("changed: " + "; ".join(answer["changes"]) if answer["changes"] else "nothing changed")
    return 0
