"""The packages that the pages "write your own" show, put where Python finds them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
_BLOCK = re.compile(r'```\w+ title="([^"]+)"\n(.*?)```', re.DOTALL)


def install_from(page: str, root: Path) -> None:
    """Writes the modules of a page into `root`, with the entry points that its pyproject.toml names."""
    files = dict(_BLOCK.findall((GUIDES / page).read_text()))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for name, text in files.items():
        (root / name).write_text(text)
    about = root / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
