"""What a source says: which replicas are there, and what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.domain.model import Overrides, ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import Tunnel


@dataclass(frozen=True, slots=True)
class Sighting:
    """One replica's socket as it is now.

    target: the socket itself, where links lead to it from `socket`; None where there are none.
    source: the name of the source that owns the replica.
    notes: the (path, ctime in ns) of the `<replica>.yaml` beside it, if there is one. A change of owner counts, too.
    tunnel: what makes the socket, if that is us.
    described: whether the source itself says what is noted of the replica; `overrides` is that, and None only in a
        sighting that was written down, which holds no keys.
    """

    replica: ReplicaId
    socket: Path
    occupant: SocketIdentity
    source: str
    notes: tuple[Path, int] | None = None
    tunnel: Tunnel | None = None
    described: bool = False
    overrides: Overrides | None = None
    target: Path | None = None

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
