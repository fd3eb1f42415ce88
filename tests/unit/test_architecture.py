"""docs/architecture.md is true to the code: what it names is there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", PAGE))))

NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*(?:\(\))?")
PATH = re.compile(r"[\w./-]+(?:/|\.(?:py|md|lua|js|yaml|service))")


@cache
def words() -> frozenset[str]:
    """Every word of the program and of its tests, of names of files too."""
    files = [
        path for folder in ("gateway_sidecar", "tests", "bench", "examples") for path in (ROOT / folder).rglob("*")
    ]
    found = {part for path in files for part in re.findall(r"\w+", path.name)}
    for path in files:
        if path.suffix in {".py", ".lua", ".js", ".yaml", ".service"} and path != Path(__file__):
            found.update(re.findall(r"\w+", path.read_text()))
    return frozenset(found | set(re.findall(r"\w+", (ROOT / "Makefile").read_text())))


@cache
def members() -> Mapping[str, frozenset[str]]:
    """Class -> its methods, fields and constants, and those of its bases; all classes of one name together."""
    own: defaultdict[str, set[str]] = defaultdict(set)
    bases: defaultdict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "gateway_sidecar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name].update(base.id for base in node.bases if isinstance(base, ast.Name))
                for each in ast.walk(node):
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                        own[node.name].add(each.name)
                    elif isinstance(each, ast.AnnAssign | ast.Assign):
                        targets = [each.target] if isinstance(each, ast.AnnAssign) else each.targets
                        own[node.name].update(
                            target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)
                            for target in targets
                        )
    return {name: frozenset(its.union(*(own.get(base, set()) for base in bases[name]))) for name, its in own.items()}


def test_every_member_it_names_is_of_that_class() -> None:
    """`Class.member`, wherever it stands, in drawings too: the class itself has it, or one that it is made of."""
    named = set(re.findall(r"\b([A-Z]\w+)\.([a-z_]\w*)\b", PAGE))
    of_ours = {(name, member) for name, member in named if name in members()}
    assert of_ours, "the page names some"
    assert sorted(f"{name}.{member}" for name, member in of_ours if member not in members()[name]) == []


def test_every_file_it_names_is_there() -> None:
    """From the root, in the package or beside the page."""
    places = [
        ROOT,
        ROOT / "gateway_sidecar",
        ROOT / "docs",
        ROOT / "tests",
        ROOT / "tests" / "chaos",
        ROOT / "tests" / "unit",
    ]
    places += [ROOT / "tests" / "system", ROOT / "gateway_sidecar" / "share"]
    files = [span for span in SPANS if PATH.fullmatch(span) and not span.startswith(("run/", "bridges/"))]
    assert [span for span in files if not any((place / span).exists() for place in places)] == []


def test_every_name_it_uses_is_in_the_code() -> None:
    """Classes, functions, fields, settings, events and commands. What others name so is theirs."""
    names = {span for span in SPANS if NAME.fullmatch(span)} - {"stub_status", "net.unix.max_dgram_qlen"}
    assert [name for name in sorted(names) if not words().issuperset(re.findall(r"\w+", name))] == []
