"""`replica add`, `replica remove` and `replica list`, and where the commands that ask a daemon find it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway_sidecar.api.client import Place, Remote, ask_daemon
from gateway_sidecar.api.table import render_replicas
from gateway_sidecar.config import load_usable, read_mapping
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import AdminError, ConfigError

_MARGIN_S = 10.0
_WAIT_S = 60.0


def add_admin_options(command: argparse.ArgumentParser) -> None:
    """The options by which a daemon elsewhere is asked."""
    group = command.add_argument_group("a daemon elsewhere, at its admin.listen")
    group.add_argument("--admin", metavar="URL", help="https://HOST:PORT; admin.sock in run_dir by default")
    group.add_argument("--cert", type=Path, metavar="FILE", help="our certificate, which the daemon's client_ca signed")
    group.add_argument("--key", type=Path, metavar="FILE", help="its key")
    group.add_argument("--ca", type=Path, metavar="FILE", help="the CA of the daemon's certificate")


def admin_of(arguments: argparse.Namespace) -> Place:
    """The admin API that is meant. Raises AdminError, ConfigError."""
    if arguments.admin is None:
        if any((arguments.cert, arguments.key, arguments.ca)):
            raise AdminError("--cert, --key and --ca belong to --admin: which daemon is meant?")
        return load_usable(arguments.config).run_dir / "admin.sock"
    if None in (arguments.cert, arguments.key, arguments.ca):
        raise AdminError("--admin needs --cert, --key and --ca: the API listens with mutual TLS only")
    return Remote(arguments.admin, arguments.cert, arguments.key, arguments.ca)


def add_replica_commands(commands: Any, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    """`replica` and what belongs to it."""
    text = "put, delete or list replicas that no file tells of"
    replica = commands.add_parser("replica", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = replica.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        command.set_defaults(command=run)
        add_config(command)
        add_admin_options(command)
        return command

    command = add("add", _add, "tell the daemon of a replica, or that it is otherwise now")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", metavar="PATH", help="its Unix socket on the daemon's machine")
    place.add_argument("--ssh", metavar="HOST", help="the SSH server to reach it by; with --forward")
    place.add_argument("--file", type=Path, metavar="YAML", help="all of it, as an inventory's entry has it")
    command.add_argument(
        "--forward", metavar="HOST:PORT", help="with --ssh: where it listens, as that server sees it; or a path there"
    )
    command.add_argument("--ssh-port", type=int, metavar="PORT", help="with --ssh: its port")
    command.add_argument("--user", metavar="USER", help="with --ssh: the user there")
    command.add_argument("--wait", action="store_true", help="return when it serves, or say why it does not")
    command.add_argument("--timeout", type=float, metavar="S", help=f"with --wait: for how long (default: {_WAIT_S:g})")
    command.set_defaults(misused=command.error)
    command = add("remove", _remove, "let the daemon forget a replica that it was told of")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--drain", type=float, default=0.0, metavar="S", help="wait S seconds for what is in flight (default: 0)"
    )
    command = add("list", _list, "show replicas, and who told of them")
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("--json", action="store_true", help="for programs")


def _add(arguments: argparse.Namespace) -> int:
    name = arguments.replica
    if arguments.timeout is not None and not arguments.wait:
        arguments.misused("--timeout belongs to --wait: without it nothing is waited for")
    wait_s = _WAIT_S if arguments.timeout is None else arguments.timeout
    query = f"?wait=serving&timeout_s={wait_s:g}" if arguments.wait else ""
    timeout_s = wait_s + _MARGIN_S if arguments.wait else _MARGIN_S * 3
    target = f"/v1/services/{_quoted(arguments.service)}/replicas/{_quoted(name)}{query}"
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


def warn_of_drain(place: Place, target: str, replica: str) -> None:
    """Says what nobody would answer without this replica, before anything is done to it. Raises AdminError."""
    code, answer = ask_daemon(place, "GET", f"{target}/drain")
    if code == 200:  # Otherwise the drain itself says what is wrong.
        for line in answer["missed"]:
            print(f"without {replica} nobody answers for {line}", file=sys.stderr, flush=True)


def _remove(arguments: argparse.Namespace) -> int:
    name = arguments.replica
    query = f"?drain_s={arguments.drain:g}" if arguments.drain else ""
    target = f"/v1/services/{_quoted(arguments.service)}/replicas/{_quoted(name)}"
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


def _list(arguments: argparse.Namespace) -> int:
    place = admin_of(arguments)
    if arguments.service is None:
        _, status = ask_daemon(place, "GET", "/v1/status")
        services = {service["name"]: service["replicas"] for service in status["services"]}
    else:
        code, answer = ask_daemon(place, "GET", f"/v1/services/{_quoted(arguments.service)}/replicas")
        if code != 200:
            raise AdminError(str(answer.get("error")))
        services = {arguments.service: answer["replicas"]}
    print(json.dumps(services, indent=2) if arguments.json else render_replicas(services))
    return 0


def _quoted(name: str) -> str:
    return quote(os.fsencode(name), safe="")
