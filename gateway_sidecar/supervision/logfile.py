"""A child's output: a file it can go on writing when the daemon is gone, bounded in size, read as it grows.

The child appends (O_APPEND), so the file can be cut to nothing under it and it simply goes on at the new end. One
previous file is kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

_MOST_READ = 256 * 1024


class ChildLog:
    """The output file of one child process. Lines are read once each; none is read that is not complete."""

    def __init__(self, path: Path, most_bytes: int = 16 * 1024 * 1024) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._offset = path.stat().st_size if path.exists() else 0
        self._inode: int | None = None

    def open_for_child(self) -> int:
        """A file descriptor for the child's stdout and stderr; the caller closes its own copy."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def new_lines(self) -> list[str]:
        """The complete lines that were written since the last call; at most 256 KiB of them, the newest.

        Cuts the file when it has outgrown its bound. Blocks: call in a thread.
        """
        try:
            return self._new_lines()
        except OSError:
            return []  # Full disk, no descriptors: the next look may do better, and nobody dies of a log.

    def _new_lines(self) -> list[str]:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            self._offset = 0
            return []
        if size < self._offset:
            self._offset = 0  # Somebody else cut it.
        if size == self._offset:
            return []
        start = max(self._offset, size - _MOST_READ)
        with self.path.open("rb") as file:
            file.seek(start)
            chunk = file.read(size - start)
        end = chunk.rfind(b"\n") + 1
        if end == 0 and len(chunk) < _MOST_READ:
            return []
        self._offset = start + (end or len(chunk))
        if self._offset > self._most_bytes and self._offset == size:
            self._cut()
        return [line for line in chunk[: end or None].decode("utf-8", "replace").splitlines() if line.strip()]

    def tail(self, lines: int) -> list[str]:
        """The last complete lines, whoever read them before."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - 16 * 1024))
                found = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [line for line in found if line.strip()][-lines:]

    def _cut(self) -> None:
        # Copy, then truncate: what the child writes between the two is lost, at most a line or so.
        with contextlib.suppress(OSError):
            shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        self._offset = 0
