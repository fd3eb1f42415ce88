"""What can happen to a fleet: each event is a value, and a schedule of them can be printed and played again.

Gateways, members of etcd and nodes with engines are numbers from 1 on. `at` is in seconds from the beginning of its
round. Events of one place follow each other; those of different places do not wait for one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.chaos.events import Engine, Event

STORE, KEYS = "store", "keys"
AwayHow = Literal["killed", "stopped", "frozen"]
LostHow = Literal["killed", "power cut", "paused"]
MembersHow = Literal["killed", "frozen", "slow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtGateway(Event):
    """Something that happens to one gateway."""

    gateway: int

    @property
    def place(self) -> str:
        return f"gw-{self.gateway}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwayDaemon(AtGateway):
    """The daemon is killed, stopped (SIGTERM) or frozen; after a while there is one again."""

    how: AwayHow
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KillNginx(AtGateway):
    """nginx is killed; the daemon starts another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRouter(AtGateway):
    """The router is killed; the daemon starts another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload(AtGateway):
    """The configuration changes, also the router's, and is read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseGateway(AtGateway):
    """All of a gateway's processes end at once, or its machine loses its power or pauses; later it is back."""

    how: LostHow
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(AtGateway):
    """`leave`. After it has left the gateway is away for a while, and is started; with `joins` it is taken back."""

    for_s: float
    joins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CutStore(AtGateway):
    """Nothing passes between the gateway and any member of etcd."""

    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CutNode(AtGateway):
    """Nothing passes between the gateway and one node with engines."""

    node: int
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndLogins(Event):
    """All SSH connections to a node end."""

    node: int

    @property
    def place(self) -> str:
        return f"node-{self.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtStore(Event):
    """Something that happens to etcd. members: those that it happens to."""

    members: tuple[int, ...]
    for_s: float = 0.0

    @property
    def place(self) -> str:
        return STORE


@dataclass(frozen=True, slots=True, kw_only=True)
class AwayMembers(AtStore):
    """Members of etcd are killed, frozen, or run only now and then."""

    how: MembersHow


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact(AtStore):
    """etcd forgets all earlier versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtReplica(Event):
    """Something that happens to one replica. gateway: at which it is asked for."""

    replica: str
    gateway: int = 1

    @property
    def place(self) -> str:
        return self.replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Put(AtReplica):
    """An engine starts, and is put. node: behind whose sshd it is; 0: every gateway has its socket."""

    engine: Engine
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Die(AtReplica):
    """The engine is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew(AtReplica):
    """Another engine takes the place of the one that died, or of one that is killed for it."""

    engine: Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAndResume(AtReplica):
    """`drain` at one gateway, a while out of rotation, `resume` at another one."""

    resumed_at: int
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAndRemove(AtReplica):
    """`drain` at one gateway; once that is safe the engine works on nothing any more, ends, and is deleted at another.

    deletes: it is DELETE that drains.
    """

    deleted_at: int
    deletes: bool
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAndRevoke(Event):
    """A key is added at one gateway, used at all, and revoked at another one."""

    name: str
    added_at: int
    revoked_at: int
    for_s: float

    @property
    def place(self) -> str:
        return KEYS


@dataclass(frozen=True, slots=True)
class Round:
    """Events, and then rest. The replica is drained at the gateway then, which has to be safe."""

    length_s: float
    events: tuple[Event, ...]
    drained: str
    drained_at: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that will happen. `anchors` are put before the first event; they are never killed or removed, and one of
    them never drained in a round: somebody serves at every gateway all the time.
    """

    seed: int
    gateways: int
    anchors: tuple[Put, ...]
    rounds: tuple[Round, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.gateways} gateways", *(f"  anchor {event}" for event in self.anchors)]
        for number, one in enumerate(self.rounds, 1):
            lines.append(f"  round {number}: {one.length_s} s; {one.drained} is drained at gw-{one.drained_at}")
            lines += [f"    {event}" for event in one.events]
        return "\n".join(lines)
