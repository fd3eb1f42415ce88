"""Replicas that the admin API was told of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.config import Described, ToldEntry
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.described import SocketOf, listing_of
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.supervision.own_thread import OwnThread

NAME = "api"
_PATIENCE_S = 5.0


@dataclass(slots=True)
class Told:
    """What the API was told of one service's replicas.

    leaving: those that were deleted and are being drained; they are forgotten when that is done.
    lost: those that were told once, and what was told of them cannot be read any more; they stay as they are.
    unread: why what an earlier daemon was told could not be read yet.
    """

    entries: dict[ReplicaId, ToldEntry] = field(default_factory=dict)
    leaving: dict[ReplicaId, ToldEntry] = field(default_factory=dict)
    lost: set[ReplicaId] = field(default_factory=set)
    unread: str | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """One entry as it was read, with the key that it names; `stamp` is that of the key's file."""

    entry: ToldEntry
    stamp: tuple[int, int, int] | None
    described: Described | None
    problem: str | None


class ToldReplicas:
    """The source of what is told of one service (a source). `read` turns an entry into what it says."""

    def __init__(
        self, told: Told, read: Callable[[ToldEntry, ReplicaId], Described], socket_of: SocketOf, own: OwnSockets
    ) -> None:
        self._told = told
        self._read = read
        self._socket_of = socket_of
        self._own = own
        self._known: dict[ReplicaId, _Read] = {}
        self._thread = OwnThread("source api")

    async def look(self) -> Listing:
        """What is there now. Never raises."""
        if self._told.unread is not None:
            return Listing(unseen={NAME: self._told.unread})
        entries = {**self._told.leaving, **self._told.entries}
        lost = frozenset(self._told.lost)
        if not entries and not lost:
            return Listing()
        try:
            return await self._thread.run(lambda: self._look(entries, lost), patience_s=_PATIENCE_S)
        except TimeoutError:
            return Listing(blind="the file system of a replica's socket, or of its key, does not answer")

    def _look(self, entries: dict[ReplicaId, ToldEntry], lost: frozenset[ReplicaId]) -> Listing:
        self._known = {replica: self._refreshed(replica, entry) for replica, entry in entries.items()}
        described = {replica: it.described for replica, it in self._known.items() if it.described is not None}
        listing = listing_of(described, NAME, self._socket_of, self._own)
        again = "what the API was told of it is lost; PUT it again, or DELETE it"
        refused: dict[str, str] = {**dict.fromkeys(lost, again), **listing.refused}
        refused |= {replica: it.problem for replica, it in self._known.items() if it.problem is not None}
        unknown = listing.unknown | lost | (self._known.keys() - described.keys())
        return Listing(listing.present, unknown, refused, absent=listing.absent)

    def _refreshed(self, replica: ReplicaId, entry: ToldEntry) -> _Read:
        """The entry as it was read last, unless it or its key's file is another one now."""
        before, stamp = self._known.get(replica), _stamp(entry)
        if before is not None and before.entry is entry and before.stamp == stamp:
            return before
        try:
            return _Read(entry, stamp, self._read(entry, replica), None)
        except ConfigError as error:
            kept = before.described if before is not None and before.entry is entry else None
            return _Read(entry, stamp, kept, "; ".join(error.problems))

    async def hints(self) -> AsyncIterator[None]:
        """Yields once: whoever tells us something has the service look."""
        yield


def _stamp(entry: ToldEntry) -> tuple[int, int, int] | None:
    key_file = entry.get("api_key_file")
    if not isinstance(key_file, str):
        return None
    try:
        status = Path(key_file).stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
