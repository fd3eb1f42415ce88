"""Stable ports: a port belongs to one owner, keeps belonging to it, and rests before anyone else gets it.

Services that share a range are each sure of an equal part of it: `share` ports. A service gets a port while it holds
fewer than its share; beyond that only while more ports are free than the others still lack to theirs. Ports that rest
count as held by the service that had them. No service loses a port: when a further service makes all shares smaller, a
service above its share keeps what it has and gets no more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

_NOBODY = ""
"""Who holds what is in no service's name: a port that was in use before a restart, say."""

_NAMED = 3
"""Services that a message names: those who hold the most."""


class NoFreePort(Exception):
    """Every port of the range is leased or still in quarantine, or kept for other services."""


class PortLeases:
    """Hands out the ports of one range.

    A released port is quarantined: it comes back only when `note_quiet` says that no connection to it is left, and not
    before the end of its rest (seconds of a clock that the caller chooses). The port that has been free the longest
    goes first, so that a late client of an old owner meets no new one.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._free: deque[int] = deque(ports)
        self._range = frozenset(self._free)
        self._owners: dict[int, str] = {}
        self._by_owner: dict[str, int] = {}
        self._quarantined: set[int] = set()
        self._rests_until: dict[int, float] = {}
        self._kept: frozenset[int] = frozenset()
        self._common: frozenset[int] = frozenset()
        self._sharers: frozenset[str] = frozenset()
        self._holders: dict[int, str] = {}
        self._held: Counter[str] = Counter()

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

    @property
    def share(self) -> int:
        """How many ports each service is sure of."""
        return self.size // max(len(self._sharers), 1)

    def share_among(self, services: Iterable[str]) -> None:
        """From now on these services, and no others, are sure of their share."""
        self._sharers = frozenset(services)

    def set_apart(self, common: Iterable[int], kept: Iterable[int]) -> None:
        """From now on `kept` ports are given only to whoever claims them, and `common` ones only if no other is free.

        All gateways of a fleet use these alike, so this one takes none of them for what it alone has.
        """
        self._common, self._kept = frozenset(common), frozenset(kept)

    @property
    def free(self) -> Sequence[int]:
        """Ports that nobody has here, in the order of the range."""
        return sorted(self._free)

    def holds(self, port: int) -> bool:
        """Whether somebody has the port here, or may still be connected to it."""
        return port in self._owners or port in self._quarantined

    def claim(self, port: int, owner: str, *, service: str = _NOBODY) -> bool:
        """Gives `owner` this very port; False where it is not free here. Raises NoFreePort for want of a share."""
        if self._by_owner.get(owner) == port:
            return True
        if port not in self._free or owner in self._by_owner:
            return False
        self._check(service)
        self._free.remove(port)
        self._give(port, owner, service)
        return True

    def held_by(self, service: str) -> int:
        """Ports that are leased to a service, or rest after it."""
        return self._held[service]

    def holder_of(self, port: int) -> str:
        """The service that holds a port; empty where none does."""
        return self._holders.get(port, _NOBODY)

    def rested(self, now: float) -> frozenset[int]:
        """Those of them that need to rest no longer: free as soon as they are quiet."""
        return frozenset(port for port in self._quarantined if self._has_rested(port, now))

    def __contains__(self, port: object) -> bool:
        return port in self._range

    def port_of(self, owner: str) -> int | None:
        """The owner's port, if it has one."""
        return self._by_owner.get(owner)

    def acquire(self, owner: str, preferred: int | None = None, *, service: str = _NOBODY) -> int:
        """The owner's port: its present port, else the preferred port if free, else the port that was free the longest.

        Raises NoFreePort.
        """
        port = self._by_owner.get(owner)
        if port is not None:
            return port
        self._check(service)
        if preferred is None or preferred not in self._free or preferred in self._kept:
            preferred = self._first_free()
        self._free.remove(preferred)
        return self._give(preferred, owner, service)

    def restore(self, port: int, owner: str, *, service: str = _NOBODY) -> bool:
        """Gives `owner` the very port it had before a restart, whatever its share; False where that cannot be."""
        if port not in self._range or port in self._owners or owner in self._by_owner:
            return False
        if port in self._quarantined:
            self._end_rest(port)
        else:
            self._free.remove(port)
        self._give(port, owner, service)
        return True

    def save_for_last(self, port: int) -> None:
        """Gives this free port out last, unless an owner prefers it."""
        if port in self._free:
            self._free.remove(port)
            self._free.append(port)

    def quarantine(self, port: int, until: float = 0.0, *, service: str = _NOBODY) -> None:
        """Takes a free port out of use until nobody is connected to it (a port that was in use before a restart)."""
        if port in self._range and port not in self._owners and port not in self._quarantined:
            self._free.remove(port)
            self._hold(port, service)
            self._set_aside(port, until)

    def release(self, port: int, until: float = 0.0) -> None:
        """Ends a lease; the port goes into quarantine."""
        owner = self._owners.pop(port, None)
        if owner is not None:
            del self._by_owner[owner]
            self._set_aside(port, until)

    def note_quiet(self, port: int, now: float) -> None:
        """No connection to a quarantined port is left: it is free again, unless its rest is longer."""
        if port in self._quarantined and self._has_rested(port, now):
            self._end_rest(port)
            self._free.append(port)

    def _first_free(self) -> int:
        """Raises NoFreePort."""
        usable = [port for port in self._free if port not in self._kept] if self._kept else self._free
        if not usable:
            raise NoFreePort(f"all {self.size} are held: {len(self._kept)} of them by the fleet")
        return next((port for port in usable if port not in self._common), usable[0]) if self._common else usable[0]

    def _check(self, service: str) -> None:
        """Raises NoFreePort if the service must not have one more."""
        if not self._free:
            held = ", ".join(f"{name or 'nobody'} {count}" for name, count in self._held.most_common(_NAMED))
            raise NoFreePort(f"all {self.size} are held: {held}; {len(self._quarantined)} of them rest")
        if service in self._sharers and self._held[service] < self.share:
            return
        lacking = sum(max(0, self.share - self._held[other]) for other in self._sharers - {service})
        if len(self._free) <= lacking:
            raise NoFreePort(
                f"{service} holds {self._held[service]}; its share of {self.size} among {len(self._sharers)} services"
                f" is {self.share}, and the rest is kept for the others"
            )

    def _has_rested(self, port: int, now: float) -> bool:
        return self._rests_until.get(port, now) <= now

    def _set_aside(self, port: int, until: float) -> None:
        self._quarantined.add(port)
        if until:
            self._rests_until[port] = until

    def _end_rest(self, port: int) -> None:
        self._quarantined.discard(port)
        self._rests_until.pop(port, None)
        self._let_go(port)

    def _give(self, port: int, owner: str, service: str) -> int:
        self._owners[port] = owner
        self._by_owner[owner] = port
        self._hold(port, service)
        return port

    def _hold(self, port: int, service: str) -> None:
        self._holders[port] = service
        self._held[service] += 1

    def _let_go(self, port: int) -> None:
        service = self._holders.pop(port)
        self._held[service] -= 1
        if not self._held[service]:
            del self._held[service]
