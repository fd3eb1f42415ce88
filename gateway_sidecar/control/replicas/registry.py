"""The tenures of one service: who stays behind its sockets, whose turn it is, and whose worker has which URL."""

from __future__ import annotations

from collections.abc import Iterator

from gateway_sidecar.control.replicas.tenure import Presence, SavedTenure, Tenure
from gateway_sidecar.domain.model import ConnectionMode, Occupant, ReplicaId


class Registry:
    """All of them: `by_key` until the last connection is gone, `current` while the occupant is there, `superseded`
    while one whose replica is elsewhere now serves on until that one does."""

    def __init__(self) -> None:
        self.by_key: dict[int, Tenure] = {}
        self.current: dict[ReplicaId, Tenure] = {}
        self.superseded: dict[int, Tenure] = {}
        self._by_url: dict[str, Tenure] = {}
        self._by_occupant: dict[Occupant, list[Tenure]] = {}

    def __iter__(self) -> Iterator[Tenure]:
        return iter(self.by_key.values())

    def add(self, tenure: Tenure) -> None:
        """A new tenure; it is the replica's current one unless its occupant is gone already."""
        self.by_key[tenure.key] = tenure
        self._by_occupant.setdefault(tenure.sighting.occupant, []).append(tenure)
        if not tenure.gone:
            self.current[tenure.replica] = tenure

    def leave(self, tenure: Tenure) -> None:
        """Its occupant is gone, or another one counts."""
        self.superseded.pop(tenure.key, None)
        if self.current.get(tenure.replica) is tenure:
            del self.current[tenure.replica]

    def supersede(self, tenure: Tenure) -> None:
        """It serves only until its replica serves elsewhere."""
        tenure.presence = Presence.SUPERSEDED
        self.superseded[tenure.key] = tenure

    def remove(self, tenure: Tenure) -> bool:
        """It is over; whether its URL was known as its own until now."""
        del self.by_key[tenure.key]
        stays = self._by_occupant[tenure.sighting.occupant]
        stays.remove(tenure)
        if not stays:
            del self._by_occupant[tenure.sighting.occupant]
        return self.forget_url(tenure)

    def know_url(self, tenure: Tenure) -> None:
        """Its worker has a URL, if it has one by now."""
        if tenure.url is not None:
            self._by_url[tenure.url] = tenure

    def forget_url(self, tenure: Tenure) -> bool:
        """The URL is not its worker's any more; False if it was not."""
        if tenure.url is None or self._by_url.get(tenure.url) is not tenure:
            return False
        del self._by_url[tenure.url]
        return True

    def at_url(self, url: str) -> Tenure | None:
        """Whose worker has this URL."""
        return self._by_url.get(url)

    @property
    def urls(self) -> frozenset[str]:
        """All URLs that workers have."""
        return frozenset(self._by_url)

    def urls_unsaid(self, tenure: Tenure) -> Iterator[str]:
        """The URLs that its worker may have, while it has not said what it is."""
        return (url for mode in ConnectionMode if (url := tenure.url_as(mode)) is not None)

    def fresh_generation(self, occupant: Occupant) -> int:
        """A socket that came back, the same inode, is a new stay: its old one may still be draining."""
        return max((t.generation for t in self._by_occupant.get(occupant, ())), default=-1) + 1

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return [
            SavedTenure(
                t.sighting, t.generation, t.bridge.port, t.probe.facts, t.drain.requested, t.gone, t.bridge.peer
            )
            for t in self
            if t.bridge.port is not None or t.drain.requested
        ]
