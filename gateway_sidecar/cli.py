"""The command line.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 (`leave` alone) done, but requests were cut off, 78 the configuration
cannot be used, 79 (`run` alone) ended by `stop` or `leave`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from gateway_sidecar import __version__
from gateway_sidecar.commands.defaults import DEFAULT_CONFIG, EXIT_CONFIG, EXIT_FAILED, STOP_S, WAIT_S
from gateway_sidecar.commands.shipped import NAMES
from gateway_sidecar.errors import ConfigError, DaemonAway, FrontendError, GatewaySidecarError, NotInForce
from gateway_sidecar.telemetry.terminal import PrintableStream

_RUN = "daemon:run"
_INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    arguments = _parser().parse_args(argv)
    with ExitStack() as stack:
        if arguments.command != _RUN:  # The daemon's events see to it themselves, and may have colours.
            stack.enter_context(redirect_stdout(cast(TextIO, PrintableStream(sys.stdout))))
            stack.enter_context(redirect_stderr(cast(TextIO, PrintableStream(sys.stderr))))
        code = _run_command(arguments)
    sys.exit(code)


def _run_command(arguments: argparse.Namespace) -> int:
    """Runs the command and prints its errors; the exit code."""
    try:
        code: int = _imported(arguments.command)(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        code = EXIT_CONFIG
    except NotInForce as error:
        print("changed: " + "; ".join(error.changes) if error.changes else "nothing changed")
        for problem in error.problems:
            print(f"PROBLEM: not in force: {problem}", file=sys.stderr)
        code = EXIT_FAILED
    except FrontendError as error:
        for problem in error.problems:
            print(f"gateway-sidecar: {problem}", file=sys.stderr)
        code = EXIT_FAILED
    except DaemonAway as error:
        print(f"gateway-sidecar: {error}{_left_beside(arguments)}", file=sys.stderr)
        code = EXIT_FAILED
    except GatewaySidecarError as error:
        print(f"gateway-sidecar: {error}", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `status | head` is no error
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"gateway-sidecar: {where}{error.strerror or error}", file=sys.stderr)
        code = EXIT_FAILED
    return code


def _left_beside(arguments: argparse.Namespace) -> str:
    """What an earlier daemon left running, for the end of a sentence; empty if nothing."""
    if getattr(arguments, "admin", None) is not None:
        return ""
    beside: str = _imported("left:left_beside")(arguments.config)
    return beside


def _imported(name: str) -> Callable[..., Any]:
    """`MODULE:FUNCTION` of `commands`: a command imports what it needs, and nothing that another one needs."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"gateway_sidecar.commands.{module}"), function)
    return found


