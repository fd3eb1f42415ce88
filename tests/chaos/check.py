"""Judges a history. Pure: what it says follows from the history alone.

Strict about requests: each that failed must be traced to a fault that overlaps it in time *and* place, and that may
cause this kind of failure. The daemon's absence, a replacement of the router, a reload, lost state, and neighbours that
come and go excuse nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.chaos.history import Expected, Fault, Held, History, Listing, LogLine, Request, Rest, Row, Served, Snapshot
from tests.chaos.schedule import PAIRS

SETTLE_S = 15.0
"""Once faults end, everybody who is well serves within this time."""
EVIDENCE_S = 6.0
"""An engine that ended may cost requests that were sent there before it was out: so long after it, at the most."""
_NOTICE_S = 0.7
"""A killed router's sockets live on for a moment, and requests reach them."""
_NOT_REACHED = ("start_generation_failed", "model_not_found")
"""What SMG says when its connections to all engines have ended at once: of the last one that it tried, and of none."""
_ENGINE_LAG_S = 0.5
"""An engine notes a little later that its client is gone."""

_KNOWN_S = 1.0
"""Where the engine of a request is known there is nothing to find out: its fault was there at the time, or was not."""
GRACE_S = 10.0
"""So long after the end of all faults a request may still be blamed on one; later none may fail."""

EXPLAINED_ERRORS: dict[str, frozenset[str]] = {
    "router.exited": frozenset({"router killed", "router lost"}),
    "router.not_answering": frozenset({"router killed", "router lost", "router frozen"}),
    "nginx.exited": frozenset({"nginx killed"}),
    "nginx.hung": frozenset({"nginx killed"}),
    "nginx.not_started": frozenset({"nginx killed"}),
    "nginx.not_reloaded": frozenset({"nginx killed"}),
    "router.not_replaced": frozenset({"router killed", "router lost", "router frozen"}),
    "config.not_in_force": frozenset({"nginx killed"}),
    "state.not_written": frozenset({"state removed"}),
    "replica.notes_refused": frozenset(),
}
"""Events of level error, and the faults that may cause them. Any other is a violation."""
SAID_BY_OTHERS = frozenset({"router.said", "nginx.said"})
_LOG_LAG_S = 20.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A law that was broken, when, and how."""

    law: str
    at: float
    what: str


def check(history: History) -> list[Violation]:
    """Everything that must not have happened, in the order of time."""
    laws = (_requests, _drained, _settled, _mustered, _workers, _ports, _held, _remains, _errors, _stage)
    found = [violation for law in laws for violation in law(history)]
    return sorted(found, key=lambda violation: violation.at)


def expected_is_there(expected: Sequence[Expected], rows: Iterable[Row]) -> bool:
    """Whether just these replicas serve, each once."""
    serving = Counter((row.service, row.replica) for row in rows if row.state == "serving")
    return serving == Counter((one.service, one.replica) for one in expected)


# -- requests


def _requests(history: History) -> Iterator[Violation]:
    on = _engines_of_requests(history)
    models = _models(history)
    for request in history.requests:
        if request.outcome == "ok":
            is_right = request.engine is not None and models.get(request.engine, request.model) == request.model
            if not is_right and not _met_successor(request, history.faults):
                yield Violation("answered by the right model", request.began, f"{request} by {request.engine}")
            continue
        late = any(rest.began + GRACE_S < request.began and request.ended < rest.ended for rest in history.rests)
        if late or explain(request, history.faults, on.get(request.number, frozenset())) is None:
            engines = ", ".join(sorted(on.get(request.number, ()))) or "no engine known"
            yield Violation("no failure without its cause", request.ended, f"{request}; on {engines}")


def _met_successor(request: Request, faults: Sequence[Fault]) -> bool:
    """Whether another engine had just begun behind the same path: what is on its way to the old one finds it there."""
    return request.engine is not None and any(
        fault.kind == "engine ended"
        and (fault.service, fault.model) == (request.service, request.model)
        and _is_at_its_place(fault, [request.engine])
        and (_overlap(request, fault.began, fault.began + _NOTICE_S) or _went_unseen(request, fault, faults))
        for fault in faults
    )


def _went_unseen(request: Request, ended: Fault, faults: Iterable[Fault]) -> bool:
    """With no daemon there, an engine's successor at the same path gets what the router sends to that engine."""
    away = [it for it in faults if it.kind == "daemon away" and it.ended >= ended.began]
    return any(_overlap(request, max(it.began, ended.began), it.ended + _KNOWN_S) for it in away)


