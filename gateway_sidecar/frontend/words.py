"""What may stand after a key's hash in the file of keys, and after a plan's name: words such as `tokens_per_day=2M`.

`link_text` is the same for nginx (`share/bounds.lua`): numbers and times are plain numbers there.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from functools import lru_cache

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.config.values import show

NUMBERS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "concurrent")
BOUNDS = ("models", *NUMBERS)
"""What a plan may have, and what a key may have of its own."""

NONE = "none"
"""Says that there is no such bound, whatever the plan says."""

PAUSED = "paused"
WORDS = ("plan", *BOUNDS, PAUSED, "expires", "old", "old_until", "note")
"""What a key may have, in this order."""

_OF_LINKS = ("plan", *BOUNDS, PAUSED, "expires")
_WORD = re.compile(r"\s+([A-Za-z_]+)(?:=(?:\"([^\"]*)\"|([^\s\"]*)))?(?=\s|\Z)")
_NUMBER = re.compile(r"([0-9]{1,15})([kM]?)")
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}
_MODEL = re.compile(r"[^\s,\"'$;{}\\#\x00-\x20\x7f]{1,256}")
_MOST = 10**15
"""Up to there Lua counts exactly."""
_LAST_S = 253402300800
"""The first second of the year 10000, which has no date."""
_LONGEST_NOTE = 200  # A choice: two lines of a terminal.
_LONGEST_LINK = 4000
"""A symbolic link leads to 4,095 bytes at most."""


def parse_expiry(text: str) -> int:
    """Seconds since 1970. A day alone is its first moment in UTC. Raises ValueError."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{show(text)} is not a date; use one such as 2027-01-31 or 2027-01-31T12:00Z") from None
    seconds = int((at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp())
    if not 0 <= seconds < _LAST_S:
        raise ValueError(f"{show(text)} is not in a year from 1970 to 9999; use one such as 2027-01-31")
    return seconds


def parse_number(text: str) -> int:
    """A whole number, such as 500, 20k or 2M. Raises ValueError."""
    match = _NUMBER.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{show(text)} is not a number above 0; use one such as 500, 20k or 2M, or {NONE}")
    number = int(match[1]) * _TIMES[match[2]]
    if number > _MOST:
        raise ValueError(f"{show(text)} is more than 10^15; use {NONE} for no bound")
    return number


@lru_cache(maxsize=65536)
def parse_words(text: str, *, of_plan: bool = False) -> Mapping[str, str]:
    """The words of a line, as they are written. Raises ValueError for the first one that is wrong."""
    found: dict[str, str] = {}
    allowed = BOUNDS if of_plan else WORDS
    text, at = f" {text}".rstrip(), 0
    while at < len(text):
        match = _WORD.match(text, at)
        # What is not understood is not shown: it may be a key that somebody has put there.
        if match is None or (match[1] not in allowed and "=" not in match[0]):
            raise ValueError("what follows is not WORD=VALUE; put quotes around a value with spaces")
        word, value = match[1], match[2] if match[2] is not None else match[3]
        if word not in allowed:
            raise ValueError(f"{show(word)} is no word for a {'plan' if of_plan else 'key'}; use {', '.join(allowed)}")
        if word in found:
            raise ValueError(f"{word}: is given twice; remove one of them")
        if (value is None) != (word == PAUSED) or value == "":
            raise ValueError(
                f"{word}: takes no value; write it alone" if word == PAUSED else f"{word}: has no value; give one"
            )
        try:
            check_word(word, value or "")
        except ValueError as error:
            raise ValueError(f"{word}: {error}") from None
        found[word] = value or ""
        at = match.end()
    if ("old" in found) != ("old_until" in found):
        raise ValueError("old and old_until belong together; use `gateway-sidecar key rotate`")
    if len(link_text(found)) > _LONGEST_LINK:
        raise ValueError(f"models: the names have more than {_LONGEST_LINK} characters; leave some out")
    return found


def check_word(word: str, value: str) -> None:
    """Raises ValueError for a value that this word cannot have."""
    if word in NUMBERS and value != NONE:
        parse_number(value)
    elif word == "models" and value != NONE:
        for name in value.split(","):
            if not _MODEL.fullmatch(name):
                raise ValueError(f"{show(name)} is not a model's name; write names with commas and no spaces between")
    elif word in ("expires", "old_until"):
        parse_expiry(value)
    elif word == "plan" and not re.fullmatch(NAME, value):
        raise ValueError(f"{show(value)} is not a plan's name; use letters, digits and . _ -, 64 at most")
    elif word == "old" and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("is not the SHA-256 of a key; use `gateway-sidecar key rotate`")
    elif word == "note" and (len(value) > _LONGEST_NOTE or not value.isprintable() or '"' in value):
        raise ValueError(f"is not a text of {_LONGEST_NOTE} printable characters without quotes at most; use another")


def written(words: Mapping[str, str]) -> str:
    """The words as they stand in a line, with a space before each."""
    parts = []
    for word in WORDS:
        if word in words:
            value = words[word]
            quoted = f'"{value}"' if re.search(r"\s", value) else value
            parts.append(f" {word}" if word == PAUSED else f" {word}={quoted}")
    return "".join(parts)


def link_text(words: Mapping[str, str]) -> str:
    """What nginx has to know of the words, with a space before each."""
    parts = []
    for word in _OF_LINKS:
        if word not in words:
            continue
        value = words[word]
        if word in NUMBERS and value != NONE:
            value = str(parse_number(value))
        elif word == "expires":
            value = str(parse_expiry(value))
        parts.append(f" {word}" if word == PAUSED else f" {word}={value}")
    return "".join(parts)
