"""Keeping the daemon small."""

from __future__ import annotations

import ctypes
from contextlib import suppress

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