def _engines_of_requests(history: History) -> dict[int, frozenset[str]]:
    """Request number -> engines that worked on it, or were known to answer it."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for served in history.served:
        found[served.request].add(served.engine)
    names = {served.engine for served in history.served}
    for request in history.requests:
        if request.engine in names and request.engine is not None:
            found[request.number].add(request.engine)
    return {number: frozenset(engines) for number, engines in found.items()}


def _models(history: History) -> dict[str, str]:
    """Engine -> its model, for engines that something was done to."""
    return {f.engine: f.model for f in history.faults if f.engine is not None and f.model is not None}


def explain(request: Request, faults: Iterable[Fault], engines: frozenset[str]) -> Fault | None:
    """The fault that this failed request may be blamed on; None if there is none. `engines` worked on it."""
    faults = list(faults)
    possible = [fault for fault in faults if _may_blame(request, fault, faults, engines)]
    return min(possible, key=lambda fault: abs(request.ended - fault.began), default=None)


def _may_blame(request: Request, fault: Fault, faults: Sequence[Fault], engines: frozenset[str]) -> bool:
    match fault.kind:
        case "nginx killed":
            # Its orphans serve until the daemon has ended them; then nobody listens until the next one does.
            # A bridge may be gone before the client's own connection, which may be to the next nginx already: the
            # router tells of it, in the stream or before it begins.
            told = (request.outcome == "wrong" and "an error in the stream" in request.detail) or (
                request.outcome == "status" and any(code in request.detail for code in _NOT_REACHED)
            )
            gone = told or request.outcome in ("broken", "refused")
            return gone and _overlap(request, fault.began, fault.ended)
        case "router killed":
            in_flight = request.began <= fault.began + _NOTICE_S and request.ended >= fault.began
            return request.service == fault.service and in_flight and _is_lost(request)
        case "router lost":
            # Frozen: what reaches it before the daemon gives it up is lost with it.
            return (
                request.service == fault.service and _overlap(request, fault.began, fault.ended) and _is_lost(request)
            )
        case "state removed":
            # nginx has nowhere to put what does not fit into memory, until the daemon has made the place again.
            own = request.outcome == "status" and request.status == 503 and "gateway_unavailable" in request.detail
            return own and request.large and _overlap(request, fault.began, _felt(fault, faults, 1.0))
        case "sockets away":
            # With no daemon there SMG still believes in all of them, and tries one after the other.
            unseen = any(f.kind == "daemon away" and _overlap(request, f.began, f.ended) for f in faults)
            codes = (404, 500, 502, 503) if unseen else (404, 503)
            nobody = request.outcome == "status" and request.status in codes and "router_" not in request.detail
            return request.service == fault.service and nobody and _overlap(request, fault.began, _felt(fault, faults))
        case "unlinked unseen":
            # SMG tries other engines, but no other prefill or decode engine: a pair needs the daemon for that.
            if not fault.service == request.service == PAIRS or request.outcome != "status":
                return False
            return "router_" not in request.detail and _overlap(request, fault.began, fault.ended)
        case "stalled":
            # SMG gives a prefill engine 3 s for its first sign, also while it did not run itself. Nobody can set that.
            own = request.status == 504 and "_worker_silent" in request.detail
            return request.service == PAIRS and own and _overlap(request, fault.began, fault.ended + _KNOWN_S)
        case "engine ended" | "engine misbehaved" | "engine frozen":
            if fault.service != request.service or fault.model != request.model:
                return False
            if "router_" in request.detail:
                return False
            if fault.kind == "engine ended" and _is_at_its_place(fault, engines):
                return _went_unseen(request, fault, faults)
            # One of prefill and decode is on two engines, and where one of them never got it no journal tells.
            if engines and request.service != PAIRS:
                return fault.engine in engines and _overlap(request, fault.began, fault.ended + _KNOWN_S)
            return _overlap(request, fault.began, _felt(fault, faults))
    return False


def _is_at_its_place(ended: Fault, engines: Iterable[str]) -> bool:
    """Whether one of these engines is a later one behind the same path."""
    assert ended.engine is not None
    place, _, number = ended.engine.rpartition("-")
    return any((place, True) == (it.rpartition("-")[0], int(it.rpartition("-")[2]) > int(number)) for it in engines)


def _overlap(request: Request, began: float, ended: float) -> bool:
    return request.began <= ended and request.ended >= began


def _is_lost(request: Request) -> bool:
    """What a router's death may look like: a stream broken off, or our own 502."""
    return request.outcome == "broken" or (request.outcome == "status" and "router_lost" in request.detail)


