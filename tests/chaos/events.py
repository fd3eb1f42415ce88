"""What can happen to a gateway: each event is a value, and a schedule of them can be printed and played again.

`at` is in seconds from the beginning of its round. Events of one place follow each other; those of different places
do not wait for one another.
"""

from __future__ import annotations

from dataclasses import dataclass

from examples.simulated import EngineKind, Lie, Role

CALM, WILD, OTHER = "calm", "wild", "other"
"""Models. Engines of CALM only ever come and go in order, so no engine is an excuse for a request of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine, from its start to its end. `name` is its own for ever, whatever path it serves on."""

    name: str
    kind: EngineKind
    model: str
    role: Role = Role.REGULAR
    host: int = 0
    token_interval_s: float = 0.01
    load_s: float = 0.0
    listen_delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens at a time."""

    at: float

    @property
    def place(self) -> str:
        """Events of one place happen one after the other."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class AtReplica(Event):
    """Something that happens to one replica's path, or to who is behind it."""

    service: str
    replica: str

    @property
    def place(self) -> str:
        return f"{self.service}/{self.replica}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Appear(AtReplica):
    """An engine starts behind a path where nobody was, or only a dead socket."""

    engine: Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire(AtReplica):
    """The socket is unlinked while its engine lives; the engine ends when the gateway has let go of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAndStop(AtReplica):
    """`drain`, and when that says so the engine ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAndResume(AtReplica):
    """`drain`, a while out of rotation, `resume`."""

    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(AtReplica):
    """The engine ends as on SIGTERM, unannounced: accepts no more, finishes what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Die(AtReplica):
    """The engine is killed; its socket file stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDead(AtReplica):
    """Somebody clears away the socket file of a dead engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart(AtReplica):
    """Another engine, perhaps of another kind, role or model, starts behind the same path."""

    engine: Engine
    kill: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehave(AtReplica):
    """For a while the engine does not do as it should: one of `hang`, `lie`, `loading`, `dead_core`, `far_end_dead`."""

    how: str
    for_s: float
    lie: Lie | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(AtReplica):
    """A client keeps a connection to the replica's bridge open, whatever becomes of the replica."""

    for_s: float

    @property
    def place(self) -> str:
        return f"hold {self.service}/{self.replica}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KillHost(Event):
    """A process with many wild engines in it gets SIGKILL; their socket files stay."""

    host: int

    @property
    def place(self) -> str:
        return f"host {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwayDaemon(Event):
    """The daemon gets SIGKILL, or SIGTERM, and is started again after a while."""

    kill: bool
    for_s: float

    @property
    def place(self) -> str:
        return "daemon"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRouter(Event):
    """Something that happens to the router of a service."""

    service: str

    @property
    def place(self) -> str:
        return f"router {self.service}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRouter(AtRouter):
    """SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRouter(AtRouter):
    """SIGSTOP; SIGCONT after a while, if it still lives then."""

    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRouter(AtRouter):
    """`router restart`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillNginx(Event):
    """The master of nginx gets SIGKILL; its workers are left."""

    @property
    def place(self) -> str:
        return "nginx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload(Event):
    """`reload` with harmless changes: another drain time-out, and perhaps another router setting."""

    drain_s: float
    router: bool

    @property
    def place(self) -> str:
        return "reload"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveState(Event):
    """The state directory is removed."""

    @property
    def place(self) -> str:
        return "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSockets(Event):
    """The directory of a service's sockets is moved away, and back after a while."""

    service: str
    for_s: float

    @property
    def place(self) -> str:
        return f"sockets {self.service}"


DAEMON, NGINX, EVERYTHING = "daemon", "nginx", "everything"


def router_of(service: str) -> str:
    """A service's router, as a part of the gateway that can be frozen."""
    return f"router {service}"


def engines_in(host: int) -> str:
    """A process of engines, as such a part."""
    return f"engines {host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """One part of the gateway gets SIGSTOP after a while, and SIGCONT after another."""

    who: str
    after_s: float = 0.0
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(Event):
    """Parts of the gateway are stopped for a while; EVERYTHING is what a paused virtual machine is."""

    parts: tuple[Stopped, ...]

    @property
    def place(self) -> str:
        return "freeze"


@dataclass(frozen=True, slots=True, kw_only=True)
class Starve(Event):
    """So many processes that do nothing but compute."""

    load: int
    for_s: float

    @property
    def place(self) -> str:
        return "freeze"


@dataclass(frozen=True, slots=True)
class Round:
    """Events, and then rest: whoever is well must serve soon, and nobody else."""

    length_s: float
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that will happen. `anchors` stand before the first event and nothing is ever done to them."""

    seed: int
    anchors: tuple[Appear, ...]
    rounds: tuple[Round, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", *(f"  anchor {event}" for event in self.anchors)]
        for number, one in enumerate(self.rounds, 1):
            lines.append(f"  round {number}: {one.length_s} s")
            lines += [f"    {event}" for event in one.events]
        return "\n".join(lines)
