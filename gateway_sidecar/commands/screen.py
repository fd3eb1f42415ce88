"""How commands show text on a terminal: how wide it is, and what of it is coloured."""

from __future__ import annotations

import os
import re
import shutil
import sys

from gateway_sidecar.telemetry.terminal import coloured, control

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


def has_screen() -> bool:
    """Whether standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """The terminal's other screen. What is too high for it is cut, and the last line says so."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size: tuple[int, int] | None = None

    def draw(self, text: str, _same: str = "") -> None:
        """Shows the text, and touches only lines that are others now."""
        size = shutil.get_terminal_size()
        lines = text.split("\n")
        room = max(size.lines - 1, 2)
        if len(lines) > room:
            more = f"... {len(lines) - room + 1} more lines: make the terminal higher, or give SERVICE"
            lines = [*lines[: room - 1], more[: size.columns]]
        if self._size != tuple(size):
            control(sys.stdout, ("" if self._size else "\x1b[?1049h\x1b[?25l") + "\x1b[2J")
            self._size, self._lines = (size.columns, size.lines), []
        for number, line in enumerate(lines):
            if number >= len(self._lines) or self._lines[number] != line:
                # Erased first: after a line that fills the row the cursor stands on its last character.
                control(sys.stdout, f"\x1b[{number + 1};1H\x1b[K")
                print_line(line, end="") if has_colours() else print(line, end="")
        if len(lines) < len(self._lines):
            control(sys.stdout, f"\x1b[{len(lines) + 1};1H\x1b[J")
        self._lines = lines
        sys.stdout.flush()

    @staticmethod
    def leave() -> None:
        """Shows again what was there before."""
        control(sys.stdout, "\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
