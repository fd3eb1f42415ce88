"""The command line. docs/reference/commands.md and the man page are made from its parser."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from gateway_sidecar import __version__
from gateway_sidecar.commands.defaults import DEFAULT_CONFIG, STOP_S, WAIT_S
from gateway_sidecar.commands.exit_codes import MEANINGS, Exit
from gateway_sidecar.commands.shipped import NAMES
from gateway_sidecar.domain.similar import did_you_mean
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
        code = Exit.CONFIG
    except NotInForce as error:
        print("changed: " + "; ".join(error.changes) if error.changes else "nothing changed")
        for problem in error.problems:
            print(f"PROBLEM: not in force: {problem}", file=sys.stderr)
        code = Exit.FAILED
    except FrontendError as error:
        for problem in error.problems:
            print(f"gateway-sidecar: {problem}", file=sys.stderr)
        code = Exit.FAILED
    except DaemonAway as error:
        print(f"gateway-sidecar: {error}{_left_beside(arguments)}", file=sys.stderr)
        code = Exit.FAILED
    except GatewaySidecarError as error:
        print(f"gateway-sidecar: {error}", file=sys.stderr)
        code = Exit.FAILED
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `status | head` is no error
        code = Exit.DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"gateway-sidecar: {where}{error.strerror or error}", file=sys.stderr)
        code = Exit.FAILED
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
            meant = did_you_mean(wrong[1], re.findall(r"'([^']*)'", wrong[2]))
            message += meant and f"; {meant}"
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gateway-sidecar",
        description="Keeps an LLM router in step with engine replicas that come and go behind Unix sockets.",
        epilog="Begin with `gateway-sidecar check`. Exit codes: "
        + ", ".join(f"{code:d} {meaning.briefly}" for code, meaning in MEANINGS.items())
        + ".",
    )
    parser.add_argument("--version", action="version", version=f"gateway-sidecar {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_daemon_commands(commands)
    _add_status_commands(commands)
    _add_drain_commands(commands)
    _add_replica_commands(commands)
    _add_store_commands(commands)
    _add_life_commands(commands)
    _add_unit_commands(commands)
    _add_files_command(commands)
    _add_key_commands(commands)
    _add_certificate_commands(commands)
    _add_schema_command(commands)
    return parser


def _add(commands: Any, name: str, run: str, text: str, more: str = "", *, on_daemon: bool = False) -> _Parser:
    """Adds a command. text: what it does, for the list of commands. more: what follows that in its own help.

    on_daemon: whether it asks a daemon, which may run on another machine.
    """
    command: _Parser = _add_bare(commands, name, run, text, more)
    command.add_argument(
        "--config", type=Path, default=_default_config(), metavar="FILE",
        help="the configuration file (default: $GATEWAY_SIDECAR_CONFIG, else %(default)s)",
    )  # fmt: skip
    if on_daemon:
        _add_admin_options(command)
    return command


def _add_bare(commands: Any, name: str, run: str, text: str, more: str = "") -> _Parser:
    """Adds a command that needs no configuration."""
    command: _Parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    command.set_defaults(command=run, misused=command.error)
    return command


def _add_family(commands: Any, name: str, text: str, more: str = "") -> Any:
    """Adds a command that has further commands below it; these go into what is returned."""
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    return command.add_subparsers(title="actions", metavar="ACTION", required=True)


def _add_admin_options(command: argparse.ArgumentParser, *key: str) -> None:
    """The options for a daemon on another machine. `key`: the one for the private key, if not `--key`."""
    group = command.add_argument_group("a daemon on another machine, at its admin.listen")
    group.add_argument(
        "--admin", metavar="URL", help="the daemon's address, https://HOST:PORT (default: admin.sock in run_dir)"
    )
    group.add_argument("--cert", type=Path, metavar="FILE", help="your certificate, signed by the daemon's client_ca")
    group.add_argument(
        *(key or ("--key", "--cert-key")), dest="key", type=Path, metavar="FILE",
        help="the private key of your certificate",
    )  # fmt: skip
    group.add_argument("--ca", type=Path, metavar="FILE", help="the CA that signed the daemon's certificate")


def _add_daemon_commands(commands: Any) -> None:
    _add(
        commands,
        "run",
        _RUN,
        "run the daemon in the foreground",
        "SIGTERM ends the daemon and leaves nginx and the routers running for the next start. Ctrl-C stops them too. "
        "SIGHUP reads the configuration again.",
    )
    command = _add(
        commands,
        "check",
        "check:check",
        "check the configuration and this machine; change nothing",
        "It looks at the file, nginx and its modules, the routers and their arguments, ports, the limit of open files,"
        " directories, sockets and their permissions. The first line names the user whose rights count. Root checks"
        " with the rights of the unit's user, drop-ins included where systemd runs. Any other user can check only with"
        " the rights of that user, and is warned.",
    )
    command.add_argument(
        "--as", dest="as_user", metavar="USER",
        help="check with this user's rights (default for root: the daemon's user, if one is known)",
    )  # fmt: skip
    command = _add(
        commands,
        "plan",
        "plan:plan",
        "show what a reload would change and what the daemon would do next; do none of it",
        "While no daemon runs, it shows what a new daemon would do, and what that daemon would adopt of the processes"
        " that an earlier one left.",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_status_commands(commands: Any) -> None:
    command = _add(
        commands,
        "status",
        "status:status",
        "show services, routers and replicas, or one service or replica",
        "It shows what clients see of each service, the models of shared addresses, the load of each replica, and the"
        " reason for each state. For one service or replica it also shows the last events.",
        on_daemon=True,
    )
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("replica", metavar="REPLICA", nargs="?")
    command.add_argument("--problems", action="store_true", help="show only problems, and exit with 1 if there are any")
    command.add_argument("-w", "--watch", action="store_true", help="keep the output up to date until Ctrl-C")
    command.add_argument(
        "--fleet", action="store_true", help="show all gateways of the store, and what each sees of each replica"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command = _add(
        commands,
        "usage",
        "usage:usage",
        "show requests and tokens by key and model",
        "Services and shared addresses with frontend.usage count them.",
    )
    _add_usage_options(command)
    _add_admin_options(command, "--cert-key")  # --key names a client's.
    command = _add(
        commands,
        "explain",
        "explain:explain",
        "show why a replica is in its state, step by step, and what would change that",
        "It gives the evidence for each step. It also explains a replica that is gone, as long as the daemon keeps the"
        " last events of that replica.",
        on_daemon=True,
    )
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = _add(
        commands,
        "events",
        "events:events",
        "show the last events, of everything or of one service or replica",
        "The daemon keeps the last events of each replica and each service across its restarts.",
        on_daemon=True,
    )
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("replica", metavar="REPLICA", nargs="?")
    command.add_argument(
        "-f", "--follow", action="store_true", help="print each further event as it is logged, until Ctrl-C"
    )
    command.add_argument(
        "--since", metavar="WHEN", help="only events since then: 90s, 10m, 2h or 1d ago, or 2027-01-31T12:00:00Z"
    )
    command.add_argument("--said", action="store_true", help="also show lines that routers and nginx printed")
    command.add_argument("--last", type=int, metavar="N", help="show at most N events (default: 50; with --since: all)")
    command.add_argument("--json", action="store_true", help="print one line of JSON for each event, --said included")


def _add_usage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--since", metavar="TIME",
        help="from when: 24h, 7d or 4w ago, 2026-11-01 or 2026-11-01T12:00Z (default: 24h)",
    )  # fmt: skip
    command.add_argument("--until", metavar="TIME", help="until when, in the same form (default: now)")
    command.add_argument("--service", metavar="SERVICE", help="only this service or shared address")
    command.add_argument("--key", dest="of_key", metavar="NAME", help="only the client's key of this name")
    command.add_argument("--model", metavar="MODEL", help="only this model")
    command.add_argument(
        "--fleet",
        action="store_true",
        help="of keys of the store: the tokens of this day and month (UTC) at all gateways",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV; its first line names the columns")


def _add_drain_commands(commands: Any) -> None:
    command = _add(
        commands,
        "drain",
        "ask:drain",
        "take a replica out of rotation; return when its engine can be stopped without a client noticing",
        "It first says which models no replica would serve without this one. The replica stays out of rotation until"
        " `resume`, or until another engine takes the place of its socket.",
        on_daemon=True,
    )
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--timeout", type=float, metavar="S", help="give up after S seconds (default: drain.timeout_s)"
    )
    command = _add(commands, "resume", "ask:resume", "put a drained replica back into rotation", on_daemon=True)
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")


def _add_replica_commands(commands: Any) -> None:
    """`replica` and what belongs to it."""
    actions = _add_family(commands, "replica", "add, remove and list replicas over the API")
    command = _add(actions, "add", "replica:add", "add a replica, or change one", on_daemon=True)
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", metavar="PATH", help="the replica's Unix socket on the daemon's machine")
    place.add_argument("--ssh", metavar="HOST", help="the SSH server that leads to the replica; needs --forward")
    place.add_argument(
        "--file", type=Path, metavar="YAML",
        help="a file with all settings of the replica, in the form of an inventory's entry",
    )  # fmt: skip
    command.add_argument(
        "--forward", metavar="HOST:PORT",
        help="with --ssh: the engine's address or socket path, as seen from that server",
    )  # fmt: skip
    command.add_argument("--ssh-port", type=int, metavar="PORT", help="with --ssh: the server's port")
    command.add_argument("--user", metavar="USER", help="with --ssh: the user to log in as")
    command.add_argument("--wait", action="store_true", help="return when the replica serves, or say why it does not")
    command.add_argument(
        "--timeout", type=float, metavar="S", help=f"with --wait: give up after S seconds (default: {WAIT_S:g})"
    )
    command = _add(actions, "remove", "replica:remove", "remove a replica that was added over the API", on_daemon=True)
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--drain", type=float, default=0.0, metavar="S",
        help="wait up to S seconds until nothing is in flight (default: 0)",
    )  # fmt: skip
    command = _add(actions, "list", "replica:list_all", "list replicas and the source of each", on_daemon=True)
    command.add_argument("service", metavar="SERVICE", nargs="?")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_store_commands(commands: Any) -> None:
    text = "decide what counts when a store came back empty, older, or as another store"
    actions = _add_family(commands, "store", text)
    for name, text in (
        ("accept", "believe the store as it is, at every gateway; replicas that the store does not have leave"),
        ("refill", "put back into the store what this gateway knows, and make every gateway believe the store"),
    ):
        _add(actions, name, f"store:{name}", text, on_daemon=True)


def _add_life_commands(commands: Any) -> None:
    """What changes the routers, the configuration or the daemon's life."""
    command = _add(
        commands, "router", "ask:router", "replace a service's router without failing a request", on_daemon=True
    )
    command.add_argument("action", choices=["restart"], metavar="restart")
    command.add_argument("service", metavar="SERVICE")
    command = _add(
        commands,
        "stop",
        "stop:stop",
        "stop the daemon",
        "nginx, the routers and all streams go on, unless --all is given. `stop --all` works without a daemon, too.",
        on_daemon=True,
    )
    command.add_argument(
        "--all", action="store_true", help="also stop nginx and the routers, once nothing is in flight any more"
    )
    command.add_argument(
        "--timeout", type=float, metavar="S",
        help=f"with --all: cut what is still in flight after S seconds (default: {STOP_S:g})",
    )  # fmt: skip
    command = _add(
        commands,
        "leave",
        "leave:leave",
        "stop the whole gateway without failing a request",
        "The gateway tells load balancers to go elsewhere and waits until they have. Then it takes no new requests,"
        " waits until nothing is in flight, and stops the routers, nginx and the daemon. The command shows each phase"
        " and what it waits for. Ctrl-C ends the command alone; run it again to go on watching.",
        on_daemon=True,
    )
    command.add_argument(
        "--timeout", type=float, metavar="S",
        help="cut what is still in flight S seconds from now (default: leave.timeout_s)",
    )  # fmt: skip
    _add(commands, "join", "leave:join", "take back a gateway that is leaving", on_daemon=True)
    command = _add(
        commands,
        "reload",
        "ask:reload",
        "read the configuration again, apply what changed and report it",
        "A file with an error changes nothing. The command returns when nginx serves the new configuration. If nginx"
        " does not, the command prints PROBLEM and exits with 1.",
        on_daemon=True,
    )
    command.add_argument(
        "--dry-run", action="store_true", help="show what would change and what that interrupts; change nothing"
    )


