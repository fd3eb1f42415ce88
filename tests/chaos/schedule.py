"""From a seed to a schedule: pure, so that the same seed always means the same events.

Validity: nothing happens to anchors; engines of the calm model only come and go in order; an event finds its replica in
a state it makes sense in, assuming that the events before it took as long as they say.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from examples.simulated import EngineKind, Lie, Role
from tests.chaos.events import (
    CALM,
    OTHER,
    WILD,
    Appear,
    AwayDaemon,
    Die,
    DrainAndResume,
    DrainAndStop,
    Engine,
    Event,
    FreezeRouter,
    Hold,
    KillHost,
    KillNginx,
    KillRouter,
    Misbehave,
    MoveSockets,
    Reload,
    RemoveDead,
    RemoveState,
    Restart,
    RestartRouter,
    Retire,
    Round,
    Schedule,
    Stop,
)

CHAT, PAIRS = "chat", "pairs"
SERVICES = (CHAT, PAIRS)
WILD_HOSTS = (1, 2)
"""Processes of engines that may be killed whole; host 0 has the anchors and the calm ones."""

_KINDS = (
    EngineKind.SGLANG_HTTP,
    EngineKind.SGLANG_GRPC,
    EngineKind.VLLM_HTTP,
    EngineKind.VLLM_GRPC,
    EngineKind.OPENAI_HTTP,
)
_LIES = (Lie.EMPTY, Lie.GARBAGE, Lie.TYPES, Lie.REDIRECT, Lie.TRUNCATED, Lie.NOT_AN_ENGINE, Lie.SLOW_DRIP)
_MISBEHAVIOURS = ("hang", "lie", "loading", "dead_core", "far_end_dead")
_SETTLING_S = 1.5

_Make = Callable[[float], Event | None]


@dataclass(frozen=True, slots=True)
class Mix:
    """How wild it gets. `slot_gap_s` and `shared_gap_s` are means; shared are faults of daemon, routers and nginx."""

    round_s: float = 20.0
    slot_gap_s: float = 0.5
    shared_gap_s: float = 5.0
    calm_slots: int = 6
    wild_slots: int = 8
    pair_slots: int = 2
    shared: tuple[str, ...] = (
        "kill daemon", "stop daemon", "kill router", "freeze router", "restart router", "kill nginx", "reload",
        "remove state", "move sockets", "kill host",
    )  # fmt: skip


@dataclass
class _Slot:
    """A replica's path as the generator believes it to be."""

    service: str
    replica: str
    model: str
    roles: tuple[Role, ...]
    kinds: tuple[EngineKind, ...]
    engine: Engine | None = None
    dead: bool = False
    free_at: float = 0.0
    starts: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def make_schedule(seed: int, rounds: int, mix: Mix | None = None) -> Schedule:
    """The schedule of a seed: so many rounds."""
    return _Maker(seed, mix or Mix()).schedule(rounds)


