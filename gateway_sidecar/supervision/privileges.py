"""What the daemon may do and what it starts may not."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_LOWER = 3
CAP_NET_ADMIN = 12
_OURS_ALONE, _NOT_FOR_OTHERS = 0o077, 0o027


def keep_to_ourselves(capability: int) -> None:
    """No child gets this capability by inheritance; the daemon keeps it if it has it.

    systemd gives it as an ambient one, which every program started from here would have too. Root's children are
    root, and have it anyway.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Fails only on a kernel that has no ambient capabilities, and so none to inherit.
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, capability, 0, 0)


def keep_files_to_ourselves() -> None:
    """No file that is made from here on, by the daemon or a child, is others' to read, or its group's to change.

    A umask that is stricter stays.
    """
    os.umask(os.umask(_OURS_ALONE) | _NOT_FOR_OTHERS)


def has_capability(capability: int) -> bool:
    """Whether this process has it in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