def _felt(fault: Fault, faults: Sequence[Fault], after_s: float = EVIDENCE_S) -> float:
    """Until when a fault may be felt that somebody has to react to: while nobody is there to do so, longer."""
    end = fault.ended + after_s
    blind = [f for f in faults if f.kind in ("daemon away", "router killed", "router lost", "nginx killed")]
    for other in sorted(blind, key=lambda f: f.began):
        if other.began <= end and other.ended > end - after_s:
            end = max(end, other.ended + after_s)
    return end


def _drained(history: History) -> Iterator[Violation]:
    """What was drained or released works on nothing any more, and begins nothing."""
    by_engine: defaultdict[str, list[Served]] = defaultdict(list)
    for served in history.served:
        by_engine[served.engine].append(served)
    # An engine that was killed with its process has noted no end of what it was working on.
    killed_at = {fault.engine: fault.ended for fault in history.faults if fault.kind == "engine ended"}
    for out in history.out:
        for served in by_engine[out.engine]:
            ended = served.ended if served.ended is not None else killed_at.get(out.engine)
            if out.at < served.began < out.until:
                yield Violation("out of rotation is out", served.began, f"{out}, and yet {served}")
            elif served.began <= out.at and (ended is None or ended > out.at + _ENGINE_LAG_S):
                yield Violation("nothing in flight once drained", out.at, f"{out}, and yet {served}")


# -- at rest


def _settled(history: History) -> Iterator[Violation]:
    for rest in history.rests:
        during = [s for s in history.snapshots if rest.began < s.at <= rest.ended]
        good = next((s for s in during if expected_is_there(rest.expected, s.rows)), None)
        if good is None or good.at > rest.began + SETTLE_S:
            last = during[-1].rows if during else ()
            yield Violation("all who are well serve, and nobody else", rest.began, _difference(rest, last))
            continue
        for snapshot in during:
            if snapshot.at > good.at and not expected_is_there(rest.expected, snapshot.rows):
                yield Violation("settled stays settled", snapshot.at, _difference(rest, snapshot.rows))
                break


def _difference(rest: Rest, rows: Sequence[Row]) -> str:
    expected = {(one.service, one.replica): one.engine for one in rest.expected}
    serving = Counter((row.service, row.replica) for row in rows if row.state == "serving")
    missing = {key: name for key, name in expected.items() if serving[key] == 0}
    too_many = {key: count for key, count in serving.items() if count > (key in expected)}
    shown = [row for row in rows if (row.service, row.replica) in missing or (row.service, row.replica) in too_many]
    return f"missing {missing}, too many {too_many}; {shown}"


