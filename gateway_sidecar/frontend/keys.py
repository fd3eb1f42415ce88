"""The file of hashed keys: one `NAME:SHA256` a line, and what bounds the key after it. Keys themselves are in no file:
each is shown once. A line `plan NAME` has bounds for all keys that name the plan.

SHA-256 without salt or stretching is enough for keys that nobody can guess, such as those made here (256 random bits).
"""

from __future__ import annotations

import codecs
import datetime
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.config.text_file import FileText, read_file
from gateway_sidecar.config.values import show
from gateway_sidecar.domain.trust import GROUP_WRITES, OTHERS
from gateway_sidecar.errors import ConfigError, FrontendError
from gateway_sidecar.frontend.words import link_text, parse_expiry, parse_words

MOST_BYTES = 64 * 1024 * 1024  # A line has some 100 bytes: hundreds of thousands of keys.
_MOST_PROBLEMS = 10  # A screen of them; the rest is counted.
_KEY = rf"({NAME})[ \t]*:[ \t]*(?:sha256:)?([0-9A-Fa-f]{{64}})((?:[ \t][^\n]*)?)"
_PLAN = rf"plan[ \t]+({NAME})((?:[ \t][^\n]*)?)"
_KEY_LINE, _PLAN_LINE = re.compile(_KEY), re.compile(_PLAN)
_KEY_LINES = re.compile(rf"^[ \t]*{_KEY}$", re.MULTILINE)
_PLAN_LINES = re.compile(rf"^[ \t]*{_PLAN}$", re.MULTILINE)

_NO_KEY = "is not NAME:SHA256; make it with `gateway-sidecar key add NAME`"
_OLD_ITSELF = "old is the key itself; use `gateway-sidecar key rotate`"

PLAN_LINK = "@"
"""What a plan's link begins with; a key's is its hash."""

Links = Mapping[str, str]
"""What nginx looks for: a key's SHA-256, in lower-case hex, or `@` and a plan's name -> the name and its bounds."""


def shown_date(seconds: float) -> str:
    """Seconds since 1970 as a file has them, in UTC."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


class Key(NamedTuple):
    """One key: its name, its SHA-256, and the words after it as they are written."""

    name: str
    digest: str
    words: Mapping[str, str]

    @property
    def expires(self) -> int | None:
        """When it expires, in seconds since 1970; None for never."""
        return parse_expiry(self.words["expires"]) if "expires" in self.words else None

    @property
    def old_until(self) -> int | None:
        """Until when its old secret counts, too; None where there is none."""
        return parse_expiry(self.words["old_until"]) if "old_until" in self.words else None

    def links(self) -> Iterator[tuple[str, str]]:
        """What nginx looks for. An old secret is a key of the same name that expires."""
        yield self.digest, self.name + link_text(self.words)
        if (until := self.old_until) is not None:
            ends = min(until, self.expires or until)
            yield self.words["old"], f"{self.name}{link_text({**self.words, 'expires': shown_date(ends)})}"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """All that a file says: keys by name, and the bounds of each plan."""

    keys: Mapping[str, Key]
    plans: Mapping[str, Mapping[str, str]]

    def links(self) -> Links:
        """What nginx looks for."""
        found = {PLAN_LINK + name: name + link_text(words) for name, words in self.plans.items()}
        for key in self.keys.values():
            found.update(key.links())
        return found

    def bounds_of(self, key: Key) -> Mapping[str, str]:
        """What holds for a key: its own bounds, and its plan's where it has none of its own."""
        return {**self.plans.get(key.words.get("plan", ""), {}), **key.words}


def no_plan(name: str, plans: Iterable[str]) -> str:
    """Why a key cannot have this plan."""
    known = ", ".join(plans)
    cure = f"use {known}, or make it" if known else "make it"
    return f"there is no plan {show(name)}; {cure} with `gateway-sidecar key plan {name}`"


def read_keys(path: Path) -> KeyFile:
    """What a file says. Raises FrontendError, with a line for each mistake."""
    return parse_keys(read_content(path), str(path))


def read_content(path: Path) -> bytes:
    """What the file holds, if it may be believed at all. Raises FrontendError."""
    try:
        file = read_file(path, MOST_BYTES)
    except ConfigError as error:
        words = "create it, or name another with --config"
        raise FrontendError([line.replace(words, _cure(path)) for line in error.problems]) from None
    if trouble := _trouble(file):
        raise FrontendError([f"{path}: {trouble}"])
    if not file.content.removeprefix(codecs.BOM_UTF8).strip():
        # A file that is being written is empty for a moment, and that must lock nobody out.
        none = "if no key is wanted, write a line that begins with #"
        raise FrontendError([f"{path}: is empty; {_cure(path)}; {none}"])
    return file.content


def _cure(path: Path) -> str:
    return f"add a key with gateway-sidecar key add NAME --file {path}"


def key_of(line: bytes) -> Key | None:
    """The key of a line; None for any other line, and one with a mistake."""
    try:
        return read_key(line.strip().decode("utf-8", "replace"))
    except ValueError:
        return None


