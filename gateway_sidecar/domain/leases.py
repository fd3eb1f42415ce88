"""Stable ports: a port belongs to one owner, keeps belonging to it, and rests before anyone else gets it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


class NoFreePort(Exception):
    """Every port of the range is leased or still in quarantine."""


class PortLeases:
    """Hands out the ports of one range.

    A released port is quarantined: it comes back only when `settle` says that nobody holds a connection on it, and not
    before the time that it was told to rest until (seconds of a clock that the caller chooses). The port that has been
    free the longest goes first, so that a late client of an old owner meets nobody.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._free: deque[int] = deque(ports)
        self._range = frozenset(self._free)
        self._owners: dict[int, str] = {}
        self._by_owner: dict[str, int] = {}
        self._quarantined: set[int] = set()
        self._rests_until: dict[int, float] = {}

    @property
    def size(self) -> int:
        """Ports in the range."""
        return len(self._range)

    @property
    def leased(self) -> Mapping[int, str]:
        """Port -> owner."""
        return self._owners

    @property
    def quarantined(self) -> frozenset[int]:
        """Ports that were released and may still be in use by someone."""
        return frozenset(self._quarantined)

    @property
    def rests_until(self) -> Mapping[int, float]:
        """Those of them that must rest, however quiet they are, and until when."""
        return self._rests_until

    def rested(self, now: float) -> frozenset[int]:
        """Those of them that need to rest no longer: free as soon as they are quiet."""
        return frozenset(port for port in self._quarantined if self._has_rested(port, now))

    def __contains__(self, port: object) -> bool:
        return port in self._range

    def port_of(self, owner: str) -> int | None:
        """The owner's port, if it has one."""
        return self._by_owner.get(owner)

    def acquire(self, owner: str, preferred: int | None = None) -> int:
        """The owner's port: the one it has, the one preferred if that is free, or the one that was free the longest.

        Raises NoFreePort.
        """
        port = self._by_owner.get(owner)
        if port is not None:
            return port
        if preferred is not None and preferred in self._free:
            self._free.remove(preferred)
            return self._give(preferred, owner)
        if not self._free:
            raise NoFreePort(f"{len(self._owners)} ports leased, {len(self._quarantined)} in quarantine")
        return self._give(self._free.popleft(), owner)

    def restore(self, port: int, owner: str) -> bool:
        """Gives `owner` the very port it had before a restart; False where that cannot be."""
        if port not in self._range or port in self._owners or owner in self._by_owner:
            return False
        if port in self._quarantined:
            self._quarantined.discard(port)
            self._rests_until.pop(port, None)
        else:
            self._free.remove(port)
        self._give(port, owner)
        return True

    def save_for_last(self, port: int) -> None:
        """Gives a free port out when no other is left, or to whoever prefers it."""
        if port in self._free:
            self._free.remove(port)
            self._free.append(port)

    def quarantine(self, port: int, until: float = 0.0) -> None:
        """Takes a free port out of use until it settles (a port that was in use before a restart)."""
        if port in self._range and port not in self._owners and port not in self._quarantined:
            self._free.remove(port)
            self._set_aside(port, until)

    def release(self, port: int, until: float = 0.0) -> None:
        """Ends a lease; the port goes into quarantine."""
        owner = self._owners.pop(port, None)
        if owner is not None:
            del self._by_owner[owner]
            self._set_aside(port, until)

    def settle(self, port: int, now: float) -> None:
        """Nobody holds a connection on a quarantined port any more: it is free again, unless it has to rest longer."""
        if port in self._quarantined and self._has_rested(port, now):
            self._quarantined.discard(port)
            self._rests_until.pop(port, None)
            self._free.append(port)

    def _has_rested(self, port: int, now: float) -> bool:
        return self._rests_until.get(port, now) <= now

    def _set_aside(self, port: int, until: float) -> None:
        self._quarantined.add(port)
        if until:
            self._rests_until[port] = until

    def _give(self, port: int, owner: str) -> int:
        self._owners[port] = owner
        self._by_owner[owner] = port
        return port
