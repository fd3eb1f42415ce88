"""Where a benchmark keeps its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

BASE = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path("/tmp")
"""Memory, as `/run` is on a gateway machine: a disk's directories would be measured instead of us."""


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is removed in the end.

    Below `BASE`, whatever TMPDIR says: a Unix socket's path has to be short, and a hard link has to stay on the file
    system, which is the gateway's too.
    """
    with TemporaryDirectory(prefix="bench-", dir=BASE, ignore_cleanup_errors=True) as name:
        yield Path(name)
