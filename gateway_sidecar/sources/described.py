"""Replicas that an inventory, a setting or the API describes: where each is, and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from gateway_sidecar.domain.model import Overrides, ReplicaId, SocketIdentity
from gateway_sidecar.domain.trust import ROOT, Owned, way_in
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.files.follow import Followed, ours
from gateway_sidecar.sources.base import Given
from gateway_sidecar.sources.entry import Described, RawEntry
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.sources.placed import RefusedPlaceError, occupant_of, socket_at


def listing_of(
    described: Mapping[ReplicaId, Described],
    source: str,
    given: Given,
    vouching: Set[int] = frozenset(),
) -> Listing:
    """Looks at each place. A tunnel of ours is there as soon as it is wanted; a socket when it exists. Blocks.

    vouching: users beside root and the daemon's own that may name anybody's socket, and SSH servers.
    """
    forbidden = given.own.now()
    present: dict[ReplicaId, Sighting] = {}
    unknown: set[ReplicaId] = set()
    refused: dict[str, str] = {}
    absent: dict[ReplicaId, tuple[str, Path]] = {}
    for replica, it in described.items():
        if isinstance(it.place, Tunnel) and it.named_by not in ours() | vouching:
            refused[replica] = (
                f"user {it.named_by} may not have the daemon log in to {it.place} with its keys; "
                "let the inventory's owner or root write this file"
            )
            continue
        if isinstance(it.place, Tunnel):
            present[replica] = tunnelled(replica, it.place, source, given, it.overrides, it.entry)
            continue
        try:
            place = socket_at(str(it.place), forbidden, named_by=it.named_by, vouching=vouching)
            occupant = occupant_of(place)
        except (FileNotFoundError, NotADirectoryError):
            absent[replica] = (source, it.place)
            continue
        except OSError as error:
            unknown.add(replica)
            refused[replica] = f"cannot look at {it.place}: {error.strerror}"
            continue
        except RefusedPlaceError as error:
            refused[replica] = str(error)
            continue
        if it.overrides.api_key is not None and (shared := _who_else(place)):
            refused[replica] = (
                f"{shared}: anyone who places {place.real} would be sent its API key; "
                f"place it in a directory that only user {place.found.st_uid} may write"
            )
            continue
        target = None if place.real == str(it.place) else Path(place.real)
        present[replica] = Sighting(
            replica, it.place, occupant, source, None, None, True, it.overrides, target, it.entry
        )
    return Listing(present, frozenset(unknown), refused, absent=absent)


def tunnelled(
    replica: ReplicaId,
    tunnel: Tunnel,
    source: str,
    given: Given,
    overrides: Overrides,
    entry: RawEntry | None = None,
) -> Sighting:
    """A replica behind a tunnel of ours, which is its occupant: it is there as long as it is listed."""
    socket = given.socket_of(tunnel)
    occupant = SocketIdentity(0, 0, 0, socket.stem)
    return Sighting(replica, socket, occupant, source, None, tunnel, True, overrides, entry=entry)


def _who_else(place: Followed) -> str | None:
    """How a user other than the socket's owner could place a socket there; None if none can."""
    owners = ours() | {place.found.st_uid}
    directory: Owned = place.above[-1]
    return way_in(directory, place.above[:-1], owners, (ROOT,))
