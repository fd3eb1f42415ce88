"""Files with request bodies that a killed nginx left.

nginx removes a body's file with its request, and mostly gives it no name. It has one where a script may read it, and a
process that is killed leaves that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import chain
from pathlib import Path

from gateway_sidecar.files.own import make_directory
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, descriptors_of, session_members

_GAP_S = 60.0
"""Between two looks: a request may be in flight for hours, and what nginx has open is read through in each look."""


class BodyFiles:
    """What is done about the directory while nginx runs."""

    def __init__(self) -> None:
        self._seen: frozenset[str] = frozenset()
        self._due_at = 0.0

    def keep_up(self, bodies: Path, master: Identity | None) -> None:
        """Makes the directory again if somebody removed it: nginx itself makes it only when it starts.

        Once a minute it removes what was there a minute ago and no process of nginx has open. Raises OSError. Blocks.
        """
        make_directory(bodies, 0o700)
        if master is not None and awake.now() >= self._due_at:
            self._due_at = awake.now() + _GAP_S
            self._seen = without_left(bodies, self._seen, master)


def remove_all(bodies: Path) -> None:
    """Before nginx is started: nobody needs them. Raises OSError. Blocks."""
    for left in bodies.glob("*"):
        left.unlink(missing_ok=True)


def without_left(bodies: Path, before: frozenset[str], master: Identity) -> frozenset[str]:
    """The files there are, without those of `before` that no process of this nginx has open: they are removed.

    Raises OSError. Blocks.
    """
    names = frozenset(os.listdir(bodies))
    left = names & before
    if left:
        for descriptor in chain.from_iterable(descriptors_of(it.pid) for it in session_members(master)):
            with suppress(OSError):
                left -= {descriptor.readlink().name}
        for name in left:
            (bodies / name).unlink(missing_ok=True)
    return names - left
