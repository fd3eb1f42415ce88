"""The registry of events: nothing is logged that is not in it, and nothing is in it that is not logged."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest

from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.telemetry.events import EVENTS, GROUPS
from tests.unit.test_layers import PACKAGE, nodes

LEVELS = ("debug", "info", "warning", "error", "critical")
STATES = {f"replica.{state.value}" for state in ReplicaState}


def is_logger(node: ast.expr) -> bool:
    """`self._logger`, `logger`, `get_logger(...)`, or `.bind(...)` of one."""
    if isinstance(node, ast.Call):
        inner = node.func
        return (isinstance(inner, ast.Name) and inner.id == "get_logger") or (
            isinstance(inner, ast.Attribute) and inner.attr == "bind" and is_logger(inner.value)
        )
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_") in ("logger", "log")


def events_in(node: ast.expr) -> set[str]:
    """The events that an expression may stand for; none, if it cannot be told."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return events_in(node.body) | events_in(node.orelse)
    if isinstance(node, ast.JoinedStr) and ast.unparse(node).startswith("f'replica.{"):
        return STATES
    return set()


@cache
def calls() -> tuple[tuple[str, str | None, set[str]], ...]:
    """Each call of a logger: where, at which level if that can be told, and which events."""
    return tuple(_calls())


def _calls() -> Iterator[tuple[str, str | None, set[str]]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in nodes(path):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function, where = node.func, f"{path.relative_to(PACKAGE)}:{node.lineno}"
            if isinstance(function, ast.Attribute) and function.attr in LEVELS and is_logger(function.value):
                yield where, function.attr, events_in(node.args[0])
            elif isinstance(function, ast.Name) and function.id == "log":
                yield where, None, events_in(node.args[0])


@cache
def logged() -> dict[str, set[str | None]]:
    """Event -> its levels."""
    found: defaultdict[str, set[str | None]] = defaultdict(set)
    for _, level, events in calls():
        for event in events:
            found[event].add(level)
    return found


def test_every_call_of_a_logger_names_its_event() -> None:
    """A name that is put together cannot be looked up by whoever reads the log."""
    assert [where for where, _, events in calls() if not events] == []


def test_what_is_logged_is_registered_and_nothing_else_is() -> None:
    """Whoever looks an event up finds it, and finds none that never comes."""
    assert set(logged()) == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_logged_at_its_levels(name: str) -> None:
    """The registry says how severe it is; where the code chooses between two, both are there."""
    known = {level for level in logged()[name] if level is not None}
    assert known <= set(EVENTS[name].levels)
    assert None in logged()[name] or known == set(EVENTS[name].levels)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_explained_in_a_sentence(name: str) -> None:
    """A subject, an end, and for an error an imperative that says what to do."""
    event = EVENTS[name]
    for text in filter(None, (event.meaning, event.cure)):
        assert text[0].isupper() or text.startswith(("nginx", "`"))
        assert text[-1] == "."
        assert text == text.strip()
        assert "|" not in text
    assert event.cure or not {"error", "critical"} & set(event.levels) or _mends_itself(event.meaning)


def _mends_itself(meaning: str) -> bool:
    return any(words in meaning for words in ("started again", "error log", "own output"))


def test_no_event_is_in_two_groups() -> None:
    assert sum(map(len, GROUPS.values())) == len(EVENTS)
