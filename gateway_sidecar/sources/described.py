"""Replicas that somebody described: where each is, and what is noted of it."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

from gateway_sidecar.config import Described
from gateway_sidecar.domain.model import Occupant, ReplicaId
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.supervision.own_thread import OwnThread

_PATIENCE_S = 5.0

SocketOf = Callable[[Tunnel], Path]
"""Where a tunnel's socket is."""


def listing_of(described: Mapping[ReplicaId, Described], source: str, socket_of: SocketOf) -> Listing:
    """Looks at each place. A tunnel of ours is there as soon as it is wanted; a socket when it exists. Blocks."""
    present: dict[ReplicaId, Sighting] = {}
    unknown: set[ReplicaId] = set()
    refused: dict[str, str] = {}
    absent: dict[ReplicaId, tuple[str, Path]] = {}
    for replica, it in described.items():
        if isinstance(it.place, Tunnel):
            socket = socket_of(it.place)
            occupant = Occupant(0, 0, 0, socket.stem)
            present[replica] = Sighting(replica, socket, occupant, None, source, it.place, True, it.overrides)
            continue
        try:
            found = os.stat(it.place)  # noqa: PTH116 - looked at every few seconds for ever
        except (FileNotFoundError, NotADirectoryError):
            absent[replica] = (source, it.place)
            continue
        except OSError as error:
            unknown.add(replica)
            refused[replica] = f"cannot look at {it.place}: {error.strerror}"
            continue
        if not stat.S_ISSOCK(found.st_mode):
            refused[replica] = f"{it.place} is not a socket"
            continue
        occupant = Occupant(found.st_dev, found.st_ino, found.st_mtime_ns)
        present[replica] = Sighting(replica, it.place, occupant, None, source, None, True, it.overrides)
    return Listing(present, frozenset(unknown), refused, absent=absent)


class FixedReplicas:
    """Replicas that are there as long as the settings are."""

    def __init__(self, name: str, described: Mapping[ReplicaId, Described], socket_of: SocketOf) -> None:
        self.name = name
        self._described = described
        self._socket_of = socket_of
        self._thread = OwnThread(f"source {name}")

    async def look(self) -> Listing:
        """What is there now. Never raises."""
        look = partial(listing_of, self._described, self.name, self._socket_of)
        try:
            return await self._thread.run(look, patience_s=_PATIENCE_S)
        except TimeoutError:
            return Listing(blind="the file system of a replica's socket does not answer")

    async def hints(self) -> AsyncIterator[None]:
        """Yields once: nothing changes."""
        yield