def read_key(line: str) -> Key:
    """The key of a line. Raises ValueError, which shows no key or hash."""
    match = _KEY_LINE.fullmatch(line)
    if match is None:
        raise ValueError(_NO_KEY)
    key = Key(match[1], match[2].lower(), parse_words(match[3]))
    if key.words.get("old") == key.digest:
        raise ValueError(_OLD_ITSELF)
    return key


def read_plan(line: str) -> tuple[str, Mapping[str, str]]:
    """The plan of a line: its name and its bounds. Raises ValueError."""
    match = _PLAN_LINE.fullmatch(line)
    if match is None:
        raise ValueError("is no plan; make it with `gateway-sidecar key plan NAME`")
    return match[1], parse_words(match[2], of_plan=True)


def parse_keys(content: bytes, name: str) -> KeyFile:
    """What a file's content says. Raises FrontendError, with a line for each mistake that shows no key or hash."""
    text = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").decode("utf-8", "replace")
    found = _all_well(text)
    if found is None:
        found, problems = _line_by_line(text, name)
        if problems:
            further = len(problems) - _MOST_PROBLEMS
            raise FrontendError(problems[:_MOST_PROBLEMS] + ([f"{name}: and {further} more"] if further > 0 else []))
    return found


def _all_well(text: str) -> KeyFile | None:
    """What it says, if that needs no explanation, as most likely: so 10,000 keys take 20 ms, which somebody who
    revokes one waits for.
    """
    rows, plans = _KEY_LINES.findall(text), _PLAN_LINES.findall(text)
    lines = map(str.strip, text.split("\n"))
    if len(rows) + len(plans) != sum(1 for line in lines if line and not line.startswith("#")):
        return None
    try:
        keys = {name: Key(name, digest.lower(), parse_words(words)) for name, digest, words in rows}
        bounds = {name: parse_words(words, of_plan=True) for name, words in plans}
    except ValueError:
        return None
    digests = {key.digest for key in keys.values()}
    old = [key.words["old"] for key in keys.values() if "old" in key.words]
    unknown = {key.words["plan"] for key in keys.values() if "plan" in key.words} - bounds.keys()
    counts = len(keys), len(digests | set(old)), len(bounds)
    return None if unknown or counts != (len(rows), len(rows) + len(old), len(plans)) else KeyFile(keys, bounds)


def _line_by_line(text: str, name: str) -> tuple[KeyFile, list[str]]:
    """The same, and what is wrong, for people."""
    read = _Lines(name)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in lines:
        if (plan := _PLAN_LINE.fullmatch(line)) is not None:
            read.take_plan(number, plan[1], plan[2])
    for number, line in lines:
        if (key := _KEY_LINE.fullmatch(line)) is not None:
            read.take_key(number, key[1], key[2].lower(), key[3])
        elif _PLAN_LINE.fullmatch(line) is None:
            read.refuse(number, _NO_KEY)
    return KeyFile(read.keys, read.plans), [problem for _, problem in sorted(read.problems)]


class _Lines:
    """What lines have said so far."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.keys: dict[str, Key] = {}
        self.plans: dict[str, Mapping[str, str]] = {}
        self.problems: list[tuple[int, str]] = []
        self._lines: dict[str, int] = {}
        self._owners: dict[str, str] = {}

    def refuse(self, number: int, why: str) -> None:
        self.problems.append((number, f"{self._file}:{number}: {why}"))

    def take_plan(self, number: int, name: str, words: str) -> None:
        if name in self.plans:
            line = self._lines[PLAN_LINK + name]
            self.refuse(number, f"plan {show(name)} is in line {line} already; use another name")
            return
        try:
            self.plans[name] = parse_words(words, of_plan=True)
        except ValueError as error:
            self.refuse(number, str(error))
            self.plans[name] = {}
        self._lines[PLAN_LINK + name] = number

    def take_key(self, number: int, name: str, digest: str, text: str) -> None:
        try:
            words = parse_words(text)
        except ValueError as error:
            self.refuse(number, str(error))
            return
        if name in self.keys:
            self.refuse(number, f"{show(name)} is named in line {self._lines[name]} already; use another name")
            return
        if "plan" in words and words["plan"] not in self.plans:
            self.refuse(number, f"plan: {no_plan(words['plan'], self.plans)}")
            return
        key = Key(name, digest, words)
        owners = {digest: name}
        if "old" in words and owners.setdefault(words["old"], "") == name:
            self.refuse(number, _OLD_ITSELF)
            return
        for each in sorted(owners.keys() & self._owners.keys()):
            self.refuse(number, f"{show(name)} has the same key as {show(self._owners[each])}; remove one of them")
            return
        self.keys[name], self._lines[name] = key, number
        self._owners.update(dict.fromkeys(owners, name))


def _trouble(file: FileText) -> str | None:
    if file.mode & OTHERS or file.mode & GROUP_WRITES:
        return f"others may read or change it (mode {file.mode:04o}); use chmod 0640 or 0600"
    if file.owner not in (0, os.geteuid()):
        return f"belongs to user {file.owner}; it must be root's or the daemon's (user {os.geteuid()})"
    return None
