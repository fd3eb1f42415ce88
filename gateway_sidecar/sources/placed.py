"""What may be bridged: a socket, or the target of its owner's symlink, and never one of the daemon's own sockets."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.domain.model import SocketIdentity
from gateway_sidecar.domain.trust import trouble_with_links
from gateway_sidecar.files.follow import Followed, follow, ours
from gateway_sidecar.files.identity import socket_identity


class RefusedPlaceError(Exception):
    """What stands at a replica's place must not be bridged; the text says why."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What no replica may be, as it is now: whatever lies below some directories, and sockets by device and inode."""

    directories: tuple[str, ...] = ()
    sockets: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def why(self, place: Followed) -> str | None:
        """Why this one must not be bridged; None if it may."""
        for directory in self.directories:
            if place.real.startswith(directory):
                return f"it leads into {directory}, which is the daemon's own; place the engine's socket elsewhere"
        known = self.sockets.get((place.found.st_dev, place.found.st_ino))
        return None if known is None else f"it is {known}, which the daemon itself uses"


class OwnSockets:
    """The daemon's own directories, and sockets elsewhere that it uses, such as an SSH agent's."""

    def __init__(
        self, directories: Sequence[Path] = (), sockets: Callable[[], Iterable[str | None]] = lambda: ()
    ) -> None:
        self._directories = directories
        self._sockets = sockets

    def now(self) -> Forbidden:
        """As they are now. Blocks."""
        found: dict[tuple[int, int], str] = {}
        of_the_environment = (os.environ.get(name) for name in ("SSH_AUTH_SOCK", "NOTIFY_SOCKET"))
        ours = (str(directory / name) for directory in self._directories for name in ("admin.sock", "hold.sock"))
        for path in (*of_the_environment, *ours, *self._sockets()):
            try:
                it = os.stat(path) if path else None  # noqa: PTH116 - looked at every few seconds for ever
            except (OSError, ValueError):
                continue
            if it is not None and path:
                found[it.st_dev, it.st_ino] = path
        return Forbidden(tuple(f"{os.path.realpath(it)}/" for it in self._directories), found)


def occupant_of(place: Followed) -> SocketIdentity:
    """Who is at a place that was judged. Raises OSError; FileNotFoundError if another is there by now. Blocks."""
    occupant = socket_identity(place.real)
    if (occupant.device, occupant.inode) != (place.found.st_dev, place.found.st_ino):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.real)
    return occupant


def socket_at(
    path: str,
    forbidden: Forbidden,
    *,
    start: Followed | None = None,
    named_by: int | None = None,
    vouching: Set[int] = frozenset(),
) -> Followed:
    """The socket that a path leads to. Raises RefusedPlaceError where it must not be bridged, and OSError. Blocks.

    start: where a path that is relative begins.
    named_by: the user who wrote the path down, and is no better than the owner of a link.
    vouching: users beside root and the daemon's own that may lead anywhere.
    """
    place = follow(path, start)
    shown = path if start is None else f"{start.real}/{path}"
    if not stat.S_ISSOCK(place.found.st_mode):
        raise RefusedPlaceError(f"{shown} is not a socket")
    if not place.real.isprintable():
        raise RefusedPlaceError(f"{shown} leads to a path with characters that cannot be shown")
    trusted = ours() | vouching
    trouble = forbidden.why(place) or trouble_with_links(place.links, place.owned, trusted)
    if trouble is None and named_by is not None and named_by not in trusted and named_by != place.found.st_uid:
        trouble = f"user {named_by}, who names {place.real}, does not own it: it belongs to user {place.found.st_uid}"
    if trouble is not None:
        raise RefusedPlaceError(trouble)
    return place
