"""How commands show text on a terminal: how wide it is, and what of it is coloured."""

from __future__ import annotations

import os
import re
import shutil
import sys

from gateway_sidecar.telemetry.terminal import coloured

_RED, _YELLOW, _GREEN = "31", "33", "32"
_BY_WORD = {
    **dict.fromkeys(("FAILED", "PROBLEM:", "NGINX DOWN:", "NOT IN FORCE:", "UNANSWERED:", "SOURCE:", "!!"), _RED),
    **dict.fromkeys(("foreign", "unreachable", "dead", "refused:", "SCALING HOOK:", "router:"), _RED),
    **dict.fromkeys(("WAITING", "seen", "loading", "registering", "draining", "absent", "!"), _YELLOW),
    **dict.fromkeys(("ok", "serving"), _GREEN),
}
_ROW = re.compile(
    r"^(?P<before>(?:\S+/\S+ is | +(?:\S+ +)?|\S+ )?)"
    rf"(?P<word>{'|'.join(re.escape(word) for word in sorted(_BY_WORD, key=len, reverse=True))})(?P<rest>(?: .*)?)$"
)


def width() -> int | None:
    """Columns of the terminal; None where standard output is none."""
    return max(shutil.get_terminal_size().columns, 20) if sys.stdout.isatty() else None


def has_colours() -> bool:
    """Whether the reader wants them and the terminal has them: no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def paint(text: str) -> None:
    """Prints it, in colours where there are any."""
    if not has_colours():
        print(text)
        return
    for line in text.split("\n"):
        print_line(line)


def print_line(line: str, end: str = "\n") -> None:
    """Prints one line, with the word in colour that says how it is."""
    found = _ROW.match(line)
    if found is None:
        print(line, end=end)
        return
    sys.stdout.write(found["before"])
    coloured(sys.stdout, found["word"], _BY_WORD[found["word"]])
    print(found["rest"], end=end)
