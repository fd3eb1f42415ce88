"""What happened to a fleet, written down while it happens. All instants are monotonic seconds, which all share."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.chaos.history import LogLine, Out, Request, Row, Served

HAPROXY, ADDRESS = "haproxy", "address"
"""Ways in beside the gateways' own, which are called after them (`Request.via`)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done, from its first effect until it was over.

    kind: of a gateway `daemon away`, `nginx killed`, `router killed`, `gateway lost`, `gateway left`, `reload`, `cut
        from store`, `cut from node`; of etcd `members away`, `store away` (no quorum), `compacted`; of engines `engine
        ended`, `logins ended`; and `stalled`: the machine of the test itself did not get on.
    how: in which way.
    """

    kind: str
    began: float
    ended: float
    gateway: str | None = None
    node: int | None = None
    engine: str | None = None
    how: str = ""


@dataclass(frozen=True, slots=True)
class Safe(Out):
    """An engine was called safe to stop. dead: gateways that were not asked, because they counted as dead."""

    replica: str = ""
    gateway: str = ""
    dead: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Begun:
    """An engine began behind a replica."""

    replica: str
    engine: str
    node: int
    at: float


@dataclass(frozen=True, slots=True)
class Ordered:
    """A request to a gateway's admin API, and its answer; no code if it had no answer."""

    what: str
    gateway: str
    began: float
    ended: float
    code: int | None
    answer: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One gateway's status."""

    at: float
    gateway: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Holders:
    """Which gateways had the shared address."""

    at: float
    gateways: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeyUsed:
    """A request with a key at one gateway, from its beginning, and its status; None without an answer."""

    key: str
    gateway: str
    at: float
    status: int | None


@dataclass(frozen=True, slots=True)
class KeyTerm:
    """A key from when it was added until it was revoked: both instants are those of the answers."""

    key: str
    added: float
    revoked: float


@dataclass(frozen=True, slots=True)
class Expected:
    """A replica that has to serve at every gateway."""

    replica: str
    engine: str


@dataclass(frozen=True, slots=True)
class Rest:
    """A time without faults."""

    began: float
    ended: float
    expected: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Muster:
    """At rest chats were asked of one gateway until each engine had answered, or for long. answered: those that did."""

    gateway: str
    began: float
    ended: float
    asked: int
    expected: frozenset[str]
    answered: frozenset[str]


@dataclass
class FleetHistory:
    """One run."""

    seed: int
    gateways: tuple[str, ...] = ()
    requests: list[Request] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    safe: list[Safe] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    ordered: list[Ordered] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    holders: list[Holders] = field(default_factory=list)
    key_terms: list[KeyTerm] = field(default_factory=list)
    keys_used: list[KeyUsed] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    musters: list[Muster] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What the stage itself saw and cannot be: a daemon that did not start, an event without an end."""
