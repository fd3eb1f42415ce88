"""A process that is stopped for a while."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stop(pid: int) -> None:
    """SIGSTOP, and returns once no thread of it runs: a busy machine takes a while, and it may answer until then."""
    os.kill(pid, signal.SIGSTOP)
    while any(_runs(thread) for thread in Path(f"/proc/{pid}/task").glob("*/stat")):
        time.sleep(0.001)


def _runs(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
