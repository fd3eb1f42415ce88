"""Where a benchmark keeps its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is removed in the end.

    In `/tmp`, whatever TMPDIR says: a Unix socket's path has to be short, and a hard link has to stay on the file
    system, which is the gateway's too.
    """
    with TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
