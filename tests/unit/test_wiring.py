"""How the core is wired, in figures: read from the code, printed by `pytest -s`, and bounded."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from gateway_sidecar.control.ports import ServiceAdapters
from tests.unit.test_layers import PACKAGE, WRITERS, nodes

CORE = PACKAGE / "control"
Figure = tuple[int, str]


def modules(below: Path = CORE) -> list[Path]:
    return sorted(below.rglob("*.py"))


def constructors() -> Iterator[Figure]:
    """(arguments, class) of every constructor that is written out. Dataclasses, which bundle values, have none."""
    for path in modules(PACKAGE):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                        yield len(each.args.args) + len(each.args.kwonlyargs) - 1, f"{path.name}: {node.name}"


def records() -> Iterator[Figure]:
    """(fields, class) of every dataclass in the core."""
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(it) for it in node.decorator_list):
                yield sum(isinstance(each, ast.AnnAssign) for each in node.body), f"{path.name}: {node.name}"


def assigned(path: Path) -> Iterator[ast.Attribute]:
    """Every attribute that a module sets."""
    for node in nodes(path):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for each in getattr(target, "elts", [target]):
                    if isinstance(each, ast.Attribute):
                        yield each


def writers() -> Iterator[Figure]:
    """(modules that set it, field) of each field of a tenure's records."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in modules(PACKAGE):
        for target in assigned(path):
            record = target.value
            if isinstance(record, ast.Attribute) and record.attr in WRITERS:
                found[f"{record.attr}.{target.attr}"].add(path.name)
    return ((len(files), f"{field}: {', '.join(sorted(files))}") for field, files in found.items())


def most(name: str, figures: Iterator[Figure], bound: int) -> list[str]:
    """Those beyond the bound; the largest is printed."""
    found = sorted(figures, reverse=True)
    print(f"{name}: at most {found[0][0]} ({found[0][1]}); bar {bound}")
    return [f"{what} has {figure}" for figure, what in found if figure > bound]


def test_no_constructor_takes_more_than_six_arguments() -> None:
    """What belongs together is one value; what is called back needs no argument."""
    assert most("arguments of a constructor", constructors(), 6) == []


def test_no_record_has_more_than_fifteen_fields() -> None:
    assert most("fields of a record", records(), 15) == []


def test_each_field_of_a_tenure_has_one_writer() -> None:
    assert most("writers of a field", writers(), 1) == []


def test_a_service_is_wired_on_a_few_screens() -> None:
    lines = len((CORE / "service.py").read_text().splitlines())
    print(f"lines of service.py: {lines}; bar 200")
    assert lines < 200
    lines = len((CORE / "process" / "daemon.py").read_text().splitlines())
    print(f"lines of daemon.py: {lines}; bar 400")
    assert lines < 400


def test_nobody_is_called_back_by_a_lambda() -> None:
    """Who observes enqueues a key. What is left sorts, or measures for Prometheus."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        for each in [*node.args, *(it.value for it in node.keywords if it.arg != "key")]
        if isinstance(each, ast.Lambda) and not ast.unparse(node.func).endswith("set_function")
    ]
    assert found == []


def test_nothing_is_set_on_an_object_from_outside() -> None:
    """It is given to the constructor, or has a method that takes it."""
    found = [
        f"{path.relative_to(PACKAGE)}:{target.lineno} {ast.unparse(target)}"
        for path in [*modules(), PACKAGE / "app.py"]
        for target in assigned(path)
        if isinstance(target.value, ast.Attribute) and ast.unparse(target).startswith("self.")
    ]
    assert found == []


def test_a_service_uses_all_that_it_reaches_the_world_through() -> None:
    """An adapter that nothing uses is not handed on."""
    wired = (CORE / "service.py").read_text()
    assert [each.name for each in fields(ServiceAdapters) if f"outside.{each.name}" not in wired] == []
