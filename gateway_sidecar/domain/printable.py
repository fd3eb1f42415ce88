"""Makes foreign text safe to show: on a terminal, in a table's cell, in a log line. Pure. It escapes everything that is
not printed as itself: control characters and terminal escapes, line breaks of every kind, what turns the direction of
writing, invisible characters, halves of surrogate pairs.
"""

from __future__ import annotations

LONGEST = 300
"""Characters. No reason has to be longer."""


def printable(text: str, most: int = LONGEST) -> str:
    """The text on one line, of `most` characters at the most before they are escaped."""
    if len(text) > most:
        text = text[: most - 3] + "..."
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """The same for a whole text whose line breaks are its own."""
    return text if text.isprintable() else "\n".join(printable(line, len(line)) for line in text.split("\n"))


def counted(number: float, noun: str) -> str:
    """`1 request`, `2 requests`."""
    shown = f"{number:.0f}"
    return f"{shown} {noun}{'s' * (shown != '1')}"


def age(seconds: float) -> str:
    """A duration in its two largest units: `2h05m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