class _Parser(argparse.ArgumentParser):
    """Suggests the closest word for one that it does not know."""

    def error(self, message: str) -> NoReturn:
        wrong = _INVALID_CHOICE.search(message)
        if wrong is not None:
            close = get_close_matches(wrong[1], re.findall(r"'([^']*)'", wrong[2]), n=1)
            message += f"; did you mean '{close[0]}'?" if close else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gateway-sidecar",
        description="Keeps an LLM router in step with engine replicas that come and go behind Unix sockets.",
        epilog="Begin with `gateway-sidecar check`. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad configuration.",
    )
    parser.add_argument("--version", action="version", version=f"gateway-sidecar {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add_config(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--config", type=Path, default=_default_config(), metavar="FILE",
            help="the configuration file (default: $GATEWAY_SIDECAR_CONFIG, else %(default)s)",
        )  # fmt: skip

    def add(name: str, run: str, text: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        command.set_defaults(command=run)
        add_config(command)
        return command

    def ask(name: str, run: str, text: str, more: str = "") -> argparse.ArgumentParser:
        command = add(name, run, text, more)
        _add_admin_options(command)
        return command

    add(
        "run",
        _RUN,
        "run the daemon in the foreground",
        "SIGTERM leaves nginx and the routers running for the next start; Ctrl-C stops them too; "
        "SIGHUP reads the configuration again.",
    )
    command = add("check", "check:check", "validate the configuration and this machine; change nothing")
    command.add_argument(
        "--as", dest="as_user", metavar="USER",
        help="check with this user's rights (default for root: the daemon's user, if one is known)",
    )  # fmt: skip
    command = add(
        "plan",
        "plan:plan",
        "show what a reload would change, and what the running daemon, or a fresh one, would do next; do none of it",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command = ask(
        "status",
        "status:status",
        "show services, routers and replicas, or one of them",
        "With --problems it exits with 1 if there are any.",
    )
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("replica", metavar="REPLICA", nargs="?")
    command.add_argument("--problems", action="store_true", help="only what is not as it should be")
    command.add_argument("-w", "--watch", action="store_true", help="keep it up to date, until Ctrl-C")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(misused=command.error)
    text = "show requests and tokens by key and model, of services and addresses with frontend.usage"
    command = add("usage", "usage:usage", text)
    _add_usage_options(command)
    _add_admin_options(command, "--cert-key")  # --key names a client's.
    command = ask(
        "explain",
        "explain:explain",
        "show why a replica is where it is, step by step, and what would change that",
    )
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = ask(
        "events",
        "events:events",
        "show the last events of the log, of all or of one service or replica",
        "The daemon keeps the last events of each replica and each service, over its restarts.",
    )
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("replica", metavar="REPLICA", nargs="?")
    command.add_argument("-f", "--follow", action="store_true", help="go on with each event as it is logged")
    command.add_argument(
        "--since", metavar="WHEN", help="90s, 10m, 2h or 1d ago, or a date and time: 2027-01-31T12:00:00Z"
    )
    command.add_argument("--said", action="store_true", help="also lines that routers and nginx said themselves")
    command.add_argument("--last", type=int, metavar="N", help="so many at most (default: 50, with --since all)")
    command.add_argument("--json", action="store_true", help="print JSON, an event a line")
    command = ask(
        "drain",
        "ask:drain",
        "take a replica out of rotation; return when it is safe to stop its engine",
        "The replica stays out of rotation until `resume`, or until its socket is replaced.",
    )
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--timeout", type=float, metavar="S", help="give up after S seconds (default: drain.timeout_s)"
    )
    command = ask("resume", "ask:resume", "put a drained replica back into rotation")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    _add_replica_commands(commands, add_config)
    _add_store_commands(commands, add_config)
    command = ask("router", "ask:router", "replace a service's router without failing a request")
    command.add_argument("action", choices=["restart"], metavar="restart")
    command.add_argument("service", metavar="SERVICE")
    command = ask(
        "stop", "stop:stop", "stop the daemon", "nginx, the routers and every stream go on unless --all is given."
    )
    command.add_argument(
        "--all", action="store_true", help="stop nginx and the routers too, after what is in flight has ended"
    )
    command.add_argument(
        "--timeout", type=float, metavar="S",
        help=f"with --all: end what is still in flight after S seconds (default: {STOP_S:g})",
    )  # fmt: skip
    command.set_defaults(misused=command.error)
    command = ask(
        "leave",
        "leave:leave",
        "leave without a failed request: readiness off, no new requests, drain, stop everything",
        "Shows how it goes until the gateway has left. Ctrl-C ends the command alone; another `leave` follows again.",
    )
    command.add_argument(
        "--timeout", type=float, metavar="S",
        help="cut what is still in flight S seconds from now (default: leave.timeout_s)",
    )  # fmt: skip
    ask("join", "leave:join", "take a gateway back that is leaving")
    command = ask("reload", "ask:reload", "read the configuration again and report what changed")
    command.add_argument(
        "--dry-run", action="store_true", help="show what would change, and what that interrupts; change nothing"
    )
    for name, text in (
        ("install", "install the systemd unit, the user, the directories and an example configuration"),
        ("uninstall", "stop the daemon, nginx and the routers, and remove the unit"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=f"unit:{name}")
        command.add_argument(
            "--root", type=Path, default=Path("/"), metavar="DIR", help="install below DIR instead of /"
        )
        command.add_argument("--dry-run", action="store_true", help="print the steps; do none of them")
        if name == "install":
            command.add_argument(
                "--peers", action="store_true", help="let the daemon add replicas' own addresses to this machine"
            )
    _add_files_command(commands)
    _add_key_commands(commands.add_parser("key", help="make, change, revoke and list the API keys of clients"))
    schema = commands.add_parser("schema", help="print a file's JSON Schema, for editors")
    schema.add_argument(
        "of",
        nargs="?",
        choices=["configuration", "inventory", "replica"],
        default="configuration",
        help="which file: gateway-sidecar.yaml, an inventory, or a <replica>.yaml",
    )
    schema.set_defaults(command="schema:schema")
    return parser


def _add_files_command(commands: Any) -> None:
    text = "say where the alert rules, the dashboard, the JSON Schemas and the example configuration are"
    command = commands.add_parser("files", help=text, description=f"{text[0].upper()}{text[1:]}.")
    what = command.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", choices=NAMES, help="print this path alone")
    what.add_argument("--copy", type=Path, metavar="DIR", help="write all of them into DIR")
    command.set_defaults(command="files:files")


def _add_usage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--since", default="24h", metavar="TIME",
        help="from when on: a time ago such as 24h or 7d, or 2026-11-01 (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--until", metavar="TIME", help="until when, as --since has it (default: now)")
    command.add_argument("--service", metavar="SERVICE", help="only this service, or shared address")
    command.add_argument("--key", dest="of_key", metavar="NAME", help="only this client's key, by its name")
    command.add_argument("--model", metavar="MODEL", help="only this model")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV, with a line of names first")


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Manage clients' API keys. The file holds only hashes; a running daemon applies changes at once."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("add", "key:add", "make a key, store its hash, and print the key, which is shown only once"),
        ("set", "key:change", "change a key's bounds, expiry or note"),
        ("pause", "key:pause", "refuse a key's requests until `resume`; requests in flight go on"),
        ("resume", "key:resume", "end a key's pause"),
        ("rotate", "key:rotate", "give a key another secret and print it; the old one ends by itself, a while later"),
        ("revoke", "key:revoke", "remove a key; requests in flight go on, new ones are refused"),
        ("plan", "key:plan", "make or change a plan: bounds of all keys that name it"),
        ("list", "key:list_all", "print each key: state, bounds, when it was last used, note; and each plan"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(command=run)
        action.add_argument("--file", type=Path, required=True, metavar="FILE", help="the file with the keys' hashes")
        if name != "list":
            action.add_argument("name", metavar="NAME", help="letters, digits and . _ -, 64 at most")
        if name in ("add", "rotate"):
            action.add_argument("--stdin", action="store_true", help="read the key from standard input, one line")
        if name in ("add", "set", "plan"):
            _add_bounds(action, of_plan=name == "plan")
        if name == "rotate":
            action.add_argument(
                "--keep-old", default="24h", metavar="TIME",
                help="for how long the old secret counts, too: 24h, 90m, 7d or 0 (default: %(default)s)",
            )  # fmt: skip
        if name == "list":
            action.add_argument("--json", action="store_true", help="print JSON")
            action.add_argument(
                "--config", type=Path, default=_default_config(), metavar="FILE",
                help="the configuration, which says where it is noted when keys were last used (default: %(default)s)",
            )  # fmt: skip


def _add_bounds(action: argparse.ArgumentParser, *, of_plan: bool) -> None:
    """The options for what a key may do."""
    also = "" if of_plan else "; `plan`: as the plan says"
    group = action.add_argument_group("bounds", f"`none`: no such bound{also}. Numbers may end in k or M.")
    group.add_argument("--models", metavar="A,B", help="the models that may be used, as clients name them")
    for option, what in (
        ("requests-per-minute", "requests a minute"),
        ("tokens-per-minute", "tokens a minute, of prompts and answers"),
        ("tokens-per-day", "tokens a day (UTC)"),
        ("tokens-per-month", "tokens a month (UTC)"),
        ("concurrent", "requests at the same time"),
    ):
        group.add_argument(f"--{option}", metavar="N", help=what)
    if of_plan:
        action.add_argument("--remove", action="store_true", help="remove the plan, which no key may name any more")
        return
    action.add_argument("--plan", metavar="PLAN", help="the plan whose bounds hold where the key has none of its own")
    action.add_argument("--expires", metavar="DATE", help="when the key expires: 2027-01-31 or 2027-01-31T12:00Z")
    action.add_argument("--note", metavar="TEXT", help="what people should know of the key")


def _add_replica_commands(commands: Any, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    """`replica` and what belongs to it."""
    text = "add, remove and list replicas over the API"
    replica = commands.add_parser("replica", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = replica.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, run: str, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        command.set_defaults(command=run)
        add_config(command)
        _add_admin_options(command)
        return command

    command = add("add", "replica:add", "add a replica, or change one")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", metavar="PATH", help="the replica's Unix socket on the daemon's machine")
    place.add_argument("--ssh", metavar="HOST", help="the SSH server that leads to the replica; needs --forward")
    place.add_argument(
        "--file",
        type=Path,
        metavar="YAML",
        help="a file with all of the replica's settings, as an inventory's entry has them",
    )
    command.add_argument(
        "--forward",
        metavar="HOST:PORT",
        help="with --ssh: the engine's address or socket path, as seen from that server",
    )
    command.add_argument("--ssh-port", type=int, metavar="PORT", help="with --ssh: the server's port")
    command.add_argument("--user", metavar="USER", help="with --ssh: the user to log in as")
    command.add_argument("--wait", action="store_true", help="return when the replica serves, or say why it does not")
    command.add_argument("--timeout", type=float, metavar="S", help=f"with --wait: for how long (default: {WAIT_S:g})")
    command.set_defaults(misused=command.error)
    command = add("remove", "replica:remove", "remove a replica that was added over the API")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--drain", type=float, default=0.0, metavar="S", help="wait up to S seconds for what is in flight (default: 0)"
    )
    command = add("list", "replica:list_all", "list replicas, and the source of each")
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_store_commands(commands: Any, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    text = "say what counts when a store came back empty, older or as another one"
    store = commands.add_parser("store", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = store.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, text in (
        ("accept", "believe the store as it is, at every gateway; replicas that it does not have leave"),
        ("refill", "put back into the store what this gateway knows, and have every gateway believe it"),
    ):
        command = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=f"store:{name}")
        add_config(command)
        _add_admin_options(command)


def _add_admin_options(command: argparse.ArgumentParser, *key: str) -> None:
    """The options for a daemon on another machine. `key`: the one for the private key, if not `--key`."""
    group = command.add_argument_group("a daemon on another machine, at its admin.listen")
    group.add_argument("--admin", metavar="URL", help="https://HOST:PORT (default: admin.sock in run_dir)")
    group.add_argument("--cert", type=Path, metavar="FILE", help="our certificate, signed by the daemon's client_ca")
    group.add_argument(
        *(key or ("--key", "--cert-key")), dest="key", type=Path, metavar="FILE", help="the certificate's private key"
    )
    group.add_argument("--ca", type=Path, metavar="FILE", help="the CA that signed the daemon's certificate")


def _default_config() -> Path:
    return Path(os.environ.get("GATEWAY_SIDECAR_CONFIG", DEFAULT_CONFIG))