class _Maker:
    def __init__(self, seed: int, mix: Mix) -> None:
        self._seed = seed
        self._mix = mix
        self._random = random.Random(seed)
        pair_kind = self._random.choice((EngineKind.VLLM_GRPC, EngineKind.SGLANG_HTTP))
        pair = (pair_kind,)
        self._anchors = [
            self._anchor(CHAT, "c0", EngineKind.SGLANG_HTTP, CALM),
            self._anchor(CHAT, "c1", EngineKind.VLLM_GRPC, CALM),
            self._anchor(CHAT, "w0", EngineKind.VLLM_HTTP, WILD),
            # SMG decides for HTTP or gRPC first and stays with that: each model needs somebody of both.
            self._anchor(CHAT, "v0", EngineKind.SGLANG_GRPC, WILD),
            self._anchor(PAIRS, "p0", pair_kind, WILD, Role.PREFILL),
            self._anchor(PAIRS, "d0", pair_kind, WILD, Role.DECODE),
        ]
        self._slots = [
            *(_Slot(CHAT, f"c{n}", CALM, (Role.REGULAR,), _KINDS) for n in range(2, 2 + mix.calm_slots)),
            *(_Slot(CHAT, f"w{n}", WILD, (Role.REGULAR,), _KINDS) for n in range(1, 1 + mix.wild_slots)),
            *(_Slot(PAIRS, f"p{n}", WILD, (Role.PREFILL, Role.DECODE), pair) for n in range(1, 1 + mix.pair_slots)),
        ]
        self._shared_free: dict[str, float] = {}

    def schedule(self, rounds: int) -> Schedule:
        return Schedule(self._seed, tuple(self._anchors), tuple(self._round() for _ in range(rounds)))

    def _anchor(self, service: str, replica: str, kind: EngineKind, model: str, role: Role = Role.REGULAR) -> Appear:
        engine = Engine(name=f"{replica}-0", kind=kind, model=model, role=role, token_interval_s=0.02)
        return Appear(at=0.0, service=service, replica=replica, engine=engine)

    def _round(self) -> Round:
        mix = self._mix
        for slot in self._slots:
            slot.free_at = 0.0
        self._shared_free = {}
        due = [*self._times(mix.slot_gap_s, self._at_slot), *self._times(mix.shared_gap_s, self._shared)]
        events = [make(at) for at, make in sorted(due, key=lambda one: one[0])]
        return Round(mix.round_s, tuple(event for event in events if event is not None))

    def _times(self, gap_s: float, make: _Make) -> Iterator[tuple[float, _Make]]:
        at = self._random.expovariate(1 / gap_s)
        while at < self._mix.round_s:
            yield round(at, 2), make
            at += self._random.expovariate(1 / gap_s)

    # -- replicas

    def _at_slot(self, at: float) -> Event | None:
        free = [slot for slot in self._slots if slot.free_at <= at]
        if not free:
            return None
        slot = self._random.choice(free)
        if slot.engine is None:
            slot.engine = self._engine(slot)
            slot.free_at = at + slot.engine.load_s + slot.engine.listen_delay_s + _SETTLING_S
            return Appear(at=at, service=slot.service, replica=slot.replica, engine=slot.engine)
        if slot.dead:
            return self._at_dead(slot, at)
        return self._at_calm(slot, at) if slot.model == CALM else self._at_wild(slot, at)

    def _at_dead(self, slot: _Slot, at: float) -> Event:
        slot.dead = False
        slot.free_at = at + _SETTLING_S
        if self._random.random() < 0.3:
            slot.engine = None
            return RemoveDead(at=at, service=slot.service, replica=slot.replica)
        slot.engine = self._engine(slot)
        return Appear(at=at, service=slot.service, replica=slot.replica, engine=slot.engine)

    def _at_calm(self, slot: _Slot, at: float) -> Event:
        slot.free_at = at + 3.0
        what = self._random.choice(("retire", "retire", "drain", "drain", "resume", "hold"))
        if what == "hold":
            slot.free_at = at
            return Hold(at=at, service=slot.service, replica=slot.replica, for_s=self._seconds(1, 8))
        if what == "resume":
            for_s = self._seconds(0, 2)
            slot.free_at += for_s
            return DrainAndResume(at=at, service=slot.service, replica=slot.replica, for_s=for_s)
        slot.engine = None
        kind = Retire if what == "retire" else DrainAndStop
        return kind(at=at, service=slot.service, replica=slot.replica)

    def _at_wild(self, slot: _Slot, at: float) -> Event:
        what = self._random.choices(
            ("calm", "stop", "die", "restart", "misbehave"), weights=(2, 1, 2, 3, 5)
        )[0]  # fmt: skip
        slot.free_at = at + _SETTLING_S
        match what:
            case "stop":
                slot.engine = None
                return Stop(at=at, service=slot.service, replica=slot.replica)
            case "die":
                slot.dead = True
                return Die(at=at, service=slot.service, replica=slot.replica)
            case "restart":
                slot.engine = self._engine(slot)
                kill = self._random.random() < 0.5
                return Restart(at=at, service=slot.service, replica=slot.replica, engine=slot.engine, kill=kill)
            case "misbehave":
                how = self._random.choice(_MISBEHAVIOURS)
                lie = self._random.choice(_LIES) if how == "lie" else None
                for_s = self._seconds(0.3, 8)
                slot.free_at += for_s
                return Misbehave(
                    at=at, service=slot.service, replica=slot.replica, how=how, for_s=for_s, lie=lie
                )  # fmt: skip
        return self._at_calm(slot, at)

    def _engine(self, slot: _Slot) -> Engine:
        draw = self._random
        model = slot.model
        if model == WILD and slot.service == CHAT and draw.random() < 0.2:
            model = OTHER
        return Engine(
            name=f"{slot.replica}-{next(slot.starts)}",
            kind=draw.choice(slot.kinds),
            model=model,
            role=draw.choice(slot.roles),
            host=0 if slot.model == CALM else draw.choice(WILD_HOSTS),
            token_interval_s=draw.choice((0.0, 0.01, 0.02, 0.05)),
            load_s=self._seconds(0.2, 4) if draw.random() < 0.3 else 0.0,
            listen_delay_s=self._seconds(0.2, 2) if draw.random() < 0.2 else 0.0,
        )

    def _seconds(self, low: float, high: float) -> float:
        return round(self._random.uniform(low, high), 2)

    # -- what all share

    def _shared(self, at: float) -> Event | None:
        event = self._draw_shared(self._random.choice(self._mix.shared), at)
        if at < self._shared_free.get(event.place, 0.0):
            return None
        self._shared_free[event.place] = at + {"nginx": 6.0, "state": 5.0, "daemon": 4.0}.get(event.place, 2.0)
        if isinstance(event, KillHost):
            for slot in self._slots:
                if slot.engine is not None and slot.engine.host == event.host:
                    slot.dead = True
                    slot.free_at = max(slot.free_at, at + 2 * _SETTLING_S)
        return event

    def _draw_shared(self, what: str, at: float) -> Event:
        service = self._random.choice((CHAT, CHAT, PAIRS))
        match what:
            case "kill daemon" | "stop daemon":
                return AwayDaemon(at=at, kill=what == "kill daemon", for_s=self._seconds(0, 3))
            case "kill router":
                return KillRouter(at=at, service=service)
            case "freeze router":
                return FreezeRouter(at=at, service=service, for_s=self._seconds(0.2, 8))
            case "restart router":
                return RestartRouter(at=at, service=service)
            case "kill nginx":
                return KillNginx(at=at)
            case "reload":
                return Reload(at=at, drain_s=self._seconds(20, 60), router=self._random.random() < 0.3)
            case "remove state":
                return RemoveState(at=at)
            case "move sockets":
                return MoveSockets(at=at, service=service, for_s=self._seconds(0.1, 4))
            case "kill host":
                return KillHost(at=at, host=self._random.choice(WILD_HOSTS))
        raise ValueError(f"no such fault: {what!r}")
