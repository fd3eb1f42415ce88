"""What a source says: which replicas are there, and what it does not know; and what several say together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from gateway_sidecar.domain.model import Overrides, ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.files.stamp import Stamp
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.supervision import awake

_PATIENCE_S = 1.0  # Of several sources one that is slow does not hold up the others' news; what it said last counts.
_HANGS_S = 8.0
"""Each source has a patience of its own with its file system, 5 s. This is for one that has lost even that."""


@dataclass(frozen=True, slots=True)
class NotesFile:
    """The `<replica>.yaml` beside a socket, as it was found."""

    path: Path
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Sighting:
    """One replica's socket as it is now.

    target: the socket itself, where links lead to it from `socket`; None where there are none.
    source: the name of the source that owns the replica.
    notes: the `<replica>.yaml` beside it, if there is one.
    tunnel: what makes the socket, if that is us.
    described: whether the source itself says what is noted of the replica; `overrides` is that, and None only in a
        sighting that was written down, which holds no keys.
    entry: what the API's entry said when this was looked at; None where there is none, or it was not written down.
    """

    replica: ReplicaId
    socket: Path
    occupant: SocketIdentity
    source: str
    notes: NotesFile | None = None
    tunnel: Tunnel | None = None
    described: bool = False
    overrides: Overrides | None = None
    target: Path | None = None
    entry: RawEntry | None = field(default=None, compare=False)

    @property
    def place(self) -> Path:
        """Where the socket really is: what is bridged. A later change of a symlink has no effect on it."""
        return self.target or self.socket

    def is_listed_elsewhere(self, earlier: Sighting) -> bool:
        """Whether its source says that the replica is somewhere else now: `earlier` may be there still."""
        described = self.described and earlier.described and self.source == earlier.source
        return described and (self.tunnel, self.socket) != (earlier.tunnel, earlier.socket)

    def says_as_much_as(self, other: Sighting) -> bool:
        """Whether both say the same of the same place."""
        return self is other or (self.source, self.socket, self.target, self.notes, self.described, self.overrides) == (
            *(other.source, other.socket, other.target, other.notes, other.described, other.overrides),
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a source, or at several together.

    present: what is certainly there.
    unknown: replicas that were there before and could not be looked at now; they stay as they were.
    refused: names or files that match and cannot be replicas -> why.
    unseen: sources of which not everything could be seen -> why; what they own, and is not present, stays as it was.
    absent: replicas that a source describes and whose socket is not there -> that source, and the socket.
    blind: why nothing at all could be seen; then every replica stays as it was.
    """

    present: Mapping[ReplicaId, Sighting] = field(default_factory=dict)
    unknown: frozenset[ReplicaId] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[ReplicaId, tuple[str, Path]] = field(default_factory=dict)
    blind: str | None = None

    def is_gone(self, replica: ReplicaId, source: str = "") -> bool:
        """Positive evidence that the replica, owned by `source`, is not there any more."""
        known = self.blind is None and source not in self.unseen
        return known and replica not in self.present and replica not in self.unknown


class Source(Protocol):
    """What says which replicas there are. It promises no more than that."""

    async def look(self) -> Listing:
        """What is there now, soon. Never raises: what cannot be seen in time is `blind`, `unseen` or `unknown`."""
        ...

    def hints(self) -> AsyncIterator[None]:
        """Yields whenever a look may be worth while. May miss things. Raises OSError if it cannot tell any more."""
        ...


@dataclass(slots=True)
class _Look:
    """A look at one source, begun at `since`. It may outlast the look at all of them."""

    task: asyncio.Task[Listing]
    since: float
    is_late: bool = False