def _add_unit_commands(commands: Any) -> None:
    more = "The Debian package does this by itself."
    for name, text in (
        ("install", "install the systemd unit, the user, the directories and an example configuration"),
        ("uninstall", "stop the daemon, nginx and the routers, and remove the unit"),
    ):
        command = _add_bare(commands, name, f"unit:{name}", text, more)
        command.add_argument(
            "--root", type=Path, default=Path("/"), metavar="DIR", help="use DIR as the root directory (default: /)"
        )
        command.add_argument("--dry-run", action="store_true", help="print the steps; do none of them")
        if name == "install":
            command.add_argument(
                "--peers", action="store_true", help="let the daemon add replicas' own addresses to this machine"
            )


def _add_files_command(commands: Any) -> None:
    text = "print where the alert rules, the dashboard, the JSON Schemas and the example configuration are"
    command = _add_bare(commands, "files", "files:files", text)
    what = command.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", choices=NAMES, help="print only the path of this file")
    what.add_argument("--copy", type=Path, metavar="DIR", help="write all of these files into DIR")


def _add_key_commands(commands: Any) -> None:
    actions = _add_family(
        commands,
        "key",
        "make, change, revoke and list the API keys of clients",
        "The file, or the store, holds only hashes. A running daemon applies each change at once.",
    )
    for name, run, text in (
        ("add", "key:add", "make a key, store its hash, and print the key, which is shown only once"),
        ("set", "key:change", "change a key's bounds, expiry or note"),
        ("pause", "key:pause", "refuse a key's requests until `resume`; requests in flight go on"),
        ("resume", "key:resume", "end a key's pause"),
        ("rotate", "key:rotate", "give a key another secret and print it; the old secret ends by itself later"),
        ("revoke", "key:revoke", "remove a key; requests in flight go on, new ones are refused"),
        ("plan", "key:plan", "make or change a plan: bounds for all keys that name the plan"),
        ("list", "key:list_all", "print each key with its state, bounds, last use and note, and each plan"),
    ):
        action = _add_bare(actions, name, run, text)
        where = action.add_mutually_exclusive_group(required=True)
        where.add_argument("--file", type=Path, metavar="FILE", help="the file with the keys' hashes")
        where.add_argument(
            "--store",
            action="store_true",
            help="the keys of the store that several gateways share; the daemon is asked",
        )
        action.add_argument(
            "--config", type=Path, default=_default_config(), metavar="FILE",
            help="the configuration, which says where the daemon, and the last use of keys, are (default: %(default)s)",
        )  # fmt: skip
        if name != "list":
            whose = "plan" if name == "plan" else "key"
            text = f"the {whose}'s name: letters, digits and . _ -, 64 at most"
            action.add_argument("name", metavar="NAME", help=text)
        if name in ("add", "rotate"):
            action.add_argument("--stdin", action="store_true", help="read the key from standard input, one line")
        if name in ("add", "set", "plan"):
            _add_bounds(action, of_plan=name == "plan")
        if name == "rotate":
            action.add_argument(
                "--keep-old", default="24h", metavar="TIME",
                help="accept the old secret for this long, too: 24h, 90m, 7d or 0 (default: %(default)s)",
            )  # fmt: skip
        if name == "list":
            action.add_argument("--json", action="store_true", help="print JSON")


