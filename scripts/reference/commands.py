"""docs/reference/commands.md, from the parser of the command line and from the exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from gateway_sidecar.cli import _parser
from gateway_sidecar.commands.defaults import DEFAULT_CONFIG
from gateway_sidecar.commands.exit_codes import MEANINGS
from scripts.reference.tables import sentence, table, words

_ADMIN = "admin"
_SYSTEMD = {True: "starts the daemon again", False: "does not start the daemon again", None: ""}


class Command(NamedTuple):
    """One command: `replica add`, its parser, and whether it has further commands below it."""

    name: str
    parser: argparse.ArgumentParser
    is_family: bool


def all_commands(parser: argparse.ArgumentParser | None = None, before: str = "") -> Iterator[Command]:
    """Every command, those below it after it."""
    for action in (parser or _parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                full = f"{before}{name}"
                is_family = any(isinstance(it, argparse._SubParsersAction) for it in below._actions)
                yield Command(full, below, is_family)
                yield from all_commands(below, f"{full} ")


def commands() -> str:
    """A section for each command."""
    return "\n\n".join(_section(command) for command in all_commands())


def common_options() -> str:
    """The options that many commands have."""
    return table(("option", "meaning"), (_row(action) for action in _common()))


def exit_codes() -> str:
    """All of them."""
    rows = [(str(int(code)), code.name.lower(), it.text, _SYSTEMD[it.restarts]) for code, it in MEANINGS.items()]
    return table(("code", "name", "meaning", "systemd, after `run`"), rows)


def _section(command: Command) -> str:
    parts = [f"### gateway-sidecar {command.name}", command.parser.description or ""]
    if command.is_family:
        return "\n\n".join(parts)
    parts.insert(1, f"```text\n{_usage(command)}\n```")
    groups = [it for it in command.parser._action_groups if it.description]
    own = [it for it in _actions(command.parser) if it.help and not _is_common(it)]
    if own:
        parts.append(table(("option", "meaning"), map(_row, own)))
    parts += [f"{(it.title or '').capitalize()}: {it.description}" for it in groups]
    common = [it.option_strings[0] for it in _actions(command.parser) if _is_common(it)]
    if common:
        parts.append(f"It also takes {words(common, 'and')}: see [common options](#common-options).")
    return "\n\n".join(parts)


# -- what a parser has


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [it for it in parser._actions if not isinstance(it, argparse._HelpAction | argparse._SubParsersAction)]


@cache
def _common() -> list[argparse.Action]:
    """Those of a command that asks the daemon for a word, and nothing else."""
    return next(_actions(command.parser) for command in all_commands() if command.name == "join")


def _is_common(action: argparse.Action) -> bool:
    return any(_help(action) == _help(it) for it in _common())


def _help(action: argparse.Action) -> str:
    """Its text, with the default that it names, whatever the environment says."""
    default = DEFAULT_CONFIG if action.dest == "config" else action.default
    return (action.help or "") % {"default": default}


def _row(action: argparse.Action) -> tuple[str, str]:
    metavar = _metavar(action)
    names = [f"{name} {metavar}".strip() for name in action.option_strings] or [metavar]
    return ", ".join(f"`{name}`" for name in names), sentence(_help(action))


def _metavar(action: argparse.Action) -> str:
    """What stands for its value; empty if it takes none."""
    if action.nargs == 0:
        return ""
    return str(action.metavar or "|".join(map(str, action.choices or [action.dest.upper()])))


def _usage(command: Command) -> str:
    """The line that shows all but common options. argparse's own differs from one Python to the next."""
    actions = [it for it in _actions(command.parser) if not _is_common(it)]
    exclusive = command.parser._mutually_exclusive_groups
    parts, done = ["gateway-sidecar", command.name, *_positionals(actions, exclusive)], set[int]()
    for action in actions:
        group = next((it for it in exclusive if action in it._group_actions), None)
        if id(group) in done or (group is None and not action.option_strings):
            continue
        if group is None:
            parts.append(_optional(_spelt(action), action.required))
            continue
        done.add(id(group))
        parts.append(_optional(" | ".join(map(_spelt, group._group_actions)), group.required, "()"))
    return " ".join(part for part in parts if part)


def _positionals(actions: list[argparse.Action], exclusive: list[argparse._MutuallyExclusiveGroup]) -> Iterator[str]:
    """SERVICE REPLICA, or [SERVICE [REPLICA]]."""
    own = [it for it in actions if not it.option_strings and not any(it in group._group_actions for group in exclusive)]
    yield from (_metavar(it) for it in own if it.nargs != "?")
    left = [_metavar(it) for it in own if it.nargs == "?"]
    yield " ".join(f"[{it}" for it in left) + "]" * len(left)


def _spelt(action: argparse.Action) -> str:
    return f"{'|'.join(action.option_strings)} {_metavar(action)}".strip()


def _optional(text: str, required: bool, around: str = "") -> str:
    if not required:
        return f"[{text}]"
    return f"{around[:1]}{text}{around[1:]}"
