"""A child's output: a file it can go on writing when the daemon is gone, bounded in size, read as it grows.

The child appends (O_APPEND), so the file can be cut to nothing under it and it simply goes on at the new end. One
previous file is kept. A child is never kept from starting by its log: where the file cannot be opened a spare one takes
its place, and where that cannot be opened either the output goes nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import open_to_append
from gateway_sidecar.supervision.own_thread import BRIEF_DISK_S, OwnThread

_MOST_READ = 256 * 1024  # A choice: of what a child wrote since the last look this much of its end is read.
_ROOM_BYTES = 64 * 1024  # A disk that has this much room takes a child's first lines.


class ChildLog:
    """The output file of one child process. Lines are read once each; none is read that is not complete.

    path: where it should be. spare: where it is if that cannot be had. file: where the child writes; None for nowhere.
    trouble: why it is not at `path`, if so.
    """

    def __init__(self, path: Path, most_bytes: int = 16 * 1024 * 1024, *, spare: Path | None = None) -> None:
        self.path = path
        self.spare = spare
        self.file: Path | None = path
        self.trouble = ""
        self._most_bytes = most_bytes
        self._offset: int | None = None
        self._threads = {place: OwnThread(f"log {place}") for place in self.places}

    @property
    def places(self) -> tuple[Path, ...]:
        """Every file that a child of ours may have been given."""
        return (self.path,) if self.spare is None else (self.path, self.spare)

    def beside(self, name: str) -> ChildLog:
        """Another child's log in the same places."""
        spare = None if self.spare is None else self.spare.with_name(name)
        return ChildLog(self.path.with_name(name), self._most_bytes, spare=spare)

    async def open_for_child(self) -> int:
        """A file descriptor for the child's stdout and stderr; the caller closes its own copy. Never raises."""
        self.trouble = ""
        for place, thread in self._threads.items():
            try:
                fd, size = await thread.run(partial(_open, place), patience_s=BRIEF_DISK_S)
            except OSError as error:  # A TimeoutError is one, too.
                reason = error.strerror or "the file system does not answer"
                self.trouble = self.trouble or f"cannot write {place}: {reason}"
                continue
            if place != self.file or self._offset is None:
                self.file, self._offset = place, size
            return fd
        self.file = None
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def follow(self, pid: int) -> None:
        """Reads on where this process, started by an earlier daemon, writes."""
        try:
            target = Path(str(Path(f"/proc/{pid}/fd/1").readlink()).removesuffix(" (deleted)"))
        except OSError:
            return
        known = {place.resolve(): place for place in self.places}
        file = known.get(target, self.path if target != Path(os.devnull) else None)
        if file != self.file:
            self.file, self._offset = file, None
        self.trouble = "" if file == self.path else f"an earlier daemon could not write {self.path}"

    async def read(self) -> list[str]:
        """The complete lines that were written since the last call; none if the disk does not answer in time."""
        return await self._in_thread(self.new_lines)

    async def read_tail(self, lines: int) -> list[str]:
        """The last lines, printable, even if they were read before; none if the disk does not answer in time."""
        return await self._in_thread(partial(self.tail, lines))

    async def _in_thread(self, work: Callable[[], list[str]]) -> list[str]:
        if self.file is None:
            return []
        try:
            return await self._threads[self.file].run(work, patience_s=BRIEF_DISK_S)
        except TimeoutError:
            return []

    def close(self) -> None:
        """Nobody will read it any more."""
        for thread in self._threads.values():
            thread.end()

    def new_lines(self) -> list[str]:
        """The complete lines that were written since the last call; at most 256 KiB of them, the newest.

        Cuts the file when it has outgrown its bound. Blocks: `read` does not.
        """
        try:
            return self._new_lines(self.file) if self.file is not None else []
        except OSError:
            return []  # Full disk, no descriptors: the next look may do better, and nobody dies of a log.

    def _new_lines(self, path: Path) -> list[str]:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            self._offset = 0
            return []
        if self._offset is None:
            self._offset = size  # What was there before us was an earlier daemon's to read.
        if size < self._offset:
            self._offset = 0  # Somebody else cut it.
        if size == self._offset:
            return []
        start = max(self._offset, size - _MOST_READ)
        with path.open("rb") as file:
            file.seek(start)
            chunk = file.read(size - start)
        end = chunk.rfind(b"\n") + 1
        if end == 0 and len(chunk) < _MOST_READ:
            return []
        self._offset = start + (end or len(chunk))
        if self._offset > self._most_bytes and self._offset == size:
            self._cut(path)
        return _lines(chunk[: end or None])

    def tail(self, lines: int) -> list[str]:
        """The last lines, printable, even if they were read before. Blocks: `read_tail` does not."""
        if self.file is None:
            return []
        try:
            with self.file.open("rb") as file:
                file.seek(max(0, self.file.stat().st_size - 16 * 1024))
                found = _lines(file.read())
        except OSError:
            return []
        return [printable(line) for line in found[-lines:]]

    def _cut(self, path: Path) -> None:
        # Copy, then truncate: what the child writes between the two is lost, at most a line or so.
        with contextlib.suppress(OSError):
            earlier = path.with_name(path.name + ".1")
            earlier.unlink(missing_ok=True)
            shutil.copyfile(path, earlier)
        os.truncate(path, 0)
        self._offset = 0


def try_writing(directory: Path, room_bytes: int) -> None:
    """Raises OSError where so much cannot be written. The directory is made if need be. Blocks."""
    make_directory(directory)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as trial:
        if trial.write(bytes(room_bytes)) < room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lines(raw: bytes) -> list[str]:
    """What ends a line is a line feed alone: what else Python takes for an end may stand in what somebody has said."""
    return [line for line in raw.decode("utf-8", "replace").split("\n") if line.strip()]


def _open(path: Path) -> tuple[int, int]:
    """A descriptor, and how much is in the file already.

    Raises OSError where nothing can be written: a router may not start if its first line fails (SMG); a later one that
    fails it survives.
    """
    try_writing(path.parent, _ROOM_BYTES)
    fd = open_to_append(path)
    return fd, os.fstat(fd).st_size
