"""docs/failure-modes.md and docs/trust.md are held against the tests: what they name is there, and every row of a table
of failures or attacks has somebody."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "failure-modes.md").read_text("utf-8")
TRUST = (REPOSITORY / "docs" / "trust.md").read_text("utf-8").partition("## Clients and key holders")[2]
ROWS = [
    line
    for line in (TEXT + TRUST).splitlines()
    if line.startswith("| ") and not line.startswith(("| failure |", "| what was wrong |", "| attack |", "| --- |"))
]
_FILE_THEN_TESTS = re.compile(r"`((?:tests/\w+/)?test_\w+\.py)`(.*?)(?=`(?:tests/\w+/)?test_\w+\.py`|\Z)", re.DOTALL)


def names_in(file: str) -> set[str]:
    """The tests that a file holds; those without a directory are system tests."""
    path = REPOSITORY / (file if "/" in file else f"tests/system/{file}")
    assert path.exists(), f"{file} is not there"
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))


def test_every_test_that_is_named_exists_in_the_file_it_is_named_with() -> None:
    """A reader runs it by this name."""
    missing = [
        f"{file}: {name}"
        for row in ROWS
        for file, rest in _FILE_THEN_TESTS.findall(row)
        for name in re.findall(r"`(test_\w+)`", rest)
        if name not in names_in(file)
    ]
    assert missing == []


def test_every_attack_runs_under_users_of_its_own() -> None:
    """Against a daemon that is root's, or by root, an attack shows little."""
    together = []
    for file, rest in _FILE_THEN_TESTS.findall(TRUST):
        text = "" if "/" in file else (REPOSITORY / f"tests/system/{file}").read_text("utf-8")
        if "/" in file or re.search(r"^pytestmark = .*own_users", text, re.MULTILINE):
            continue
        marked = re.findall(r"^@pytest\.mark\.own_users\n(?:@.*\n)*async def (test_\w+)", text, re.MULTILINE)
        together += [f"{file}: {name}" for name in re.findall(r"`(test_\w+)`", rest) if name not in marked]
    assert together == []


def test_every_failure_has_a_test_or_a_figure() -> None:
    """Nothing is said to be handled that nobody does."""
    unproved = [row.split("|")[1].strip() for row in ROWS if "`test_" not in row.split("|")[3]]
    assert unproved == []


def test_figures_that_are_named_exist() -> None:
    """`make bench` has them."""
    figures = set(re.findall(r'^NAME = "([a-z-]+)"', all_benches(), re.MULTILINE))
    named = {
        name for part in re.findall(r"`make bench` \(([^)]*)\)", TEXT) for name in re.findall(r"`([a-z-]+)`", part)
    }
    assert named
    assert named <= figures


def all_benches() -> str:
    """The text of every figure."""
    return "\n".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "bench").glob("*.py")))
