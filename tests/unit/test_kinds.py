"""Kinds are found by their names: ours in our packages, others' by entry points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway_sidecar.errors import KindError
from gateway_sidecar.kinds import Registry

GROUP = "toys"


@dataclass(frozen=True)
class Toy:
    name: str


def installed(root: Path, *, points: str, **modules: str) -> None:
    """Puts modules and their package's entry points where Python finds them."""
    for module, text in modules.items():
        (root / f"{module}.py").write_text(text)
    about = root / "toys_of_others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys-of-others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of packages."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


OURS = "from tests.unit.test_kinds import Toy\nTOY = Toy('ours')\n"
THEIRS = OURS.replace("ours", "theirs")


def with_ours(root: Path) -> Registry[Toy]:
    """A registry with one kind of its own."""
    (root / GROUP).mkdir()
    (root / GROUP / "__init__.py").touch()
    (root / GROUP / "ours.py").write_text(OURS)
    return Registry(GROUP, "TOY", "ours")


def test_an_entry_point_adds_a_kind_after_ours(path: Path) -> None:
    installed(path, points="theirs = their_toy:TOY", their_toy=THEIRS)
    registry = with_ours(path)
    assert [kind.name for kind in registry] == ["ours", "theirs"]
    assert registry["theirs"] == Toy("theirs")


@pytest.mark.parametrize(
    ("points", "text", "says"),
    [
        ("t = their_toy_a:TOY", "import no_such_module\n", "no_such_module"),
        ("t = their_toy_b:NOTHING", THEIRS, "NOTHING"),
        ("t = their_toy_c:TOY", OURS, "'ours' already"),
    ],
)
def test_a_kind_that_cannot_be_used_is_named(path: Path, points: str, text: str, says: str) -> None:
    """The error names the entry point and its group, so that its package can be found."""
    module = points.partition("= ")[2].partition(":")[0]
    installed(path, points=points, **{module: text})
    with pytest.raises(KindError, match=says) as raised:
        list(with_ours(path))
    assert points in str(raised.value)
    assert GROUP in str(raised.value)
