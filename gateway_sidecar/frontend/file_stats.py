"""What a file's change changes, and where to watch for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gateway_sidecar.files.stamp import Stamp, stamp_of

FileStats = tuple[Stamp | None, ...]
_MOST_LINKS = 40  # as many as the kernel follows


def file_stats(*paths: Path) -> FileStats:
    """The stamp of each file; None if it cannot be read."""
    return tuple(_stamp(path) for path in paths)


def changed_at(directory: Path) -> int | None:
    """When a name in it was last added or removed; None if it is not there."""
    found = _stamp(directory)
    return None if found is None else found[3]


def directories(paths: Iterable[Path]) -> frozenset[Path]:
    """Where a change of these files shows: the directory of each, and of each symbolic link on the way to it."""
    found: set[Path] = set()
    for path in paths:
        at = path
        for _ in range(_MOST_LINKS):
            found.add(at.parent)
            try:
                at = at.parent / at.readlink()
            except OSError:  # It is no link, or not there.
                break
        found.add(Path(os.path.realpath(path)).parent)
    return frozenset(found)


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(os.stat(path))  # noqa: PTH116 - every two seconds, for ever
    except OSError:
        return None
