"""What is told of a fleet's run: each violation with all that happened near it, and what was done in all."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from tests.chaos.check import Violation
from tests.chaos.fleet.blame import Blame
from tests.chaos.fleet.check import serves
from tests.chaos.fleet.events import AwayHow, LostHow, MembersHow
from tests.chaos.fleet.history import FleetHistory, Rest

_AROUND_S = 5.0
_MOST_LINES = 120
_TOLD = {*get_args(AwayHow), *get_args(LostHow), *get_args(MembersHow), "joined"}


def story(history: FleetHistory, violation: Violation) -> str:
    """A violation with all that happened near it."""
    low, high = violation.at - _AROUND_S, violation.at + _AROUND_S
    faults = [it for it in history.faults if it.began <= high and it.ended >= low - _AROUND_S]
    ordered = [it for it in history.ordered if it.began <= high and it.ended >= low]
    lines = sorted((it for it in history.log if low <= it.at <= high and it.level != "debug"), key=lambda it: it.at)
    parts = [f"VIOLATION (seed {history.seed}) at {violation.at:.2f}: {violation.law}: {violation.what}"]
    parts += [f"    fault {it}" for it in sorted(faults, key=lambda it: it.began)]
    parts += [f"    {it}" for it in ordered if it.code is not None]
    parts += [f"    {it.at:.2f} {it.text[:300]}" for it in lines[:_MOST_LINES]]
    return "\n".join(parts)


def failures(history: FleetHistory) -> list[str]:
    """Every request that failed, and what it is blamed on."""
    blame = Blame(history)
    return [
        f"{it}\n    on {sorted(blame.engines_of(it))} at {sorted(blame.gateways_of(it))}: {blame.explain(it)}"
        for it in history.requests if it.outcome != "ok"
    ]  # fmt: skip


def summary(history: FleetHistory) -> list[str]:
    """What was done and what came of it, as lines of a table."""
    blame = Blame(history)
    outcomes = Counter(f"{r.outcome} {r.status}" if r.outcome == "status" else r.outcome for r in history.requests)
    ways = Counter(f"by {it.via}" for it in history.requests)
    blamed: Counter[str] = Counter()
    for request in history.requests:
        if request.outcome != "ok":
            fault = blame.explain(request)
            blamed[fault.kind if fault else "NOTHING"] += 1
    took = [it for rest in history.rests if (it := _settled_after(history, rest)) is not None]
    dead = sum(bool(it.dead) for it in history.safe)
    engines = {it.engine for it in history.begun}
    orders = Counter(f"{it.what}{'' if it.code in (200, 201, 202) else f' {it.code}'}" for it in history.ordered)
    after_s = [it.at - term.revoked for term in history.key_terms for it in history.keys_used
               if it.key == term.key and it.at > term.revoked and it.status == 200]  # fmt: skip
    faults = Counter(f"{it.kind} ({it.how})" if it.how in _TOLD else it.kind for it in history.faults)
    return [
        f"chats            {len(history.requests)} ({_counts(ways)}): {_counts(outcomes)}",
        f"failed because   {_counts(blamed) or 'none failed'}",
        f"faults           {_counts(faults)}",
        f"orders           {_counts(orders)}",
        f"called safe      {len(history.safe)} times, {dead} of them with a gateway that counted as dead",
        f"replicas         {len({it.replica for it in history.begun})}, with {len(engines)} engines",
        f"keys revoked     {len(history.key_terms)}; last let in {max(after_s, default=0.0):.2f} s later",
        f"address          moved {max(0, len(history.holders) - 1)} times",
        f"rests            {len(history.rests)}, settled after {max(took, default=0):.1f} s at the most",
    ]


def _settled_after(history: FleetHistory, rest: Rest) -> float | None:
    """When the last gateway has just those who are well, from the beginning of the rest."""
    firsts = [_serves_at(history, rest, name) for name in history.gateways]
    return None if None in firsts else max(it for it in firsts if it is not None) - rest.began


def _serves_at(history: FleetHistory, rest: Rest, gateway: str) -> float | None:
    during = (it for it in history.views if it.gateway == gateway and rest.began < it.at <= rest.ended)
    return next((it.at for it in during if serves(rest.expected, it.rows)), None)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
