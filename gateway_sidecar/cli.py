"""The command line.

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 the configuration cannot be used, 79 (`run` alone) ended by `stop`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import select
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, cast
from urllib.parse import quote

from gateway_sidecar import __version__
from gateway_sidecar.api.client import Remote, ask_daemon
from gateway_sidecar.api.commands import add_admin_options, add_replica_commands, admin_of, warn_of_drain
from gateway_sidecar.api.table import render_status
from gateway_sidecar.config import (
    Settings,
    config_schema,
    inventory_schema,
    load_config,
    load_usable,
    replica_schema,
)
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import (
    AdminError,
    BridgeError,
    ConfigError,
    DaemonAway,
    FrontDoorError,
    GatewaySidecarError,
    NotInForce,
    ProcessError,
)
from gateway_sidecar.telemetry.terminal import PrintableStream

if TYPE_CHECKING:
    from gateway_sidecar.control.process.left_running import LeftRunning
    from gateway_sidecar.install import Step
    from gateway_sidecar.supervision.privileges import User

DEFAULT_CONFIG = Path("/etc/gateway-sidecar/gateway-sidecar.yaml")
_STOP_S = 30.0
_ASSUMED = "assumed: its groups in /etc/group and no capabilities, as systemd tells of no unit with this user"
_INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")
EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED = 1, 78, 79


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    arguments = _parser().parse_args(argv)
    with ExitStack() as stack:
        if arguments.command is not _run:  # The daemon's events see to it themselves, and may have colours.
            stack.enter_context(redirect_stdout(cast(TextIO, PrintableStream(sys.stdout))))
            stack.enter_context(redirect_stderr(cast(TextIO, PrintableStream(sys.stderr))))
        code = _run_command(arguments)
    sys.exit(code)


def _run_command(arguments: argparse.Namespace) -> int:
    """Runs it; the exit code. What it has to say of an error is printed."""
    try:
        code: int = arguments.command(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        code = EXIT_CONFIG
    except NotInForce as error:
        print("changed: " + "; ".join(error.changes) if error.changes else "nothing changed")
        for problem in error.problems:
            print(f"PROBLEM: not in force: {problem}", file=sys.stderr)
        code = EXIT_FAILED
    except FrontDoorError as error:
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
    """What serves on although no daemon runs, for the end of a sentence; empty if nothing does."""
    if getattr(arguments, "admin", None) is not None or not (left := _left_of(arguments.config)):
        return ""
    return f". An earlier one left {left}: `gateway-sidecar run` takes that up, `gateway-sidecar stop --all` ends it"


def _left_of(config: Path) -> LeftRunning:
    from gateway_sidecar.control.process.left_running import look_for_left

    settings = load_usable(config)
    return look_for_left(settings.run_dir, settings.state_dir)


class _Parser(argparse.ArgumentParser):
    """Says what was meant, most likely, where a word is not one of those that there are."""

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
            help="the configuration (default: $GATEWAY_SIDECAR_CONFIG, else %(default)s)",
        )  # fmt: skip

    def add(name: str, run: object, text: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        command.set_defaults(command=run)
        add_config(command)
        return command

    def ask(name: str, run: object, text: str, more: str = "") -> argparse.ArgumentParser:
        command = add(name, run, text, more)
        add_admin_options(command)
        return command

    add(
        "run",
        _run,
        "run the daemon in the foreground",
        "SIGTERM leaves nginx and the routers running for the next start; Ctrl-C takes them down too; "
        "SIGHUP reads the configuration again.",
    )
    command = add("check", _check, "validate the configuration and this machine, and change nothing")
    command.add_argument(
        "--as", dest="as_user", metavar="USER",
        help="look with this user's rights (default, for root: the daemon's user, where one is known)",
    )  # fmt: skip
    command = add("plan", _plan, "show what a running daemon, or a fresh one, would do next, and do none of it")
    command.add_argument("--json", action="store_true", help="for programs")
    command = ask("status", _status, "show services, routers and replicas")
    command.add_argument("--json", action="store_true", help="for programs")
    command = ask(
        "drain",
        _drain,
        "take a replica out of rotation and return when it is safe to stop its engine",
        "It stays out until its socket is replaced, or `resume`.",
    )
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    command.add_argument(
        "--timeout", type=float, metavar="S", help="give up after S seconds (default: drain.timeout_s)"
    )
    command = ask("resume", _resume, "take a drained replica back into rotation")
    command.add_argument("service", metavar="SERVICE")
    command.add_argument("replica", metavar="REPLICA")
    add_replica_commands(commands, add_config)
    command = ask("router", _router, "replace a service's router by a new one without failing a request")
    command.add_argument("action", choices=["restart"], metavar="restart")
    command.add_argument("service", metavar="SERVICE")
    command = ask("stop", _stop, "end the daemon", "nginx, the routers and every stream go on, unless --all is given.")
    command.add_argument("--all", action="store_true", help="nginx and the routers as well, after what is in flight")
    command.add_argument(
        "--timeout", type=float, metavar="S",
        help=f"with --all: end what is still in flight after S seconds (default: {_STOP_S:g})",
    )  # fmt: skip
    command.set_defaults(misused=command.error)
    ask("reload", _reload, "have the daemon read its configuration again and report what changed")
    for name, text in (
        ("install", "put the systemd unit, the user, directories and an example configuration in place"),
        ("uninstall", "stop the daemon and all that it started, and remove the unit"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=_install if name == "install" else _uninstall)
        command.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="another root directory")
        command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        if name == "install":
            command.add_argument(
                "--peers", action="store_true", help="let the daemon put replicas' own addresses on this machine"
            )
    _add_key_commands(commands.add_parser("key", help="make, revoke and list the keys of frontend.auth.keys_file"))
    schema = commands.add_parser("schema", help="print the JSON Schema of the files, for editors")
    schema.add_argument(
        "of",
        nargs="?",
        choices=list(_SCHEMAS),
        default="configuration",
        help="of which file: gateway-sidecar.yaml, an inventory, or a <replica>.yaml",
    )
    schema.set_defaults(command=_schema)
    return parser


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    parser.description = "Keys that let clients in. The file holds their hashes; a running daemon follows it at once."
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("add", _key_add, "make a key, store its hash, and print it: it is shown this once"),
        ("revoke", _key_revoke, "remove a key; what it is used for now goes on, nothing new comes in"),
        ("list", _key_list, "print the names of all keys, and until when they let in where that has an end"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(command=run)
        action.add_argument("--file", type=Path, required=True, metavar="FILE", help="the file of keys")
        if name != "list":
            action.add_argument("name", metavar="NAME", help="letters, digits and . _ -, 64 at most")
        if name == "add":
            action.add_argument("--stdin", action="store_true", help="take the key from standard input, one line")
            action.add_argument("--expires", metavar="DATE", help="let in until then: 2027-01-31 or 2027-01-31T12:00Z")


def _key_add(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.frontend.keys import add_key

    given = sys.stdin.readline().strip() if arguments.stdin else None
    key = add_key(arguments.file, arguments.name, given, expires=arguments.expires)
    if not arguments.stdin:
        print(key)
    return 0


def _key_revoke(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.frontend.keys import revoke_key

    revoke_key(arguments.file, arguments.name)
    print(f"{arguments.name} is revoked")
    return 0


def _key_list(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.frontend.keys import described, read_keys

    for owner in sorted(read_keys(arguments.file).values()):
        print(described(owner))
    return 0


def _default_config() -> Path:
    return Path(os.environ.get("GATEWAY_SIDECAR_CONFIG", DEFAULT_CONFIG))


def _run(arguments: argparse.Namespace) -> int:
    import faulthandler

    import uvloop

    from gateway_sidecar.app import run_daemon
    from gateway_sidecar.supervision.memory import share_arenas
    from gateway_sidecar.telemetry.logs import get_logger, set_up_logs, take_in_libraries

    share_arenas()
    settings = load_config(arguments.config)
    set_up_logs(settings.log.format, settings.log.level)
    take_in_libraries()
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: the log is to show where we hung.
    try:
        by_command = uvloop.run(run_daemon(arguments.config.absolute(), settings))
    except (BridgeError, ProcessError, OSError) as error:
        get_logger().critical("daemon.failed", reason=str(error))
        return EXIT_FAILED
    # Told apart from a signal, so that systemd starts a daemon again that somebody's SIGTERM ended, and no other.
    return EXIT_STOPPED if by_command else 0


def _check(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.check import check_machine, user_to_be

    of_unit = arguments.config == DEFAULT_CONFIG
    user = user_to_be(arguments.as_user, load_usable(arguments.config), of_unit=of_unit)
    if user is not None:
        _become(user)
        print(f"ok    with the rights of {user}, {user.why}; {user.told or _ASSUMED}")
    settings = load_config(arguments.config)
    print(f"ok    {arguments.config}: {_summary(settings)}")
    findings = asyncio.run(check_machine(settings, assumed=user is not None and user.told is None))
    for finding in findings:
        print(finding.line())
    return EXIT_FAILED if any(finding.failed for finding in findings) else 0


def _become(user: User) -> None:
    from gateway_sidecar.supervision.privileges import become

    become(user)
    if not os.access(sys.executable, os.X_OK):
        raise ProcessError(f"{user} cannot run {sys.executable}; install gateway-sidecar where that user may")


def _summary(settings: Settings) -> str:
    names = ", ".join(service.name for service in settings.services)
    return f"{len(settings.services)} service{'s' * (len(settings.services) != 1)} ({names})"


def _plan(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.dry_run import fresh_plan

    settings = load_config(arguments.config)
    try:
        code, answer = ask_daemon(settings.run_dir / "admin.sock", "GET", "/v1/plan")
        actions, whose = answer["actions"], "the running daemon"
    except AdminError:
        code, actions, whose = 200, asyncio.run(fresh_plan(settings)), "a fresh daemon"
    if arguments.json:
        print(json.dumps({"by": whose, "actions": actions}, indent=2))
        return 0 if code == 200 else EXIT_FAILED
    print(f"{whose} would do:" if actions else f"{whose} would do nothing: all is as it should be")
    for action in actions:
        print(f"  {action['service']}/{action['replica']}: {action['action']}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    _, answer = ask_daemon(admin_of(arguments), "GET", "/v1/status")
    print(json.dumps(answer, indent=2) if arguments.json else render_status(answer))
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    query = "" if arguments.timeout is None else f"?timeout_s={arguments.timeout:g}"
    place, target = admin_of(arguments), _replica_target(arguments)
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


def _resume(arguments: argparse.Namespace) -> int:
    code, answer = ask_daemon(admin_of(arguments), "POST", f"{_replica_target(arguments)}/resume")
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print(f"{arguments.replica} goes back into rotation")
    return 0


def _replica_target(arguments: argparse.Namespace) -> str:
    return f"/v1/services/{_quoted(arguments.service)}/replicas/{_quoted(arguments.replica)}"


def _router(arguments: argparse.Namespace) -> int:
    target = f"/v1/services/{_quoted(arguments.service)}/router/restart"
    code, answer = ask_daemon(admin_of(arguments), "POST", target, timeout_s=None)
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print(f"{arguments.service} has a new router (pid {answer['pid']}) after {answer['took_s']:.1f} s")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    if arguments.timeout is not None and not arguments.all:
        arguments.misused("--timeout belongs to --all: without it nothing that is in flight ends")
    socket = admin_of(arguments)
    timeout_s = _STOP_S if arguments.timeout is None else arguments.timeout
    query = f"all=true&timeout_s={timeout_s:g}" if arguments.all else "all=false"
    try:
        code, answer = ask_daemon(socket, "POST", f"/v1/stop?{query}")
    except DaemonAway:
        if arguments.all and not isinstance(socket, Remote) and (left := _left_of(arguments.config)):
            return _end_left(arguments, left, timeout_s)
        raise
    if code != 202:
        raise AdminError(str(answer.get("error")))
    if isinstance(socket, Remote):
        print("it stops, with nginx and all routers" if arguments.all else "it stops; nginx and the routers go on")
        return 0
    with suppress(ProcessLookupError):
        daemon = os.pidfd_open(answer["pid"])
        select.select([daemon], [], [])
    print("stopped, with nginx and all routers" if arguments.all else "stopped; nginx and the routers go on")
    return 0


def _end_left(arguments: argparse.Namespace, left: LeftRunning, timeout_s: float) -> int:
    """What `stop --all` does where no daemon runs that could."""
    from gateway_sidecar.app import end_left
    from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, user_called
    from gateway_sidecar.telemetry.logs import set_up_logs

    settings = load_usable(arguments.config)
    owner = settings.run_dir.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        # The directories are that user's, who writes there what is to be ended; replicas' addresses are not.
        user = user_called(str(owner), f"to whom {settings.run_dir} belongs")
        _become(replace(user, capabilities=frozenset((CAP_NET_ADMIN,))))
    set_up_logs("console", "error")
    asyncio.run(end_left(arguments.config.absolute(), settings, left, timeout_s=timeout_s))
    print(f"no daemon ran; stopped what an earlier one left: {left}")
    return 0


def _quoted(name: str) -> str:
    return quote(os.fsencode(name), safe="")


def _reload(arguments: argparse.Namespace) -> int:
    code, answer = ask_daemon(admin_of(arguments), "POST", "/v1/reload", timeout_s=None)
    if code == 422:
        raise ConfigError(list(answer["problems"]))
    if code == 503 and "changes" in answer:
        raise NotInForce(list(answer["problems"]), list(answer["changes"]))
    if code != 200:
        raise AdminError(str(answer.get("error")))
    print("changed: " + "; ".join(answer["changes"]) if answer["changes"] else "nothing changed")
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.install import install

    return _print_steps(install(arguments.root, peers=arguments.peers, dry_run=arguments.dry_run))


def _uninstall(arguments: argparse.Namespace) -> int:
    from gateway_sidecar.install import uninstall

    return _print_steps(uninstall(arguments.root, dry_run=arguments.dry_run))


def _print_steps(steps: Iterable[Step]) -> int:
    failed = False
    for step in steps:
        print(step)
        failed |= step.failed
    return EXIT_FAILED if failed else 0


_SCHEMAS = {"configuration": config_schema, "inventory": inventory_schema, "replica": replica_schema}


def _schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(_SCHEMAS[arguments.of](), indent=2))
    return 0