class MergedSources:
    """Several sources as one, by name, in order of precedence: the first that names a replica owns it.

    A second one is refused, and so is a second name of one engine.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._looks: dict[str, _Look] = {}
        self._said: dict[str, Listing] = {}
        self._news = asyncio.Event()
        self._holders: dict[object, ReplicaId] = {}
        self._owned: dict[str, frozenset[ReplicaId]] = dict.fromkeys(sources, frozenset())
        self._merged: tuple[list[Listing], Listing] | None = None

    async def look(self) -> Listing:
        """What is there now. Never raises. A blind source keeps the replicas that it owned. A slow source delays no
        other: its last listing counts until it is done, or counts as hung.
        """
        listings = await self._look_at_each()
        if self._merged is None or self._merged[0] != listings:
            self._merged = listings, self._merge(listings)
        return self._merged[1]

    def _merge(self, listings: list[Listing]) -> Listing:
        """All of them as one. The same listings again make the same: `look` spares that, 1.2 ms for 1,000 replicas."""
        present: dict[ReplicaId, Sighting] = {}
        unknown: set[ReplicaId] = set()
        refused: dict[str, str] = {}
        unseen: dict[str, str] = {}
        absent: dict[ReplicaId, tuple[str, Path]] = {}
        owners: dict[ReplicaId, str] = {}
        for name, listing in zip(self._sources, listings, strict=True):
            if listing.blind is not None:
                unseen[name] = listing.blind
            unseen |= listing.unseen
            absent |= {replica: it for replica, it in listing.absent.items() if replica not in absent}
            refused |= {key: why for key, why in listing.refused.items() if key not in refused}
            seen = {*listing.present, *listing.unknown}
            owned = seen | self._owned[name] if name in unseen else seen
            for replica in sorted(owned):
                if replica in owners:
                    first = owners[replica]
                    refused[replica] = f"is in {first} and in {name}; {first} counts: rename or remove one"
                    continue
                owners[replica] = name
                if replica in listing.present:
                    present[replica] = listing.present[replica]
                else:
                    unknown.add(replica)
            self._owned[name] = frozenset(replica for replica in owned if owners[replica] == name)
        refused |= self._take_out_doubles(present)
        blind = "; ".join(f"{name}: {why}" for name, why in unseen.items()) if len(unseen) == len(listings) else None
        if blind is not None and not present:
            return Listing(refused=refused, unseen=unseen, blind=blind)
        return Listing(present, frozenset(unknown), refused, unseen, absent)

    async def _look_at_each(self) -> list[Listing]:
        for name, source in self._sources.items():
            earlier = self._looks.get(name)
            if earlier is None or earlier.task.done():
                self._looks[name] = _Look(asyncio.create_task(source.look()), awake.now())
        await asyncio.wait([look.task for look in self._looks.values()], timeout=_PATIENCE_S)
        return [self._said_by(name, look) for name, look in self._looks.items()]

    def _said_by(self, name: str, look: _Look) -> Listing:
        if look.task.done():
            self._said[name] = look.task.result()
        elif awake.now() - look.since >= _HANGS_S:
            self._said[name] = Listing(blind="it does not answer")
        elif not look.is_late:
            look.is_late = True
            look.task.add_done_callback(partial(self._came_late, name))
        return self._said.get(name) or Listing(blind="it has not answered yet")

    def _came_late(self, name: str, task: asyncio.Task[Listing]) -> None:
        if not task.cancelled() and task.exception() is None and task.result() != self._said.get(name):
            self._said[name] = task.result()
            self._news.set()

    def _take_out_doubles(self, present: dict[ReplicaId, Sighting]) -> dict[str, str]:
        """One engine is one replica: under a second id it would count twice, and a drain of either would prove nothing.

        Who was there first keeps the place; what is taken out of `present` is returned, with the reason.
        """
        holders: dict[object, ReplicaId] = {}
        for replica, sighting in sorted(present.items(), key=lambda it: self._holders.get(_place(it[1])) != it[0]):
            holders.setdefault(_place(sighting), replica)
        self._holders = holders
        refused = {}
        for replica, sighting in list(present.items()):
            holder = holders[_place(sighting)]
            if holder != replica:
                refused[str(replica)] = f"is the same engine as '{holder}' ({_shown(sighting)}); remove one"
                del present[replica]
        return refused

    async def hints(self) -> AsyncIterator[None]:
        """Yields whenever a look at any of them may be worth while. Raises OSError if one cannot tell any more."""
        news = self._news

        async def pass_on(source: Source) -> None:
            async for _ in source.hints():
                news.set()

        tasks = {asyncio.create_task(pass_on(source)) for source in self._sources.values()}
        try:
            while True:
                for task in [task for task in tasks if task.done()]:
                    task.result()  # One that has nothing more to tell is no fault.
                    tasks.discard(task)
                news.clear()
                yield
                waiting = asyncio.create_task(news.wait())
                try:
                    await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _place(sighting: Sighting) -> object:
    """What two replicas cannot share."""
    tunnel = sighting.tunnel
    return sighting.occupant if tunnel is None else (tunnel.route, tunnel.remote)


def _shown(sighting: Sighting) -> str:
    return str(sighting.tunnel or sighting.socket)
