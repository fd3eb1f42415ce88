"""YAML text -> plain values, and where each of them stands in the file.

PyYAML's node tree knows lines, which its constructors throw away. It also takes a key given twice without a
word; here that is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from gateway_sidecar.config.values import show
from gateway_sidecar.domain.printable import printable

Location = tuple[str | int, ...]
"""Keys and indexes from the top of the file to a value."""

_MERGE = "tag:yaml.org,2002:merge"
_TAG = "tag:yaml.org,2002:"
_CONVERTED = {_TAG + "null", _TAG + "bool", _TAG + "int", _TAG + "float"}
_TEXT = {_TAG + "str", _TAG + "timestamp", _TAG + "value"}
_LONGEST_NUMBER = 100  # characters: a number of thousands of digits cannot even be shown
_LONGEST_LINE = 1000  # Characters: some lines of a terminal.
_MOST_NODES = 100_000  # a few nested aliases can stand for billions of values
_DEEPEST = 50  # ten times what a configuration has


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, and how it was written there (scalars only)."""

    line: int
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` is None where the file as a whole is meant; `where` is empty for the file's top."""

    line: int | None
    where: str
    text: str

    def render(self, name: str) -> str:
        """The complete line that a person reads."""
        place = name if self.line is None else f"{name}:{self.line}"
        said = f"{place}: {self.where}: {self.text}" if self.where else f"{place}: {self.text}"
        return printable(said, _LONGEST_LINE)


@dataclass(slots=True)
class Tree:
    """What the file says. `problems` are those of its YAML; `data` is as much as could be read."""

    data: object = None
    places: dict[Location, Place] = field(default_factory=dict)
    key_lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: set[Location] = field(default_factory=set)
    """Values that have a problem of their own and are None in `data`."""

    def line(self, location: Location) -> int:
        """The line of a value, or of the nearest thing around it that is in the file."""
        for depth in range(len(location), -1, -1):
            if (line := self.key_lines.get(location[:depth])) is not None:
                return line
            if (place := self.places.get(location[:depth])) is not None:
                return place.line
        return 1


class _ShallowLoader(yaml.SafeLoader):
    """Refuses lists within lists: PyYAML's scanner goes through all open ones for each token, so 64 KiB of `[` take it
    a second until it finds them too deep."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Called for each `[` and `{`. Raises RecursionError, as the composer does for what is nested otherwise."""
        if self.flow_level >= _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(token)


def read_tree(content: bytes) -> Tree:
    """Every problem that YAML itself can have ends up in `Tree.problems`; nothing is raised."""
    tree = Tree()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        odd = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        tree.problems.append(Problem(line, "", odd))
        return tree
    try:
        node = yaml.compose(text, Loader=_ShallowLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        odd = f"character U+{error.character:04X} is not allowed in YAML; remove it"
        tree.problems.append(Problem(line, "", odd))
    except yaml.MarkedYAMLError as error:
        tree.problems.append(_syntax_problem(error, text))
    except (ValueError, OverflowError) as error:  # An escape beyond Unicode, an endless version number.
        tree.problems.append(Problem(None, "", f"is not YAML: {error}"))
    except RecursionError:
        tree.problems.append(Problem(None, "", "is nested too deeply; a configuration has five levels"))
    else:
        if node is not None:
            tree.data = _Reader(tree).read(node, (), ())
    return tree


def path_text(location: Location) -> str:
    """`services[0].router.policy`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{show(part)}]"
    return text


class _TooMuchError(Exception):
    """The aliases stand for more values than a configuration can have."""


@dataclass(slots=True)
class _Reader:
    """Builds values from nodes, writing down places and problems as it goes."""

    tree: Tree
    nodes: int = 0

    def read(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...]) -> object:
        try:
            return self._read(node, location, above)
        except _TooMuchError:
            text = f"stands for more than {_MOST_NODES} values; use fewer aliases (*name)"
            self.tree.problems.append(Problem(None, "", text))
            return None

    def _read(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...]) -> object:
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            raise _TooMuchError
        line = node.start_mark.line + 1
        self.tree.places[location] = Place(line, node.value if isinstance(node, yaml.ScalarNode) else None)
        if any(node is outer for outer in above):
            self._unread(line, location, "contains itself through an alias; write the value out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*location, index), (*above, node)) for index, item in enumerate(node.value)]
        return self._scalar(node, location, line)

    def _mapping(self, node: yaml.MappingNode, location: Location, above: tuple[yaml.Node, ...]) -> object:
        values: dict[str, object] = {}
        seen: dict[str, int] = {}
        for key, value in self._own_pairs(node, location):
            line = key.start_mark.line + 1
            if key.value in seen:
                text = f"is given twice, first in line {seen[key.value]}; keep one of them"
                self._problem(line, (*location, key.value), text)
                continue
            seen[key.value] = line
            self.tree.key_lines[(*location, key.value)] = line
            values[key.value] = self._read(value, (*location, key.value), above)
        for key, value in self._merged_pairs(node, location, above):
            if key.value not in values:
                self.tree.key_lines[(*location, key.value)] = key.start_mark.line + 1
                values[key.value] = self._read(value, (*location, key.value), above)
        return values

    def _own_pairs(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problem(line, location, "a list or mapping stands as a key; use a text (is a quote missing?)")
            elif key.tag in _CONVERTED:
                kind = key.tag.removeprefix(_TAG)
                self._problem(line, location, f"key {key.value} is a {_KINDS[kind]} to YAML; quote it: '{key.value}'")
            else:
                yield key, value

    def _merged_pairs(
        self, node: yaml.MappingNode, location: Location, above: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Pairs from `<<`, nearest first, as YAML has it: own keys win, then earlier sources."""
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                line = key.start_mark.line + 1
                if not isinstance(source, yaml.MappingNode):
                    self._problem(line, location, "<< needs a mapping to take keys from; use <<: *name")
                elif any(source is outer for outer in above):
                    self._problem(line, location, "<< takes keys from around itself; name another mapping")
                else:
                    yield from self._own_pairs(source, location)
                    yield from self._merged_pairs(source, location, (*above, source))

    def _scalar(self, node: yaml.Node, location: Location, line: int) -> object:
        if node.tag in _TEXT:
            return node.value
        if node.tag in _CONVERTED:
            try:
                if len(node.value) > _LONGEST_NUMBER:
                    raise ValueError("no number that is meant is so long")
                return SafeConstructor().construct_object(node)
            except (ValueError, ConstructorError, LookupError):  # What a tag calls a number may be an empty text.
                kind = _KINDS[node.tag.removeprefix(_TAG)]
                self._unread(line, location, f"{show(node.value)} cannot be read as {kind}; quote it")
        else:
            tag = node.tag.replace(_TAG, "!!")
            self._unread(line, location, f"tag {tag} is not supported; leave it out")
        return None

    def _unread(self, line: int, location: Location, text: str) -> None:
        self._problem(line, location, text)
        self.tree.unread.add(location)

    def _problem(self, line: int, location: Location, text: str) -> None:
        self.tree.problems.append(Problem(line, path_text(location), text))


_KINDS = {"null": "null", "bool": "boolean", "int": "number", "float": "number"}


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    source = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem or source.lstrip(" ").startswith("\t"):
        return Problem(line, "", "a tab stands where YAML wants spaces; indent with spaces")
    if "{replica}" in source or (error.context and "flow mapping" in error.context):
        return Problem(
            line,
            "",
            f"is not YAML: {problem}; inside {{ }} quote texts that hold braces: '/run/{{replica}}.sock'",
        )
    if "expected a single document" in (error.context or ""):
        return Problem(line, "", "a second document begins here; keep one and remove '---'")
    if "undefined alias" in problem:
        return Problem(line, "", f"{problem}; define it above with &name")
    context = f" ({error.context})" if error.context else ""
    hint = "quote texts that hold ': ' or begin with a special character, and align keys of one mapping"
    return Problem(line, "", f"is not YAML: {problem}{context}; {hint}")
