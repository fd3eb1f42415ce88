"""Keeping the daemon small, and the routers within what there is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_M_ARENA_MAX = -8
"""The parameter's number in glibc's malloc.h."""


def share_arenas() -> None:
    """Has all threads allocate from the same few places; to be called before there are any.

    glibc gives each thread its own otherwise, and what was freed in one is of no use to the others. The daemon has a
    thread for each source, record and log, which do little, and one after the other. Elsewhere (musl) there is nothing
    to do.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


_ROUTER_SHARE = 0.25
_LEAST_MB = 512
"""On a small machine: a limit that every router exceeds would have it replaced again and again."""


@cache
def router_share_mb() -> int:
    """The default limit of a router's memory: a quarter of what this process and its children may have."""
    return max(_LEAST_MB, int(usable_bytes() * _ROUTER_SHARE) >> 20)


def usable_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or what the control groups that we are in leave of it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """`memory.max` of our own control group and of those around it (the second version of control groups)."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for own in (line for line in lines if line.startswith("0::")):
        group = mount / own.removeprefix("0::").lstrip("/")
        while group.is_relative_to(mount):
            with suppress(OSError, ValueError):  # `max` is no number: no limit.
                yield int((group / "memory.max").read_text())
            group = group.parent
