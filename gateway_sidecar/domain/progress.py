"""What the requests of an engine show of it: whether one that says it is well does any work. Pure.

A server may answer for its health while the engine core behind it hangs, and then every request waits for ever. An
engine that is busy may be silent for as long, with one long prompt or many answers that do not stream. What tells the
two apart are the engine's own counters: of one that works, some move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway_sidecar.domain.model import Dead
from gateway_sidecar.domain.printable import counted

SUSPECT_S = 3.0
"""An engine that has a request and gives no sign for so long has its counters read."""

_ALONE = 1.25
"""How much longer silence has to last where no other replica answers meanwhile: the requests may be what is slow."""

_FAILURES, _FAILED_OVER_S = 5, 0.5
"""So many requests have to fail in a row, and over such a time, while others answer: a burst is one event."""

_CHANCE_S = 60.0
"""An engine whose requests proved it dead, and that says it is well, gets requests again after so long."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is known of the requests that one engine has. Times are awake seconds.

    busy_since: since when it has had a request without a break; None if it has none.
    alive_at: when it last gave a sign: a whole answer, or a counter that moved.
    counters: what its own counters said last; None where they were not read, or it has none.
    same_since: since when, with a request, they were read as they are.
    """

    busy_since: float | None = None
    alive_at: float = -math.inf
    counters: tuple[float, ...] | None = None
    same_since: float = math.inf

    @property
    def silent_since(self) -> float:
        """Since when a request waits and nothing moves; infinite if none does."""
        return math.inf if self.busy_since is None else max(self.busy_since, self.alive_at)

    def is_suspect(self, now: float) -> bool:
        """Whether its counters have to be read."""
        return now - self.silent_since >= SUSPECT_S

    def seen(self, now: float, alive_at: float, *, busy: bool) -> Work:
        """With what one look at it showed. `alive_at`: when it last answered a request."""
        alive_at = max(alive_at, self.alive_at)
        if not busy:
            return Work(None, alive_at, self.counters)
        since = now if self.busy_since is None else self.busy_since
        return Work(since, alive_at, self.counters, self.same_since)

    def read(self, now: float, counters: tuple[float, ...] | None) -> Work:
        """With its counters, read again."""
        if counters is None:
            return Work(self.busy_since, self.alive_at)
        moved = self.counters is not None and counters != self.counters
        same_since = now if self.counters is None or moved or math.isinf(self.same_since) else self.same_since
        return Work(self.busy_since, now if moved else self.alive_at, counters, same_since)

    def hung_for_s(self, now: float, after_s: float, others_answered_at: float) -> float | None:
        """How long it has done nothing, once that proves that it hangs; None before.

        after_s: how long is long enough while other replicas answer; 0 for never.
        others_answered_at: when another replica of the service last answered a request.
        """
        silent_s = now - self.silent_since
        patience_s = after_s if others_answered_at > self.silent_since else after_s * _ALONE
        stood_still = self.counters is not None and now - self.same_since >= patience_s / 2
        return silent_s if after_s and stood_still and silent_s >= patience_s else None


@dataclass(frozen=True, slots=True)
class Answers:
    """How the requests of one engine ended. Times are awake seconds.

    answered_at: when it last answered one.
    failures, failed_since, failed_at: how many have failed since, and when the first and the last of them did.
    """

    answered_at: float = -math.inf
    failures: int = 0
    failed_since: float = math.inf
    failed_at: float = -math.inf

    def failed(self, now: float) -> Answers:
        """With one more that failed."""
        return Answers(self.answered_at, self.failures + 1, min(self.failed_since, now), now)

    def prove_it(self, others_answered_at: float) -> bool:
        """Whether it answers nothing any more while others do: then it is no request's fault."""
        lasted = self.failed_at - self.failed_since >= _FAILED_OVER_S
        return self.failures >= _FAILURES and lasted and others_answered_at > self.failed_since


def found_dead(answers: Answers, work: Work, others_answered_at: float, hung_after_s: float, now: float) -> Dead | None:
    """What its requests prove against an engine that says it is well; None if nothing.

    others_answered_at, hung_after_s: as `Work.hung_for_s` has them.
    """
    if answers.prove_it(others_answered_at):
        failures = counted(answers.failures, "request")
        return Dead(f"it says it is well, but {failures} in a row failed while other replicas answered")
    if (hung_s := work.hung_for_s(now, hung_after_s, others_answered_at)) is not None:
        return Dead(f"it says it is well, but its requests wait and its own counters stand still for {hung_s:.0f} s")
    return None


def stays_dead(work: Work, since: float, now: float) -> bool:
    """Whether an engine that was found dead is so still: until it shows work again, or is due for another chance."""
    gets_chance = now - since >= _CHANCE_S and work.busy_since is None
    return not gets_chance and work.alive_at <= since
