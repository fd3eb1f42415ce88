"""Keeping the daemon small, and the routers and nginx within what there is."""

from __future__ import annotations

import ctypes
import gc
import math
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


def collect_seldom() -> None:
    """Has Python look for circular garbage less often, and not among what was imported; to be called after that.

    With Python's own threshold of 700 new objects that took a fifth of the CPU while 100 replicas came at once.
    """
    gc.freeze()
    gc.set_threshold(20_000)


_ROUTER_SHARE = 0.25  # A choice: during a replacement two routers run, and the daemon and nginx need their part.
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


def usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs that this process and its children may run on, or that control groups leave them the time of."""
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(it) for it in _quotas(root))]))


def _limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # `max` is no number: no limit.
                yield int((group / name).read_text())


def _quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())  # -1 is no limit.
            if quota_us > 0:
                yield quota_us / int((group / "cpu.cfs_period_us").read_text())


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Our own control group and those around it, of either version of control groups."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, own in (line.split(":", 2) for line in lines):
        if not controllers or controller in controllers.split(","):
            top = mount / controllers
            group = top / own.lstrip("/")
            while group.is_relative_to(top):
                yield group
                group = group.parent