def _mustered(history: History) -> Iterator[Violation]:
    """Serving is not a word in a status: each engine has to answer somebody."""
    for muster in history.musters:
        within = (s for s in history.served if muster.began < s.began < muster.ended)
        active = {served.engine for served in within if served.outcome == "completed"}
        for one in muster.expected:
            if one.engine not in active:
                yield Violation("who serves gets requests", muster.ended, f"{one} got none in {muster.asked}")


_AsListed = tuple[int | None, str, str, str, str]


def _workers(history: History) -> Iterator[Violation]:
    """At the end of each rest SMG knows just those who serve, each once and as what it is."""
    for rest in history.rests:
        for service in sorted({one.service for one in rest.expected}):
            listing = _last(history.listings, rest, service)
            snapshot = next((s for s in reversed(history.snapshots) if rest.began < s.at <= rest.ended), None)
            if listing is None or snapshot is None:
                yield Violation("SMG can be asked at rest", rest.ended, f"{service}: no list, or no status")
                continue
            ports = {
                row.replica: row.port for row in snapshot.rows if row.service == service and row.state == "serving"
            }
            wanted: Counter[_AsListed] = Counter(
                (ports.get(one.replica), one.worker_type, one.connection_mode, one.runtime_type, "ready")
                for one in rest.expected
                if one.service == service
            )
            found: Counter[_AsListed] = Counter(
                (port_of(w.url), w.worker_type, w.connection_mode, w.runtime_type, w.status)
                for w in listing.workers
                if w.status != "draining"
            )
            if wanted != found:
                missing, extra = wanted - found, found - wanted
                yield Violation(
                    "SMG knows just those who serve", listing.at,
                    f"{service}: missing {dict(missing)}, too many {dict(extra)}",
                )  # fmt: skip


def _last(listings: Sequence[Listing], rest: Rest, service: str) -> Listing | None:
    return next((x for x in reversed(listings) if x.service == service and rest.began < x.at <= rest.ended), None)


def port_of(url: str) -> int:
    """The bridge port in a worker's URL, without the rank that data-parallel workers have."""
    return int(url.partition("@")[0].rstrip("/").rpartition(":")[2])


# -- ports


class _View(Protocol):
    @property
    def at(self) -> float: ...

    @property
    def rows(self) -> Sequence[Row]: ...


def _ports(history: History) -> Iterator[Violation]:
    yield from ports_for_two(history.snapshots)


def ports_for_two(views: Iterable[_View]) -> Iterator[Violation]:
    """Ports that two replicas of one gateway have at a time."""
    for snapshot in views:
        used = Counter(row.port for row in snapshot.rows if row.port is not None)
        for port, count in used.items():
            if count > 1:
                shown = [row for row in snapshot.rows if row.port == port]
                yield Violation("no port for two", snapshot.at, f"{port}: {shown}")


def _held(history: History) -> Iterator[Violation]:
    """While a connection is held, its port is nobody else's, and the same engine answers on it."""
    for held in history.held:
        others = {answer for answer in held.answers if answer not in (held.engine, "")}
        if others:
            yield Violation("a connection stays with its engine", held.began, f"{held}: {others}")
        for snapshot in history.snapshots:
            if held.began < snapshot.at < held.ended and (row := _usurper(held, snapshot)) is not None:
                yield Violation("no port again while it is held", snapshot.at, f"{held}: {row}")
                break


def _usurper(held: Held, snapshot: Snapshot) -> Row | None:
    owner = (held.service, held.replica)
    return next((r for r in snapshot.rows if r.port == held.port and (r.service, r.replica) != owner), None)


# -- what is left, what was logged


