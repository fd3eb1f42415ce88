"""When each key was last used. nginx notes it as the time of the key's link, at most once a minute for each of its
workers. The links are gone after a reboot, so the daemon keeps a copy in a file. All of it blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file

KEPT_EVERY_S = 300.0
"""How old the copy may be: 10,000 keys take 30 ms to look at."""


def note_use(link: str, text: str, used: dict[str, float]) -> None:
    """Takes over what a link of this text says. A link of a key that was never used has no time."""
    with suppress(OSError):
        at = os.lstat(link).st_mtime
        name = text.partition(" ")[0]
        if at > used.get(name, 0.0):
            used[name] = at


def read_links(directory: Path) -> dict[str, float]:
    """Name -> seconds since 1970, as the links say it. Raises OSError."""
    used: dict[str, float] = {}
    for name in os.listdir(directory):
        with suppress(OSError):
            path = f"{directory}/{name}"
            note_use(path, os.readlink(path), used)  # noqa: PTH115 - thousands of them
    return used


def read_copy(path: Path) -> dict[str, float]:
    """The same, as it was kept; nothing where there is no such file, or one of another kind. Raises OSError."""
    with suppress(FileNotFoundError, ValueError, AttributeError):
        said = json.loads(path.read_bytes())
        return {str(name): float(at) for name, at in said.items() if isinstance(at, int | float)}
    return {}


def keep_copy(path: Path, used: Mapping[str, float]) -> None:
    """Keeps it over a reboot. Raises OSError."""
    make_directory(path.parent)
    replace_file(path, json.dumps({name: round(at) for name, at in used.items()}))
