"""How a gateway leaves: phase by phase, so that no client notices. Pure.

* *waiting*: load balancers are told to go elsewhere, and everything is served, until none sends anything any more.
* *draining*: nothing new is taken, and what is in flight ends.
* *stopping*: nothing is in flight, or its time is over: the routers, nginx and the daemon end.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from enum import StrEnum


class LeavePhase(StrEnum):
    """Where a gateway that is leaving stands."""

    WAITING = "waiting"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class LeaveRules:
    """How long each phase may take, in seconds.

    quiet_s: no request came for so long: the load balancers have noticed. balancer_s: waited for that at the most.
    """

    quiet_s: float
    balancer_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """A gateway that is leaving. Instants are seconds of one clock.

    until: what is still in flight then is cut.
    cut: how many connections were; None before it stops.
    was_quiet: whether nobody sent anything any more when it began to refuse requests.
    """

    phase: LeavePhase
    began: float
    phase_began: float
    until: float
    cut: int | None = None
    was_quiet: bool = True

    @classmethod
    def begin(cls, now: float, timeout_s: float) -> Leave:
        """It begins now."""
        return cls(LeavePhase.WAITING, now, now, now + timeout_s)

    def bounded(self, now: float, timeout_s: float) -> Leave:
        """It takes this long from now at the most."""
        return replace(self, until=now + timeout_s)

    def next(self, now: float, seen: Seen, rules: LeaveRules) -> Leave:
        """Where it stands after a look; itself while nothing changes."""
        if self.phase is LeavePhase.WAITING and self.waits_until(seen, rules) <= now:
            was_quiet = seen.arrived is None or now - seen.arrived >= rules.quiet_s
            return replace(self, phase=LeavePhase.DRAINING, phase_began=now, was_quiet=was_quiet)
        if self.phase is LeavePhase.DRAINING and (seen.nothing_left or now >= self.until):
            return replace(self, phase=LeavePhase.STOPPING, phase_began=now, cut=seen.in_flight)
        return self

    def waits_until(self, seen: Seen, rules: LeaveRules) -> float:
        """When it stops to wait for load balancers, if nothing comes any more."""
        quiet = max(self.phase_began, seen.arrived or self.phase_began) + rules.quiet_s
        return min(quiet, self.phase_began + rules.balancer_s, self.until)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look showed.

    arrived: when the last request came, as far as is known.
    in_flight: connections on which clients are owed something.
    refuses: whether nginx takes nothing new any more.
    """

    arrived: float | None = None
    in_flight: int = 0
    refuses: bool = False

    @property
    def nothing_left(self) -> bool:
        """Whether nothing is in flight, and nothing can come."""
        return self.refuses and self.in_flight == 0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When clients came, by their connections. Answers end these while a gateway is leaving, so that whoever asks again
    comes anew. A load balancer's question is over within one look; what two looks see is a client.
    """

    at: float | None = None
    connections: Set[object] = frozenset()
    clients: Set[object] = frozenset()

    def look(self, now: float, connections: Set[object]) -> Arrivals:
        """After one more look."""
        clients = connections & self.connections
        came = not clients <= self.clients
        return Arrivals(now if came else self.at, connections, clients)
