"""The gateways of a fleet, as the store's keys say: which are alive, what they tell of themselves, and whether a drain
that all of them were asked for is done.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway_sidecar.domain.fleet_ports import PortsSeen
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.domain.store_memory import NOT_OURS, Snapshot

States = Mapping[str, Mapping[str, tuple[str, int | None]]]
"""Service -> replica -> its state and its bridge port, as one gateway sees it."""
StoreState = Literal["unread", "up", "away", "refused"]
"""How it stands with the store: not tried yet; read and believed; cannot be read; not believed."""


@dataclass(frozen=True, slots=True)
class AskedDrain:
    """A drain that the whole fleet was asked for, as its key's value has it.

    id: tells it from another drain of the same replica. gateway: at which it was asked for.
    """

    id: str
    gateway: str

    def to_json(self) -> str:
        """As the key's value."""
        return json.dumps({"id": self.id, "gateway": self.gateway})

    @classmethod
    def from_json(cls, text: str) -> AskedDrain | None:
        """None for what no gateway wrote."""
        try:
            said = json.loads(text)
            return cls(str(said["id"]), str(said["gateway"]))
        except NOT_OURS:
            return None


@dataclass(frozen=True, slots=True)
class DrainSeen:
    """What one gateway says of a drain.

    id: the drain that it means. is_safe: whether nothing of that gateway's needs the engine any more, or will.
    holds: whether it keeps an engine out of rotation for it; False where it has none, or another one took its place.
    in_flight: connections to the engine, as far as they were counted.
    """

    id: str
    is_safe: bool
    holds: bool = False
    in_flight: int | None = None

    def said(self) -> dict[str, object]:
        """As it stands in the gateway's key."""
        return {"id": self.id, "safe": self.is_safe, "holds": self.holds, "in_flight": self.in_flight}

    @classmethod
    def of(cls, said: Any) -> DrainSeen | None:
        """None for what no gateway wrote: then it has said nothing."""
        try:
            count = said.get("in_flight")
            is_safe, holds = said["safe"] is True, said.get("holds") is not False
            return cls(str(said["id"]), is_safe, holds, None if count is None else int(count))
        except NOT_OURS:
            return None


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway that is alive.

    instance: tells it from another of its name. version: of its program. services: those that it serves.
    ready: whether it takes requests. leaving: whether it is about to stop. ended: whether it has stopped all it had.
    since: when its daemon began, for people. drains: SERVICE/REPLICA -> what it says of a drain there.
    ports: what it says of the ports that all gateways use alike; None if it has said nothing.
    missing: gateways whose lease ended a moment ago, and that may be started again.
    said: all that it tells, as it stands there.
    """

    name: str
    instance: str
    version: str = ""
    services: tuple[str, ...] = ()
    ready: bool = False
    leaving: bool = False
    ended: bool = False
    since: str = ""
    drains: Mapping[str, DrainSeen] = field(default_factory=dict)
    ports: PortsSeen | None = None
    missing: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, text: str) -> Gateway | None:
        """As the key's value has it; None for what no gateway wrote."""
        try:
            said = json.loads(text)
            return cls(
                name,
                str(said["instance"]),
                str(said.get("version", "")),
                tuple(str(it) for it in said.get("services", ())),
                said.get("ready") is True,
                said.get("leaving") is True,
                said.get("ended") is True,
                str(said.get("since", "")),
                _drains_of(said.get("drains")),
                PortsSeen.of(said.get("ports")),
                tuple(str(it) for it in said.get("missing", ())),
                said,
            )
        except NOT_OURS:
            return None


def _drains_of(said: object) -> dict[str, DrainSeen]:
    found = {str(key): DrainSeen.of(it) for key, it in said.items()} if isinstance(said, Mapping) else {}
    return {key: it for key, it in found.items() if it is not None}


