"""One daemon for each `run_dir`."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from gateway_sidecar.errors import StateError
from gateway_sidecar.files.own import keep_directory

_LOCKS = Path("/proc/locks")


def holder_of(directory: Path) -> int | None:
    """The process id of the daemon that has the directory, as the kernel lists it; None if none has, or it is not seen.

    Such a look keeps nobody out, as one that tried to take the lock would for a moment.
    """
    try:
        number = (directory / "lock").stat().st_ino
        rows = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return None
    # `1: FLOCK ADVISORY WRITE 4711 00:2f:123 0 EOF`, with the inode; some file systems tell another device elsewhere.
    pids = [int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(number)]
    return next((pid for pid in pids if pid > 0), None)


class DirectoryLock:
    """Keeps every other daemon out of a directory, from `take` to `release`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock"
        self._fd: int | None = None

    def take(self) -> None:
        """Raises StateError if another daemon is there, or the directory cannot be used."""
        try:
            keep_directory(self._directory)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"run_dir: cannot use {self._directory}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StateError(
                f"another gateway-sidecar (pid {pid}) runs with run_dir {self._directory}; stop it first"
            ) from None
        with suppress(OSError):  # No room: then the next one is not told who we are.
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self.release()
        self._fd = fd

    async def repair(self) -> bool:
        """Takes it anew if somebody removed its file; whether that was needed. Raises StateError."""
        assert self._fd is not None
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        held = os.fstat(self._fd)
        if there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
            return False
        self.take()
        return True

    def release(self) -> None:
        """Lets others in."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
