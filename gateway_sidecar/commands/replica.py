"""`replica add`, `replica remove` and `replica list`."""

from __future__ import annotations

import argparse
import json

from gateway_sidecar.api.table import render_replicas
from gateway_sidecar.commands.defaults import WAIT_S
from gateway_sidecar.commands.place import admin_of, gateway_lines, unanswered_lines, warn_of_drain
from gateway_sidecar.config.text_file import read_mapping
from gateway_sidecar.errors import AdminError, ConfigError


def add(arguments: argparse.Namespace) -> int:
    """Puts a replica."""
    name = arguments.replica
    if arguments.timeout is not None and not arguments.wait:
        arguments.misused("--timeout belongs to --wait; give both, or neither")
    wait_s = (WAIT_S if arguments.timeout is None else arguments.timeout) if arguments.wait else None
    client, entry = admin_of(arguments), _entry(arguments)
    try:
        answer = client.put(arguments.service, name, entry, wait_s=wait_s)
    except ConfigError as error:
        raise ConfigError([f"{arguments.file or name}: {problem}" for problem in error.problems]) from error
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
    client, name = admin_of(arguments), arguments.replica
    if arguments.drain:
        warn_of_drain(client, arguments.service, name)
    answer = client.delete(arguments.service, name, drain_s=arguments.drain)
    for line in unanswered_lines(answer["unanswered"], name):
        print(line)
    if answer["drained"]:
        for line in gateway_lines(answer):
            print(line)
        print(f"{name} is gone, with nothing in flight: safe to stop")
    else:
        print(f"{name} is gone, and not safe to stop yet: {answer['reason']}")
    return 0


def list_all(arguments: argparse.Namespace) -> int:
    """Prints the replicas."""
    client = admin_of(arguments)
    if arguments.service is None:
        services = {service["name"]: service["replicas"] for service in client.status()["services"]}
    else:
        services = {arguments.service: client.replicas(arguments.service)["replicas"]}
    print(json.dumps(services, indent=2) if arguments.json else render_replicas(services))
    return 0