def _add_bounds(action: argparse.ArgumentParser, *, of_plan: bool) -> None:
    """The options for what a key may do."""
    none = "`none` for no bound" if of_plan else "`none` for no bound, whatever the plan says, or `plan` for the plan's"
    group = action.add_argument_group("bounds", f"give a value, or {none}; numbers may end in k or M")
    group.add_argument("--models", metavar="A,B", help="only these models, as clients name them")
    for option, what in (
        ("requests-per-minute", "at most N requests per minute"),
        ("tokens-per-minute", "at most N tokens per minute, of prompts and answers"),
        ("tokens-per-day", "at most N tokens per day (UTC)"),
        ("tokens-per-month", "at most N tokens per month (UTC)"),
        ("concurrent", "at most N requests at the same time"),
    ):
        group.add_argument(f"--{option}", metavar="N", help=what)
    if of_plan:
        action.add_argument("--remove", action="store_true", help="remove the plan; no key may name it any more")
        return
    action.add_argument("--plan", metavar="PLAN", help="the plan whose bounds hold where the key has none of its own")
    action.add_argument("--expires", metavar="DATE", help="when the key expires: 2027-01-31 or 2027-01-31T12:00Z")
    action.add_argument("--note", metavar="TEXT", help="a note for people")


def _add_certificate_commands(commands: Any) -> None:
    actions = _add_family(
        commands,
        "certificate",
        "put, list and remove the TLS certificates of the store that several gateways share",
        "The running daemon is asked, at any gateway. Each change is in force at every gateway.",
    )
    for name, run, text in (
        ("put", "certificate:put", "put a certificate and its key into the store, or others in their place"),
        ("list", "certificate:list_all", "print each certificate with its names and its end; no key is shown"),
        ("remove", "certificate:remove", "remove a certificate from the store; no service here may have it any more"),
    ):
        action = _add_bare(actions, name, run, text)
        action.add_argument(
            "--config", type=Path, default=_default_config(), metavar="FILE",
            help="the configuration, which says where the daemon is (default: %(default)s)",
        )  # fmt: skip
        if name == "list":
            action.add_argument("--json", action="store_true", help="print JSON")
            continue
        action.add_argument("name", metavar="NAME", help="what frontend.tls.store calls it")
        if name == "put":
            action.add_argument(
                "--cert", type=Path, required=True, metavar="FILE",
                help="the certificate, in PEM, followed by its intermediate certificates",
            )  # fmt: skip
            action.add_argument(
                "--key", type=Path, required=True, metavar="FILE", help="its private key, in PEM, without a passphrase"
            )


def _add_schema_command(commands: Any) -> None:
    command = _add_bare(commands, "schema", "schema:schema", "print the JSON Schema of a file, for editors")
    command.add_argument(
        "of", nargs="?", choices=["configuration", "inventory", "replica"], default="configuration",
        help="which file: gateway-sidecar.yaml, an inventory, or a <replica>.yaml (default: %(default)s)",
    )  # fmt: skip


def _default_config() -> Path:
    return Path(os.environ.get("GATEWAY_SIDECAR_CONFIG", DEFAULT_CONFIG))
