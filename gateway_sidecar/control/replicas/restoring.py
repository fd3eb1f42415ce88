"""Takes up the tenures that an earlier daemon left. Records are hints: who is there is told by the first look."""

from __future__ import annotations

from pathlib import Path

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.bridging import Bridging
from gateway_sidecar.control.replicas.lifecycle import Lifecycle
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import SavedTenure, owner_of
from gateway_sidecar.domain.model import SocketIdentity
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.sources.build import claim_of
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.telemetry.logs import get_logger


class Restoring:
    """For one service, before its loop runs."""

    def __init__(self, settings: ServiceSettings, tenures: Registry, lifecycle: Lifecycle, bridges: Bridging) -> None:
        self._service = settings.name
        self._settings = settings
        self._tenures = tenures
        self._lifecycle = lifecycle
        self._bridges = bridges
        self._logger = get_logger(service=settings.name)

    def restore(self, saved: SavedTenure, *, linked: bool) -> None:
        """Goes on with it on the same port. `linked` says whether the bridge still leads to it."""
        owner = owner_of(self._service, saved.sighting, saved.generation)
        if saved.port is not None and not self._bridges.restore(saved.port, owner):
            self._logger.warning("lease.not_restored", replica=saved.sighting.replica, port=saved.port)
            return
        self._bridges.ask_for_address(self._lifecycle.restore(saved, linked=linked))

    def prefer(self, saved: SavedTenure) -> None:
        """A replica of this name had this port before the machine was started anew: it gets it again if it can."""
        if saved.port is not None:
            self._bridges.prefer(saved.sighting.replica, saved.port)

    def claim(self, port: int, socket: Path, linked_at_ns: int) -> bool:
        """Takes up a bridge of this service that no record tells of; False if it is none.

        A socket that was bound before the link was made is the one that it was made for. If there is none, the replica
        has left, and what it has in flight is waited for.
        """
        claim = claim_of(self._settings, socket)
        if claim is None:
            return False
        replica, source = claim
        occupant = None if replica in self._tenures.current else _bound_before(linked_at_ns, socket)
        sighting = Sighting(replica, socket, occupant or SocketIdentity(0, 0, linked_at_ns), source)
        self.restore(SavedTenure(sighting, 0, port, None, False, leaving=occupant is None), linked=True)
        return True


def _bound_before(at_ns: int, socket: Path) -> SocketIdentity | None:
    try:
        occupant = socket_identity(socket)
        bound_at_ns = occupant.born_ns or socket.lstat().st_mtime_ns
    except OSError:
        return None
    return occupant if bound_at_ns <= at_ns else None
