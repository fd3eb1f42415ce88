"""Installs the toy router of `examples/` as another package's kind, without pip."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

_EXAMPLE = Path(__file__).parents[1] / "examples" / "toy_router"


def install_toy(site: Path) -> None:
    """Puts the package, and what its pyproject.toml says of entry points, into a directory for PYTHONPATH."""
    shutil.copytree(_EXAMPLE / "toy_router", site / "toy_router", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((_EXAMPLE / "pyproject.toml").read_text())["project"]
    about = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(groups))
