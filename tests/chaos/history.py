"""What happened, written down while it happens. All instants are monotonic seconds, which all processes share."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One chat of the load as its client saw it.

    outcome: `ok`; `status` (an HTTP error), `broken` (ended too early), `refused` (no connection), `wrong` (an answer
        that cannot be right) or `timeout`.
    engine: who answered, if a first token came.
    via, gateway: the way in, and the gateway that a load balancer names; of a fleet.
    """

    number: int
    service: str
    model: str
    stream: bool
    began: float
    ended: float
    outcome: str
    status: int | None = None
    detail: str = ""
    engine: str | None = None
    large: bool = False
    via: str = ""
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One chat as an engine saw it. `ended` is None if the engine's process died first."""

    engine: str
    request: int
    began: float
    ended: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done, from its first effect to when it was over.

    kind: `engine ended`, `engine misbehaved`, `router killed`, `router lost` (frozen, and killed for it), `router
        frozen` (and thawed in time), `engine frozen`, `stalled` (several parts were frozen or starved at the time),
        `unlinked unseen` (a socket went while no daemon was there), `nginx killed`, `daemon away`, `sockets away`,
        `state removed`, or a mere operation: `router restart`, `reload`.
    """

    kind: str
    began: float
    ended: float
    service: str | None = None
    engine: str | None = None
    model: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A part of the gateway did not run, from before its SIGSTOP until after its SIGCONT. `lost`: it was killed."""

    who: str
    began: float
    ended: float
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Out:
    """An engine was promised to be out of use from `at` until `until`: drained, or released."""

    engine: str
    at: float
    until: float
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """One replica in a status."""

    service: str
    replica: str
    state: str
    port: int | None
    worker_id: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One status."""

    at: float
    rows: tuple[Row, ...]
    leased: int
    quarantined: int
    nginx: int | None
    routers: tuple[tuple[str, int | None], ...]
    problems: tuple[str, ...] = ()
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as SMG lists it."""

    url: str
    worker_type: str
    connection_mode: str
    runtime_type: str
    status: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What SMG said its workers are."""

    at: float
    service: str
    workers: tuple[Worker, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """A replica that has to serve, and as what."""

    service: str
    replica: str
    engine: str
    worker_type: str
    connection_mode: str
    runtime_type: str


@dataclass(frozen=True, slots=True)
class Rest:
    """A time without faults: from `began` on nobody but the expected has any reason to serve."""

    began: float
    ended: float
    expected: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Muster:
    """At rest so many chats were asked for that everybody who serves must have had some."""

    began: float
    ended: float
    asked: int
    expected: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A connection that a client kept open to a bridge port; `answers` are the engines that answered on it, in turn."""

    port: int
    service: str
    replica: str
    engine: str
    began: float
    ended: float
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event of the daemon's log."""

    at: float
    level: str
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left at the very end. `processes` are those still there after `stop --all`."""

    zombies: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    leased_ports: tuple[int, ...] = ()
    held_ports: tuple[int, ...] = ()
    quarantined: int = 0
    processes: tuple[str, ...] = ()


@dataclass
class History:
    """One run."""

    seed: int
    requests: list[Request] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    out: list[Out] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    musters: list[Muster] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What the stage itself saw and cannot be: a command that failed for no reason, a daemon that did not start."""
    remains: Remains | None = None
