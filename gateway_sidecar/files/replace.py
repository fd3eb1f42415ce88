"""Replaces a file or a symlink atomically: a reader sees the old one or the new one. The old one is replaced and never
written through, so a planted symlink leads nowhere. The mode does not depend on the umask.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_UNFINISHED = ".new"


def unfinished(path: Path) -> Path:
    """Where a file is written before it takes this one's place."""
    return path.with_name(f".{path.name}{_UNFINISHED}")


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is one of ours that is still being written."""
    return name.startswith(".") and name.endswith(_UNFINISHED)


def replace_file(path: Path, content: str | bytes, mode: int = 0o600, *, synced: bool = False) -> None:
    """Raises OSError, and then the old one is still there. `synced`: it survives a loss of power. Blocks."""
    put_in_place(write_beside(path, content, mode, synced=synced), path, synced=synced)


def write_beside(path: Path, content: str | bytes, mode: int = 0o600, *, synced: bool = False) -> Path:
    """The new file, complete, and not yet in its place. Raises OSError. Blocks."""
    fresh = unfinished(path)
    fresh.unlink(missing_ok=True)
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)
            if synced:
                file.flush()
                os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)  # Half of a file would take the room that the whole one needs.
        raise
    return fresh


def put_in_place(fresh: Path, path: Path, *, synced: bool = False) -> None:
    """Raises OSError. Blocks."""
    fresh.replace(path)
    if synced:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def replace_link(path: Path, target: Path | str) -> None:
    """Makes `path` a symbolic link to `target`. Raises OSError. Blocks for microseconds."""
    with suppress(FileExistsError):
        path.symlink_to(target)
        return
    fresh = unfinished(path)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def open_to_append(path: Path, mode: int = 0o640) -> int:
    """A descriptor that writes at a file's end; the file is made if need be. Raises OSError, for a link too. Blocks."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
