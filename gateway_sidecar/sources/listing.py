"""What a source says: which replicas are there, and what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.domain.model import Occupant, ReplicaId


@dataclass(frozen=True, slots=True)
class Sighting:
    """One replica's socket as it is now.

    `notes` is the (path, mtime in ns) of the `<replica>.yaml` beside it, if there is one.
    """

    replica: ReplicaId
    socket: Path
    occupant: Occupant
    notes: tuple[Path, int] | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a source.

    present: what is certainly there.
    unknown: replicas that were there before and could not be looked at now; they stay as they were.
    refused: names or files that match the pattern and cannot be replicas -> why.
    blind: why nothing at all could be seen; then every replica stays as it was.
    """

    present: Mapping[ReplicaId, Sighting] = field(default_factory=dict)
    unknown: frozenset[ReplicaId] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    blind: str | None = None

    def is_gone(self, replica: ReplicaId) -> bool:
        """Positive evidence that the replica's socket is not there any more."""
        return self.blind is None and replica not in self.present and replica not in self.unknown
