"""What a file's change changes, and where to watch for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FileStats = tuple[tuple[int, ...] | None, ...]
_MOST_LINKS = 40  # as many as the kernel follows


def file_stats(*paths: Path) -> FileStats:
    """A file's inode, size and times; None if it cannot be read."""
    return tuple(_stat(path) for path in paths)


def changed_at(directory: Path) -> int | None:
    """When a name in it was last added or removed; None if it is not there."""
    found = _stat(directory)
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


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        it = os.stat(path)  # noqa: PTH116 - every two seconds, for ever
    except OSError:
        return None
    return it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns
