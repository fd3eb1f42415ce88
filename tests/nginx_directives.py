"""nginx's configuration as nginx's own reader takes it: words and blocks, without comments, quotes and white space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", '"': '"', "'": "'", "\\": "\\"}
_TOKEN = re.compile(
    r"""(?: [ \t\r\n] | \#[^\n]* )*+
        (?: (?P<mark> [;{}] | \Z )
          | "(?P<double> (?: [^"\\] | \\. )*+ )" (?= [ \t\r\n;{)] )
          | '(?P<single> (?: [^'\\] | \\. )*+ )' (?= [ \t\r\n;{)] )
          | (?P<bare> (?! ["'] ) (?: [^ \t\r\n;{\\] | \\. | (?<= \$ ) \{ )++ ) (?! \Z )
        )""",
    re.VERBOSE | re.DOTALL,
)
"""After a word in quotes comes white space, a mark or a bracket. A word without holds a brace only after a dollar."""
_LUA = re.compile(
    r""" "(?:[^"\\]|\\.)*+" | '(?:[^'\\]|\\.)*+' | (?P<brace>[{}]) | [^{}"']++ """, re.VERBOSE | re.DOTALL
)


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
    directives, _ = _block(text, 0, end="")
    return directives


def _block(text: str, at: int, *, end: str) -> tuple[tuple[Directive, ...], int]:
    """What stands from there to the mark that ends the block, and where the text goes on."""
    found: list[Directive] = []
    words: list[str] = []
    while (token := _TOKEN.match(text, at)) is not None:
        at = token.end()
        mark = token["mark"]
        if mark is None:
            words.append(_unescaped(token[token.lastgroup or 0]))
        elif mark == end and not words:
            return tuple(found), at
        elif mark in ("}", "") or not words:
            break
        else:
            inside = None
            if mark == "{":
                lua = words[0].endswith("_by_lua_block")
                inside, at = _lua(text, at) if lua else _block(text, at, end="}")
            found.append(Directive(tuple(words), inside))
            words = []
    raise ValueError(f"unexpected after {' '.join(words)!r}: {text[at - 1 : at + 60]!r}")


def _unescaped(word: str) -> str:
    return re.sub(r"(?s)\\(.)", lambda found: _ESCAPED.get(found[1], found[0]), word) if "\\" in word else word


def _lua(text: str, begin: int) -> tuple[tuple[Directive], int]:
    """Lua's own text up to the brace that ends it, and past it."""
    at, depth = begin, 1
    while depth:
        if (found := _LUA.match(text, at)) is None:
            raise ValueError(f"Lua has no end: {text[begin : begin + 60]!r}")
        depth += {"{": 1, "}": -1}.get(found["brace"], 0)
        at = found.end()
    return (Directive((" ".join(text[begin : at - 1].split()),)),), at
