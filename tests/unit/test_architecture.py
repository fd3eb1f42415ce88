"""docs/architecture.md is true to the code: what it names is there."""

from __future__ import annotations

import re
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
