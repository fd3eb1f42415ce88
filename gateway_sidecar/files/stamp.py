"""What tells that a file was written again, given to somebody else, or replaced, without reading it."""

from __future__ import annotations

import os

Stamp = tuple[int, ...]


def stamp_of(found: os.stat_result) -> Stamp:
    """Device, inode, size, and when it was written and changed, in ns.

    Times alone do not tell: before Linux 6.13 they stand still for 4 ms (`CONFIG_HZ=250`), in which a file that was
    seen right after it was made may be written.
    """
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
