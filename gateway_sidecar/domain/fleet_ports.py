"""The bridge ports that all gateways of a fleet use alike: one table, and what becomes of it next. Pure.

1. A replica has the same port at every gateway, if that port can be had there; a gateway is never kept waiting for it.
2. An unchanged replica keeps its port: what a gateway has already is what the table takes up.
3. A port that is no replica's any more rests in the table, and is nobody else's, until every gateway that is alive has
said, knowing that it rests, that nothing of its own holds it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from gateway_sidecar.domain.store_memory import NOT_OURS


@dataclass(frozen=True, slots=True)
class PortTable:
    """The table, as its key's value has it.

    number: grows with each change. last: the port that was given out last.
    current: SERVICE/REPLICA -> its port. rests: a port that rests -> the table's number when it began to.
    """

    number: int = 0
    last: int = 0
    current: Mapping[str, int] = field(default_factory=dict)
    rests: Mapping[int, int] = field(default_factory=dict)

    @property
    def taken(self) -> frozenset[int]:
        """Ports that are given out by this table alone."""
        return frozenset(self.current.values()) | self.rests.keys()

    def to_json(self) -> str:
        """As the key's value."""
        rests = {str(port): number for port, number in self.rests.items()}
        said = {"number": self.number, "last": self.last, "current": dict(self.current), "rests": rests}
        return json.dumps(said, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PortTable | None:
        """None for what no gateway wrote."""
        try:
            said = json.loads(text)
            current = {str(key): int(port) for key, port in said["current"].items()}
            rests = {int(port): int(number) for port, number in said["rests"].items()}
            return cls(int(said["number"]), int(said["last"]), current, rests)
        except NOT_OURS:
            return None


@dataclass(frozen=True, slots=True)
class PortsSeen:
    """What one gateway says of the table: the number that it knows, and which ports that rest there it still holds."""

    number: int
    busy: frozenset[int] = frozenset()

    def said(self) -> dict[str, object]:
        """As it stands in the gateway's key."""
        return {"number": self.number, "busy": sorted(self.busy)}

    @classmethod
    def of(cls, said: object) -> PortsSeen | None:
        """None for what no gateway wrote: then it has said nothing."""
        try:
            assert isinstance(said, Mapping)
            return cls(int(said["number"]), frozenset(int(port) for port in said["busy"]))
        except (AssertionError, *NOT_OURS):
            return None


@dataclass(frozen=True, slots=True)
class PortNeeds:
    """What one gateway would have of the table.

    wants: SERVICE/REPLICA -> the port that will not do, since its engine before this one has it; None for a first one.
    has: SERVICE/REPLICA -> the port that it has there already.
    replicas: those that all gateways have. free: ports that nobody has here, in the order of the range, of the part
    that all gateways use alike. spare: those of the other part, for want of these.
    """

    wants: Mapping[str, int | None]
    has: Mapping[str, int]
    replicas: Container[str]
    free: Sequence[int]
    spare: Sequence[int] = ()


def next_table(table: PortTable, needs: PortNeeds, says: Iterable[PortsSeen | None]) -> PortTable:
    """The table as it should be; the same object if it is. says: what every gateway that is alive says of it."""
    number, seen = table.number + 1, list(says)
    current = {key: port for key, port in table.current.items() if key in needs.replicas}
    rests = {
        port: since
        for port, since in table.rests.items()
        if not all(it is not None and it.number >= since and port not in it.busy for it in seen)
    }
    rests |= {port: number for key, port in table.current.items() if key not in current}
    taken, last = {*current.values(), *rests, *table.rests}, table.last
    for key, port in sorted(needs.has.items()):
        if key in needs.replicas and key not in current and port not in taken:
            current[key] = port
            taken.add(port)
    fresh = _in_turn(needs, last, taken)
    for key, not_this in sorted(needs.wants.items()):
        if key in needs.replicas and current.get(key) == not_this and (fresh_port := next(fresh, None)) is not None:
            if not_this is not None:
                rests[not_this] = number
            current[key] = last = fresh_port
    if (current, rests) == (dict(table.current), dict(table.rests)):
        return table
    return replace(table, number=number, last=last, current=current, rests=rests)


def _in_turn(needs: PortNeeds, last: int, taken: Container[int]) -> Iterator[int]:
    """Ports to give out, those first that were given out the longest ago, as far as the order tells."""
    later, earlier = (port for port in needs.free if port > last), (port for port in needs.free if port <= last)
    return (port for port in chain(later, earlier, needs.spare) if port not in taken)