def _remains(history: History) -> Iterator[Violation]:
    remains = history.remains
    at = history.rests[-1].ended if history.rests else 0.0
    if remains is None:
        yield Violation("the end was reached", at, "nothing is known of what remains")
        return
    for what, left in (
        ("no zombies", remains.zombies),
        ("no links of the gone", remains.links),
        ("no leases of the gone", remains.leased_ports),
        ("nobody on ports of the gone", remains.held_ports),
        ("no processes after stop --all", remains.processes),
    ):
        if left:
            yield Violation(what, at, ", ".join(map(str, left)))
    if remains.quarantined:
        yield Violation("quarantine empties", at, f"{remains.quarantined} ports")


def _errors(history: History) -> Iterator[Violation]:
    for line in history.log:
        if line.level not in ("error", "critical") or line.event in SAID_BY_OTHERS:
            continue
        if not any(_explains(fault, line) for fault in history.faults):
            yield Violation("no errors without their cause", line.at, line.text[:2000])


def _explains(fault: Fault, line: LogLine) -> bool:
    causes = EXPLAINED_ERRORS.get(line.event, frozenset())
    return fault.kind in causes and fault.began - 0.5 <= line.at <= fault.ended + _LOG_LAG_S


def _stage(history: History) -> Iterator[Violation]:
    for failure in history.failures:
        yield Violation("what is ordered is done", 0.0, failure)


# -- telling


def story(history: History, violation: Violation, *, around_s: float = 3.0) -> str:
    """A violation with all that happened near it."""
    low, high = violation.at - around_s, violation.at + around_s
    faults = [f for f in history.faults if f.began <= high and f.ended >= low - EVIDENCE_S]
    lines = [x for x in history.log if low <= x.at <= high and (x.level != "debug" or "replica" in x.text)]
    parts = [f"VIOLATION (seed {history.seed}) at {violation.at:.2f}: {violation.law}: {violation.what}"]
    parts += [f"    fault {fault}" for fault in sorted(faults, key=lambda f: f.began)]
    parts += [f"    {line.at:.2f} {line.text[:300]}" for line in lines[:80]]
    return "\n".join(parts)


def summary(history: History) -> list[str]:
    """What was done and what came of it, as lines of a table."""
    kinds = Counter(f.kind for f in history.faults)
    outcomes = Counter(f"{r.outcome} {r.status}" if r.outcome == "status" else r.outcome for r in history.requests)
    on = _engines_of_requests(history)
    blamed: Counter[str] = Counter()
    for request in history.requests:
        if request.outcome != "ok":
            fault = explain(request, history.faults, on.get(request.number, frozenset()))
            known = "" if on.get(request.number) else ", engine not known"
            blamed[f"{fault.kind}{known}" if fault else "NOTHING"] += 1
    rests = [_settled_after(history, rest) for rest in history.rests]
    took = [one for one in rests if one is not None]
    lines = [f"chats            {len(history.requests)}: {_counts(outcomes)}"]
    lines.append(f"failed because   {_counts(blamed) or 'none failed'}")
    lines.append(f"done             {_counts(kinds)}")
    lines.append(f"engines seen     {len({s.engine for s in history.served})}")
    lines.append(f"drained/released {_counts(Counter(out.why for out in history.out))}")
    lines.append(f"held             {len(history.held)} connections")
    lines.append(f"rests            {len(rests)}, settled after {max(took, default=0):.1f} s at the most")
    return lines


def failures(history: History) -> list[str]:
    """Every request that failed, and what it is blamed on."""
    on = _engines_of_requests(history)
    lines = []
    for request in history.requests:
        if request.outcome != "ok":
            engines = on.get(request.number, frozenset())
            lines.append(f"{request}\n    on {sorted(engines)}: {explain(request, history.faults, engines)}")
    return lines


def _settled_after(history: History, rest: Rest) -> float | None:
    for snapshot in history.snapshots:
        if rest.began < snapshot.at <= rest.ended and expected_is_there(rest.expected, snapshot.rows):
            return snapshot.at - rest.began
    return None


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
