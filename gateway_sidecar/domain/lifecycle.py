"""One replica's life: the evidence for and against it, and when to look again.

Silence is not death and busy is not dead: a registered worker stays until the evidence is strong. A failed probe
proves one of five things, each with its own threshold:

* *refused*: nothing listens (connection refused, or closed before an answer). The kernel says so; a few tries are
needed only because an engine may be restarting.
* *foreign*: the answer is not an engine's. It counts like a refusal, and takes as many tries.
* *not ready*: the engine itself says so. It is believed after a few times.
* *dead*: its requests show that it does no work (`domain/progress.py`). That is proof already.
* *silent*: it accepts and does not answer in time. It may be busy: it takes as many failures, and as long, as if
  each had waited for its whole time-out.

Failures in a row count together, whatever their kind; the threshold is that of the latest. One good answer clears
them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway_sidecar.domain.model import (
    Dead,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Registered,
    ReplicaState,
    Unknown,
    WorkerStatus,
)


class Against(StrEnum):
    """What a failed probe proves."""

    REFUSED = "refused"
    FOREIGN = "foreign"
    NOT_READY = "not ready"
    SILENT = "silent"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class EvidencePolicy:
    """How much evidence takes a registered worker out of rotation.

    `refused_failures` and `refused_over_s` are for refused connections and foreign answers, `failures` for the rest.
    """

    refused_failures: int = 3
    refused_over_s: float = 0.5
    failures: int = 3
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Failed probes in a row: how many, since when (awake seconds), and what the latest proves."""

    kind: Against | None = None
    failures: int = 0
    since: float = 0.0

    def after(self, result: ProbeResult, now: float) -> Evidence:
        """The evidence once `result` is known too. A good answer wipes it out."""
        if isinstance(result, Unknown) and result.ours:
            return self
        kind = against(result)
        if kind is None:
            return Evidence()
        return Evidence(kind, self.failures + 1, self.since if self.failures else now)

    def is_strong(self, now: float, policy: EvidencePolicy) -> bool:
        """Whether a registered worker has to leave."""
        match self.kind:
            case Against.REFUSED | Against.FOREIGN:
                return self.failures >= policy.refused_failures and now - self.since >= policy.refused_over_s
            case Against.NOT_READY:
                return self.failures >= policy.failures
            case Against.DEAD:
                return True
            case Against.SILENT:
                # The first of them ended when it was noted, so its own time-out is not in the span.
                patience_s = (policy.failures - 1) * policy.timeout_s
                return self.failures >= policy.failures and now - self.since >= patience_s
            case None:
                return False


def against(result: ProbeResult) -> Against | None:
    """Which kind of evidence a result is; None for an engine that is ready."""
    if isinstance(result, Ready):
        return None
    if isinstance(result, Loading):
        return Against.REFUSED if result.refused else Against.NOT_READY
    if isinstance(result, Dead):
        return Against.DEAD
    return Against.FOREIGN if isinstance(result, Foreign) else Against.SILENT


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many replicas are being watched this closely; the more there are, the less often each is asked."""

    loading: int = 1

    @property
    def least_gap_s(self) -> float:
        """Keeps all of them together under 50 probes a second."""
        return self.loading * 0.02


_LONG_S = 120.0  # A choice: most engines have loaded by then, or will not soon.
_SELDOM_S = 15.0  # A choice: what is no engine, or does not answer, costs four questions a minute.


def loading_delay_s(result: ProbeResult | None, age_s: float, crowd: Crowd) -> float:
    """When to ask an engine again that is not ready yet: often at first, then at a rate that costs nothing.

    A refused connection costs microseconds and leaves no trace, so it may be tried often; an engine that answers 503,
    or closes the connection, writes a log line for each question.
    """
    is_free = isinstance(result, Loading) and result.refused and not result.closed
    most_s = 0.2 if is_free else 0.5
    if age_s > _LONG_S:
        most_s *= 2
    if isinstance(result, Foreign | Unknown) or (isinstance(result, Loading) and result.closed):
        most_s = max(most_s, min(age_s * 0.02, _SELDOM_S))  # It may never serve.
    return max(min(max(age_s * 0.05, 0.02), most_s), crowd.least_gap_s)


def suspect_delay_s(evidence: Evidence, policy: EvidencePolicy) -> float:
    """When to ask a registered engine again that failed its last probe."""
    if evidence.kind in (Against.REFUSED, Against.FOREIGN):
        return policy.refused_over_s / max(policy.refused_failures - 1, 1)
    return 0.25 if evidence.kind is Against.NOT_READY else 1.0


def state_of(
    *,
    result: ProbeResult | None,
    leaving: bool,
    ejected: Against | None,
    worker: Registered | None,
) -> ReplicaState:
    """The word of `status` for what is known of one replica.

    `leaving` is a drain that was asked for or a socket that is gone; `ejected` is what took an engine out
    that was registered; `worker` is the replica as the router lists it.
    """
    if leaving:
        return ReplicaState.DRAINING
    if ejected is not None and not (isinstance(result, Loading) and result.asleep):
        said_so = isinstance(result, Dead) or (isinstance(result, Loading) and not result.refused)
        if ejected is Against.REFUSED:  # Nothing listened there any more: whoever loads now is another process.
            return ReplicaState.LOADING if said_so else ReplicaState.UNREACHABLE
        is_dead = said_so or ejected in (Against.DEAD, Against.NOT_READY)
        return ReplicaState.DEAD if is_dead else ReplicaState.UNREACHABLE
    if ejected is None and worker is not None and worker.status is WorkerStatus.READY:
        return ReplicaState.SERVING
    match result:
        case None:
            return ReplicaState.SEEN
        case Ready():
            return ReplicaState.REGISTERING
        case Loading() | Unknown(begun=True):
            return ReplicaState.LOADING
        case Dead():
            return ReplicaState.DEAD
        case Foreign():
            return ReplicaState.FOREIGN
        case _:
            return ReplicaState.UNREACHABLE
