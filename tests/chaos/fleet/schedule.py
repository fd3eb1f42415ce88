"""From a seed to a schedule of a fleet: pure, so that the same seed always means the same events.

Validity: of the anchors one serves all the time, and the others only ever drain; at most one gateway is lost or leaves
in a round, as an operator would have it, and so somebody always serves; whatever else happens to gateways, networks,
etcd and engines may come together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args

from examples.simulated import EngineKind
from tests.chaos.events import Engine, Event
from tests.chaos.fleet.events import (
    AddAndRevoke,
    AwayDaemon,
    AwayHow,
    AwayMembers,
    Compact,
    CutNode,
    CutStore,
    Die,
    DrainAndRemove,
    DrainAndResume,
    EndLogins,
    KillNginx,
    KillRouter,
    Leave,
    LoseGateway,
    LostHow,
    MembersHow,
    Put,
    Reload,
    Renew,
    Round,
    Schedule,
)

MODEL = "tiny"
NODES, MEMBERS = (1, 2), (1, 2, 3)
_KINDS = (EngineKind.SGLANG_HTTP, EngineKind.VLLM_HTTP)
_ANCHORS = {"a1": 1, "a2": 2, "a3": 0}
_DRAINED = ("a1", "a2")
_AWAY: tuple[AwayHow, ...] = get_args(AwayHow)
_LOST: tuple[LostHow, ...] = get_args(LostHow)
_MEMBERS_HOW: tuple[MembersHow, ...] = get_args(MembersHow)
_SETTLING_S = 2.0
_SPACE_S = 2.0
"""Between two events of one place: what the first one did has mostly come to its end."""

_Make = Callable[[float], Event | None]


@dataclass(frozen=True, slots=True)
class Mix:
    """How wild it gets: mean gaps between events of each sort."""

    round_s: float = 30.0
    gateway_gap_s: float = 3.0
    store_gap_s: float = 8.0
    network_gap_s: float = 6.0
    replica_gap_s: float = 2.0
    key_gap_s: float = 8.0
    slots: int = 4
    longest_s: float = 16.0
    """What is away or cut is back after this long. More than two leases, so that gateways count as dead at times."""
    of_gateways: tuple[str, ...] = (
        "daemon", "daemon", "nginx", "router", "reload", "lose", "lose", "leave", "join",
    )  # fmt: skip


@dataclass
class _Slot:
    """A replica as the generator believes it to be."""

    replica: str
    is_there: bool = False
    free_at: float = 0.0
    starts: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def make_schedule(seed: int, gateways: int, rounds: int, mix: Mix | None = None) -> Schedule:
    """The schedule of a seed: so many rounds of a fleet of so many gateways."""
    return _Maker(seed, gateways, mix or Mix()).schedule(rounds)


class _Maker:
    def __init__(self, seed: int, gateways: int, mix: Mix) -> None:
        self._seed = seed
        self._gateways = gateways
        self._mix = mix
        self._random = random.Random(seed)
        self._slots = [_Slot(f"r{number}") for number in range(1, mix.slots + 1)]
        self._keys = itertools.count(1)
        self._free_at: dict[str, float] = {}
        self._has_gone = False

    def schedule(self, rounds: int) -> Schedule:
        anchors = tuple(
            Put(at=0.0, replica=name, gateway=self._gateway(), engine=self._engine(name, 0), node=node)
            for name, node in _ANCHORS.items()
        )
        return Schedule(self._seed, self._gateways, anchors, tuple(self._round() for _ in range(rounds)))

    def _round(self) -> Round:
        mix = self._mix
        self._free_at, self._has_gone = {}, False
        for slot in self._slots:
            slot.free_at = 0.0
        due = [
            *self._times(mix.gateway_gap_s, self._at_gateway),
            *self._times(mix.store_gap_s, self._at_store),
            *self._times(mix.network_gap_s, self._at_network),
            *self._times(mix.replica_gap_s, self._at_replica),
            *self._times(mix.key_gap_s, self._at_key),
        ]
        drawn = [make(at) for at, make in sorted(due, key=lambda one: one[0])]
        events = tuple(event for event in drawn if event is not None)
        return Round(mix.round_s, events, self._random.choice(list(_ANCHORS)), self._gateway())

    def _times(self, gap_s: float, make: _Make) -> Iterator[tuple[float, _Make]]:
        at = self._random.expovariate(1 / gap_s)
        while at < self._mix.round_s:
            yield round(at, 2), make
            at += self._random.expovariate(1 / gap_s)

    def _takes(self, event: Event, took_s: float) -> Event | None:
        """The event, if its place is free then; it is taken for so long."""
        if event.at < self._free_at.get(event.place, 0.0):
            return None
        self._free_at[event.place] = event.at + took_s + _SPACE_S
        return event

    # -- gateways

    def _at_gateway(self, at: float) -> Event | None:
        gateway = self._gateway()
        what = self._random.choice(self._mix.of_gateways)
        for_s = self._seconds(0.5, self._mix.longest_s)
        match what:
            case "daemon":
                how = self._random.choice(_AWAY)
                return self._takes(AwayDaemon(at=at, gateway=gateway, how=how, for_s=for_s), for_s)
            case "nginx":
                return self._takes(KillNginx(at=at, gateway=gateway), _SETTLING_S)
            case "router":
                return self._takes(KillRouter(at=at, gateway=gateway), _SETTLING_S)
            case "reload":
                return self._takes(Reload(at=at, gateway=gateway), 0.0)
        if self._has_gone or at < self._free_at.get(f"gw-{gateway}", 0.0):
            return None
        self._has_gone = True  # A gateway that comes back takes its time: one in each round.
        if what == "lose":
            lost = self._random.choice(_LOST)
            return self._takes(LoseGateway(at=at, gateway=gateway, how=lost, for_s=for_s), for_s)
        joins = what == "join"
        for_s = self._seconds(0.5, 6) if joins else self._seconds(0, 4)
        return self._takes(Leave(at=at, gateway=gateway, for_s=for_s, joins=joins), self._mix.round_s)

    # -- etcd and networks

    def _at_store(self, at: float) -> Event | None:
        what = self._random.choice(("one", "one", "all", "compact"))
        for_s = self._seconds(1, self._mix.longest_s)
        if what == "compact":
            return self._takes(Compact(at=at, members=(self._random.choice(MEMBERS),)), 0.0)
        members = MEMBERS if what == "all" else (self._random.choice(MEMBERS),)
        how = self._random.choice(_MEMBERS_HOW)
        return self._takes(AwayMembers(at=at, members=members, how=how, for_s=for_s), for_s)

    def _at_network(self, at: float) -> Event | None:
        gateway, node = self._gateway(), self._random.choice(NODES)
        for_s = self._seconds(0.5, self._mix.longest_s)
        match self._random.choice(("store", "node", "node", "logins")):
            case "store":
                return self._takes(CutStore(at=at, gateway=gateway, for_s=for_s), for_s)
            case "node":
                return self._takes(CutNode(at=at, gateway=gateway, node=node, for_s=for_s), for_s)
        return self._takes(EndLogins(at=at, node=node), 0.0)

    # -- replicas and keys

    def _at_replica(self, at: float) -> Event | None:
        draw = self._random
        if draw.random() < 0.2:
            anchor, for_s = draw.choice(_DRAINED), self._seconds(0, 3)
            return self._takes(
                DrainAndResume(
                    at=at, replica=anchor, gateway=self._gateway(), resumed_at=self._gateway(), for_s=for_s
                ), for_s,
            )  # fmt: skip
        free = [slot for slot in self._slots if slot.free_at <= at]
        if not free:
            return None
        slot = draw.choice(free)
        slot.free_at = at + _SETTLING_S
        if not slot.is_there:
            slot.is_there = True
            engine, node = self._engine(slot.replica, next(slot.starts)), draw.choice((0, *NODES, *NODES))
            return Put(at=at, replica=slot.replica, gateway=self._gateway(), engine=engine, node=node)
        match draw.choice(("die", "renew", "resume", "remove", "remove")):
            case "die":
                return Die(at=at, replica=slot.replica)
            case "renew":
                return Renew(at=at, replica=slot.replica, engine=self._engine(slot.replica, next(slot.starts)))
            case "resume":
                for_s = self._seconds(0, 3)
                slot.free_at += for_s
                return DrainAndResume(
                    at=at, replica=slot.replica, gateway=self._gateway(), resumed_at=self._gateway(), for_s=for_s
                )  # fmt: skip
        slot.is_there = False
        for_s = self._seconds(1, 4)
        slot.free_at += for_s
        return DrainAndRemove(
            at=at, replica=slot.replica, gateway=self._gateway(), deleted_at=self._gateway(),
            deletes=draw.random() < 0.5, for_s=for_s,
        )  # fmt: skip

    def _at_key(self, at: float) -> Event | None:
        for_s = self._seconds(0.5, 4)
        event = AddAndRevoke(
            at=at, name=f"k{next(self._keys)}", added_at=self._gateway(), revoked_at=self._gateway(), for_s=for_s
        )  # fmt: skip
        return self._takes(event, for_s)

    def _engine(self, replica: str, start: int) -> Engine:
        return Engine(
            name=f"{replica}-{start}",
            kind=self._random.choice(_KINDS),
            model=MODEL,
            token_interval_s=self._random.choice((0.01, 0.02, 0.05)),
            load_s=self._seconds(0.2, 3) if start and self._random.random() < 0.3 else 0.0,
        )

    def _gateway(self) -> int:
        return self._random.randint(1, self._gateways)

    def _seconds(self, low: float, high: float) -> float:
        return round(self._random.uniform(low, high), 2)
