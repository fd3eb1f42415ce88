"""The exit codes of all commands. docs/reference/commands.md and the man page have them from here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple


class Exit(IntEnum):
    """What a command, or the daemon, ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CUT = 3
    CONFIG = 78
    STOPPED = 79
    INTERRUPTED = 130


class Meaning(NamedTuple):
    """briefly: for `--help`. text: a sentence. restarts: whether systemd starts a daemon again that ends with it; None
    where the daemon never does.
    """

    briefly: str
    text: str
    restarts: bool | None


MEANINGS: Mapping[Exit, Meaning] = {
    Exit.DONE: Meaning("done", "The command has done what it was asked for.", True),
    Exit.FAILED: Meaning(
        "failed",
        "The command failed, and its message says why and what to do. `check` found an error, or `status --problems` a"
        " problem.",
        True,
    ),
    Exit.USAGE: Meaning("wrong usage", "The command line is wrong, and the message says where.", True),
    Exit.CUT: Meaning(
        "left, but requests were cut off",
        "`leave` alone: the gateway has left, and connections with requests in flight were cut.",
        None,
    ),
    Exit.CONFIG: Meaning(
        "invalid configuration", "The configuration cannot be used. The message has a line for each error.", False
    ),
    Exit.STOPPED: Meaning(
        "ended by a command", "`run` alone: `gateway-sidecar stop` or `gateway-sidecar leave` ended the daemon.", False
    ),
    Exit.INTERRUPTED: Meaning(
        "interrupted", "Ctrl-C ended the command. `run`, which expects Ctrl-C, ends with 0.", None
    ),
}
