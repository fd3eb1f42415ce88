"""One replica's life: the evidence for and against it, and when to look again.

Silence is not death and busy is not dead: a registered worker stays until the evidence is strong. Two kinds of
evidence count, each with its own threshold, because they prove different things:

* *refused*: nobody listens (connection refused, or closed before an answer). The kernel says so; it takes a few
  tries only because an engine may be restarting.
* *silent*: it accepts and does not answer in time, or says itself that it is not ready. It may be busy.

One good answer clears both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from gateway_sidecar.domain.model import (
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Registered,
    ReplicaState,
    WorkerStatus,
)


class Against(StrEnum):
    """What a failed probe proves."""

    REFUSED = "refused"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class EvidencePolicy:
    """How much evidence takes a registered worker out of rotation."""

    refused_failures: int = 3
    refused_over_s: float = 0.5
    silent_failures: int = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """Consecutive failures of one kind and when they began (monotonic seconds)."""

    kind: Against | None = None
    failures: int = 0
    since: float = 0.0

    def after(self, result: ProbeResult, now: float) -> Evidence:
        """The evidence once `result` is known too. A good answer wipes it out."""
        kind = against(result)
        if kind is None:
            return Evidence()
        if kind is not self.kind:
            return Evidence(kind, 1, now)
        return replace(self, failures=self.failures + 1)

    def is_strong(self, now: float, policy: EvidencePolicy) -> bool:
        """Whether a registered worker has to leave."""
        if self.kind is Against.REFUSED:
            return self.failures >= policy.refused_failures and now - self.since >= policy.refused_over_s
        return self.kind is Against.SILENT and self.failures >= policy.silent_failures


def against(result: ProbeResult) -> Against | None:
    """Which kind of evidence a result is; None for an engine that is ready."""
    if isinstance(result, Ready):
        return None
    if isinstance(result, Loading) and result.facts is None:
        return Against.REFUSED
    return Against.SILENT


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many replicas are being watched this closely; the more there are, the less often each is asked."""

    loading: int = 1

    @property
    def least_gap_s(self) -> float:
        """Keeps all of them together under 50 probes a second."""
        return self.loading * 0.02


def loading_delay_s(result: ProbeResult | None, age_s: float, crowd: Crowd) -> float:
    """When to ask an engine again that is not ready yet: often at first, then at a rate that costs nothing.

    A refused connection costs microseconds and nobody sees it, so it may be tried often; an engine that answers
    503 writes a log line for each question.
    """
    refused = result is not None and against(result) is Against.REFUSED
    most_s = 0.2 if refused else 0.5
    if age_s > 120:
        most_s *= 2
    return max(min(max(age_s * 0.05, 0.02), most_s), crowd.least_gap_s)


def suspect_delay_s(evidence: Evidence, policy: EvidencePolicy) -> float:
    """When to ask a registered engine again that failed its last probe."""
    if evidence.kind is Against.REFUSED:
        return policy.refused_over_s / max(policy.refused_failures - 1, 1)
    return 1.0


def state_of(
    *,
    result: ProbeResult | None,
    leaving: bool,
    condemned: bool,
    worker: Registered | None,
) -> ReplicaState:
    """The word of `status` for what is known of one replica.

    `leaving` is a drain that was asked for or a socket that is gone; `condemned` is strong evidence against an
    engine that was registered; `worker` is the replica as the router lists it.
    """
    if leaving:
        return ReplicaState.DRAINING
    if condemned:
        said_so = isinstance(result, Loading) and result.facts is not None
        return ReplicaState.LOADING if said_so else ReplicaState.UNREACHABLE
    if worker is not None and worker.status is WorkerStatus.READY:
        return ReplicaState.SERVING
    match result:
        case None:
            return ReplicaState.SEEN
        case Ready():
            return ReplicaState.REGISTERING
        case Loading():
            return ReplicaState.LOADING
        case Foreign():
            return ReplicaState.FOREIGN
        case _:
            return ReplicaState.UNREACHABLE
