"""`replica add`, `replica remove` and `replica list`."""

from __future__ import annotations

import argparse
import json

from gateway_sidecar.api.client import ask_daemon
from gateway_sidecar.api.table import render_replicas
from gateway_sidecar.commands.defaults import WAIT_S
from gateway_sidecar.commands.place import admin_of, quoted, replica_target, warn_of_drain
from gateway_sidecar.config.text_file import read_mapping
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import AdminError, ConfigError

_MARGIN_S = 10.0


def add(arguments: argparse.Namespace) -> int:
    """Puts a replica."""
    name = arguments.replica
    if arguments.timeout is not None and not arguments.wait:
        arguments.misused("--timeout belongs to --wait: without it nothing is waited for")
    wait_s = WAIT_S if arguments.timeout is None else arguments.timeout
    query = f"?wait=serving&timeout_s={wait_s:g}" if arguments.wait else ""
    timeout_s = wait_s + _MARGIN_S if arguments.wait else _MARGIN_S * 3
    target = replica_target(arguments.service, name) + query
    code, answer = ask_daemon(admin_of(arguments), "PUT", target, body=_entry(arguments), timeout_s=timeout_s)
    if code == 422:
        raise ConfigError([f"{arguments.file or name}: {problem}" for problem in answer["problems"]])
    if code not in (200, 201):
        raise AdminError(str(answer.get("error")))
    what = "is new" if answer["created"] else "is changed" if answer["changed"] else "is as it was"
    row = answer["replica"]
    print(f"{name} {what}: {row['state']}" + (f" at {row['bridge']}" if row["bridge"] else ""))
    return 0


def _entry(arguments: argparse.Namespace) -> dict[str, object]:
    """What is put. Raises ConfigError, AdminError."""
    of_ssh = {"forward": arguments.forward, "port": arguments.ssh_port, "user": arguments.user}
    said = {key: value for key, value in of_ssh.items() if value is not None}
    if arguments.ssh is not None:
        if arguments.forward is None:
            raise AdminError("--ssh needs --forward: where the engine listens, as that server sees it")
        return {"ssh": {"host": arguments.ssh, **said}}
    if said:
        raise AdminError("--forward, --ssh-port and --user belong to --ssh")
    return {"socket": arguments.socket} if arguments.socket is not None else read_mapping(arguments.file)


def remove(arguments: argparse.Namespace) -> int:
    """Deletes a replica."""
    name = arguments.replica
    query = f"?drain_s={arguments.drain:g}" if arguments.drain else ""
    target = replica_target(arguments.service, name)
    timeout_s = arguments.drain + 3 * _MARGIN_S
    place = admin_of(arguments)
    if arguments.drain:
        warn_of_drain(place, target, name)
    code, answer = ask_daemon(place, "DELETE", f"{target}{query}", timeout_s=timeout_s)
    if code not in (200, 202):
        raise AdminError(str(answer.get("error")))
    for line in answer["missed"]:
        print(f"without {name} nobody answers for {line}")
    if answer["drained"]:
        print(f"{name} is gone, with nothing in flight: safe to stop")
    elif answer["in_flight"] is None:
        print(f"{name} is gone; what it may have in flight goes on")
    else:
        print(f"{name} is gone; in flight yet: {counted(answer['in_flight'], 'connection')}")
    return 0


def list_all(arguments: argparse.Namespace) -> int:
    """Prints the replicas."""
    place = admin_of(arguments)
    if arguments.service is None:
        _, status = ask_daemon(place, "GET", "/v1/status")
        services = {service["name"]: service["replicas"] for service in status["services"]}
    else:
        code, answer = ask_daemon(place, "GET", f"/v1/services/{quoted(arguments.service)}/replicas")
        if code != 200:
            raise AdminError(str(answer.get("error")))
        services = {arguments.service: answer["replicas"]}
    print(json.dumps(services, indent=2) if arguments.json else render_replicas(services))
    return 0
