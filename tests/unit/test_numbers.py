"""Numbers say where they come from: a measurement, a protocol or a program, or a choice and what bounds it."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from itertools import zip_longest

import pytest

from tests.unit.test_layers import PACKAGE

PLAIN = {
    "DAY_S": "what its name says",
    "HOUR_S": "what its name says",
    "_MINUTE_S": "what its name says",
}
"""Numbers that need no origin, and why."""

OF_NO_SIZE = (0, 1)
"""To begin with, and one: nobody chose their size, nor that of -1. A second, 1.0, somebody did."""

PARTS = ast.Constant | ast.Tuple | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop | ast.Name | ast.expr_context
"""What literals, sequences of them and arithmetic are made of, with the names of other numbers."""


def sized(value: ast.expr) -> bool:
    """Whether it is a number, a sequence of them or arithmetic, whose size somebody chose."""
    parts = list(ast.walk(value))
    literals = [it.value for it in parts if isinstance(it, ast.Constant)]
    return (
        all(isinstance(it, PARTS) for it in parts)
        and all(type(it) in (int, float) for it in literals)
        and any(it not in OF_NO_SIZE or (it and type(it) is float) for it in literals)
    )


def assigned(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """The names that a statement gives a value, as they are written, and the value."""
    if isinstance(statement, ast.Assign):
        return ", ".join(map(ast.unparse, statement.targets)), statement.value
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.unparse(statement.target), statement.value
    return None


def unsaid(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each number of a module with neither a comment, beside or above it, nor a docstring below."""
    comments = {
        token.start[0]: token.line.lstrip().startswith("#")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body
    for statement, below in zip_longest(body, body[1:]):
        found = assigned(statement)
        if found is None or found[0] in PLAIN or not sized(found[1]):
            continue
        is_above = comments.get(statement.lineno - 1, False)
        is_beside = any(line in comments for line in range(statement.lineno, (statement.end_lineno or 0) + 1))
        is_below = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if not (is_above or is_beside or is_below):
            yield statement.lineno, found[0]


def test_each_number_of_a_module_says_where_it_comes_from() -> None:
    """Whoever wants to change one knows what it was measured by, whose it is, or what bounds it."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in unsaid(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("A = 5", ["A"]),
        ("A: float = 2.5", ["A"]),
        ("A = 64 * 1024", ["A"]),
        ("A_S = 1.0", ["A_S"]),
        ("A = -2", ["A"]),
        ("A = 3 * B", ["A"]),
        ("A, B = 0, 7", ["(A, B)"]),
        ("A = 5\nB = 6  # nginx's", ["A"]),
        ("A = 5  # RFC 9110\nB = 6", ["B"]),
        ("A = 5\nB = 'six'\n'''A name.'''", ["A"]),
        ("A = 5  # nginx's", []),
        ("# nginx's\nA = 5", []),
        ("A = 5\n'''nginx's.'''", []),
        ("A = (\n    5  # nginx's\n    * 6\n)", []),
        ("A = 0.0\nB = -1\nC = True\nD = 'text'\nE = [5]\nF = B | C\nHOUR_S = 3600", []),
    ],
)
def test_a_number_that_says_nothing_is_found(source: str, names: list[str]) -> None:
    """A comment or a docstring counts for the number that it stands by, and for no other."""
    assert [name for _, name in unsaid(source)] == names


def test_every_exception_is_still_there() -> None:
    """What needs no origin is not listed for what nobody has any more."""
    there = {
        found[0]
        for path in PACKAGE.rglob("*.py")
        for statement in ast.parse(path.read_text()).body
        if (found := assigned(statement)) is not None
    }
    assert PLAIN.keys() <= there