def gateways_in(snapshot: Snapshot, prefix: str) -> list[Gateway]:
    """Those whose lease holds, by name; not one that has stopped all it had.

    One whose key cannot be read is there, too: it has said nothing, and what it has in flight is not known.
    """
    keys = sorted(key for key in snapshot.entries if key.startswith(prefix))
    found = [_gateway(key.removeprefix(prefix), snapshot.entries[key].value) for key in keys]
    return [it for it in found if not it.ended]


@functools.lru_cache(maxsize=64)
def _gateway(name: str, text: str) -> Gateway:
    """Read once: all loops of a fleet look at the same texts, several times a second."""
    return Gateway.from_json(name, text) or Gateway(name, "")


def drains_in(snapshot: Snapshot, prefix: str) -> dict[str, AskedDrain]:
    """SERVICE/REPLICA -> the drain that was asked for."""
    found = {
        key.removeprefix(prefix): AskedDrain.from_json(it.value)
        for key, it in snapshot.entries.items()
        if key.startswith(prefix)
    }
    return {key: it for key, it in found.items() if it is not None}


def states_in(snapshot: Snapshot, prefix: str) -> dict[str, States]:
    """Gateway -> what it sees. What no gateway wrote is left out."""
    found: dict[str, States] = {}
    for key, entry in snapshot.entries.items():
        if key.startswith(prefix):
            try:
                said = json.loads(entry.value)
                found[key.removeprefix(prefix)] = {
                    str(service): {
                        str(id_): (str(state), None if port is None else int(port))
                        for state, ports in by_state.items()
                        for id_, port in ports.items()
                    }
                    for service, by_state in said.items()
                }
            except NOT_OURS:
                continue
    return found


@dataclass(frozen=True, slots=True)
class DrainAt:
    """How one other gateway stands with a drain.

    reason: why the engine may not be stopped for its sake, or why it does not count; empty for one that is done.
    silent_s: for how long it has not answered; None for one that has.
    """

    gateway: str
    is_safe: bool
    in_flight: int | None = None
    reason: str = ""
    silent_s: float | None = None


def drain_elsewhere(
    key: str, asked: AskedDrain, others: Iterable[Gateway], gone_s: Mapping[str, float], *, grace_s: float, age_s: float
) -> list[DrainAt]:
    """What the other gateways say of a drain, by name. It is done where each of them is safe.

    others: those that are alive, read after the drain was written: one that came since knew of it before it served.
    gone_s: how long ago the lease of another one ended. It counts as dead once that is `grace_s` ago: until then it
    may be a daemon that is started again, and learns of the drain. age_s: how long ago the drain was asked for.
    """
    found = [_of_living(it, key, asked, age_s) for it in others]
    for name, for_s in gone_s.items():
        if for_s < grace_s:
            why = f"its lease ended {for_s:.0f} s ago; it counts as dead in {grace_s - for_s:.0f} s"
            found.append(DrainAt(name, False, None, why, for_s))
        else:
            why = f"its lease ended {for_s:.0f} s ago: it counts as dead, and was not asked"
            found.append(DrainAt(name, True, None, why, for_s))
    return sorted(found, key=lambda it: it.gateway)


def _of_living(gateway: Gateway, key: str, asked: AskedDrain, age_s: float) -> DrainAt:
    seen = gateway.drains.get(key)
    if seen is None or seen.id != asked.id:
        return DrainAt(gateway.name, False, None, f"it has not answered for {age_s:.0f} s", age_s)
    if seen.is_safe:
        return DrainAt(gateway.name, True, 0)
    return DrainAt(gateway.name, False, seen.in_flight, f"{connections(seen.in_flight)} in flight")


def connections(number: int | None) -> str:
    """In words."""
    return "an unknown number of connections" if number is None else counted(number, "connection")


def is_over(key: str, asked: AskedDrain, own: DrainSeen, others: Iterable[Gateway]) -> bool:
    """Whether no gateway keeps an engine out of rotation for this drain any more: it is gone, or was replaced."""
    said = [own, *(it.drains.get(key) for it in others)]
    return all(it is not None and it.id == asked.id and not it.holds for it in said)
