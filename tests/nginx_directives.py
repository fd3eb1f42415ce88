"""nginx's configuration as nginx's own reader takes it: words and blocks, without comments, quotes and white space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = {"t": "\t", "r": "\r", "n": "\n"}
_NOTHING = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_PLAIN = {'"': re.compile(r'[^"\\]+'), "'": re.compile(r"[^'\\]+"), "": re.compile(r"[^ \t\r\n;{\\]+")}


@dataclass(frozen=True, slots=True)
class Directive:
    """Its words, and what is in its block; None for a directive that ends with a semicolon."""

    words: tuple[str, ...]
    block: tuple[Directive, ...] | None = None

    def everywhere(self) -> Iterator[Directive]:
        """It, and all below it."""
        yield self
        for each in self.block or ():
            yield from each.everywhere()


def read_directives(text: str) -> tuple[Directive, ...]:
    """The directives of a configuration file. Raises ValueError for what nginx would not read."""
    reader = _Reader(text)
    found = reader.block(inner=False)
    if reader.at < len(text):
        raise ValueError(f"a brace too many at {text[reader.at : reader.at + 60]!r}")
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def block(self, *, inner: bool) -> tuple[Directive, ...]:
        found: list[Directive] = []
        words: list[str] = []
        while (mark := self._skip_to_mark()) is not None:
            if mark == "}" and inner and not words:
                self.at += 1
                return tuple(found)
            if mark == ";" and words:
                self.at += 1
                found.append(Directive(tuple(words)))
                words = []
            elif mark == "{" and words:
                self.at += 1
                inside = (Directive((self._lua(),)),) if words[0].endswith("_by_lua_block") else self.block(inner=True)
                found.append(Directive(tuple(words), inside))
                words = []
            elif mark in ";{}":
                if mark == "}" and not inner and not words:
                    return tuple(found)
                raise ValueError(f"unexpected {mark!r} at {self._text[self.at : self.at + 60]!r}")
            else:
                words.append(self._word())
        if inner or words:
            raise ValueError(f"the text ends within {' '.join(words) or 'a block'!r}")
        return tuple(found)

    def _skip_to_mark(self) -> str | None:
        found = _NOTHING.match(self._text, self.at)
        assert found is not None
        self.at = found.end()
        return self._text[self.at] if self.at < len(self._text) else None

    def _word(self) -> str:
        quote = self._text[self.at] if self._text[self.at] in "\"'" else ""
        self.at += len(quote)
        word = ""
        while True:
            if self.at >= len(self._text):
                raise ValueError(f"the text ends within {word[:60]!r}")
            if (plain := _PLAIN[quote].match(self._text, self.at)) is not None:
                word += plain[0]
                self.at = plain.end()
                continue
            mark = self._text[self.at]
            if mark == "\\":
                mark = self._text[self.at + 1]
                word += mark if mark in "\"'\\" else _ESCAPED.get(mark, "\\" + mark)
                self.at += 2
            elif quote and mark == quote:
                self.at += 1
                if (after := self._text[self.at : self.at + 1]) not in (" ", "\t", "\r", "\n", ";", "{", ")"):
                    raise ValueError(f"{after!r} right after {word!r} in quotes")
                return word
            elif not quote and (mark in " \t\r\n;" or (mark == "{" and not word.endswith("$"))):
                return word
            else:
                word += mark
                self.at += 1

    def _lua(self) -> str:
        """Lua's own text up to the brace that ends it, and past it."""
        begin, depth = self.at, 1
        quote = ""
        while depth:
            mark = self._text[self.at]
            if quote:
                if mark == "\\":
                    self.at += 1
                elif mark == quote:
                    quote = ""
            elif mark in "\"'":
                quote = mark
            else:
                depth += {"{": 1, "}": -1}.get(mark, 0)
            self.at += 1
        return " ".join(self._text[begin : self.at - 1].split())
