"""Judges the history of a fleet. Pure: what it says follows from the history alone.

Bounds are those of a busy machine. Time in which the machine itself did not get on (`stalled`) counts for nobody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tests.chaos.check import Violation, ports_for_two
from tests.chaos.fleet.blame import Blame
from tests.chaos.fleet.history import HAPROXY, Expected, Fault, FleetHistory, Ordered, Rest, Safe, View
from tests.chaos.history import Request, Row, Served

SETTLE_S = 40.0
"""Once faults end, every replica that is well serves at every gateway within this time, and nobody else."""
MUSTER_S = 30.0
"""Each of them answers somebody at every gateway within this time."""
REVOKED_S = 8.0
"""A gateway that reads the store knows of a key within this time: `read_every_s`, and members that do not answer."""
_AGAIN_S = 15.0
"""So long after a fault an order may still not be done for it: the store is read again, a lease taken anew."""
_ENGINE_LAG_S = 0.5
"""An engine notes a little later that its client is gone."""
_OWN_PORT_S = 12.0
"""So long before a gateway took a port of its own the store may have failed it."""
NEVER_LOGGED = frozenset(("loop.failed", "daemon.failed"))
"""Faults of the daemon's own, which nothing that happens to it excuses."""

_STORE = frozenset(("store away", "members away", "cut from store"))
_GATEWAY = frozenset(("daemon away", "gateway lost", "gateway left"))


def check(history: FleetHistory) -> list[Violation]:
    """Everything that must not have happened, in the order of time."""
    laws = (_requests, _safe, _settled, _mustered, _ports, _same_ports, _keys, _orders, _logged, _stage)
    found = [violation for law in laws for violation in law(history)]
    return sorted(found, key=lambda violation: violation.at)


def serves(expected: Sequence[Expected], rows: Iterable[Row]) -> bool:
    """Whether just these replicas serve, each once."""
    serving = Counter(row.replica for row in rows if row.state == "serving")
    return serving == Counter(one.replica for one in expected)


def _requests(history: FleetHistory) -> Iterator[Violation]:
    blame = Blame(history)
    for request in history.requests:
        if request.outcome != "ok" and blame.explain(request) is None:
            engines = ", ".join(sorted(blame.engines_of(request))) or "no engine known"
            where = ", ".join(sorted(blame.gateways_of(request)))
            yield Violation("no failure without its cause", request.ended, f"{request}; on {engines}; at {where}")


# -- drains


def _safe(history: FleetHistory) -> Iterator[Violation]:
    """What was called safe to stop works on nothing any more, and begins nothing, whichever gateway it was asked at."""
    blame, requests = Blame(history), {it.number: it for it in history.requests}
    by_engine: defaultdict[str, list[Served]] = defaultdict(list)
    for served in history.served:
        by_engine[served.engine].append(served)
    for safe in history.safe:
        for served in by_engine[safe.engine]:
            if _is_of_the_dead(safe, served, requests.get(served.request), blame):
                continue
            if safe.at < served.began < safe.until:
                yield Violation("safe to stop gets no request", served.began, f"{safe}, and yet {served}")
            elif served.began <= safe.at and (served.ended is None or served.ended > safe.at + _ENGINE_LAG_S):
                yield Violation("nothing in flight at what is safe to stop", safe.at, f"{safe}, and yet {served}")


def _is_of_the_dead(safe: Safe, served: Served, request: Request | None, blame: Blame) -> bool:
    """Whether it may have come by a gateway that the answer named as dead: its nginx may serve on, says the guide.

    What HAProxy had to ask for once more had come by another gateway before.
    """
    if request is None or not safe.dead:
        return False
    asked_again = request.via == HAPROXY and served.outcome == "aborted"
    return asked_again or not blame.gateways_of(request).isdisjoint(safe.dead)


# -- at rest


def _settled(history: FleetHistory) -> Iterator[Violation]:
    for rest in history.rests:
        for gateway in history.gateways:
            during = [it for it in history.views if it.gateway == gateway and rest.began < it.at <= rest.ended]
            good = next((it for it in during if serves(rest.expected, it.rows)), None)
            if good is None or good.at > rest.began + SETTLE_S + _stalled_s(history, rest.began, good.at):
                what = _difference(rest, during[-1].rows if during else ())
                yield Violation("who is well serves at every gateway", rest.began, f"{gateway}: {what}")
                continue
            bad = next((it for it in during if it.at > good.at and not serves(rest.expected, it.rows)), None)
            if bad is not None:
                yield Violation("settled stays settled", bad.at, f"{gateway}: {_difference(rest, bad.rows)}")


def _difference(rest: Rest, rows: Sequence[Row]) -> str:
    expected, serving = {it.replica for it in rest.expected}, {it.replica for it in rows if it.state == "serving"}
    shown = [row for row in rows if row.replica in expected ^ serving]
    return f"missing {sorted(expected - serving)}, too many {sorted(serving - expected)}; {shown}"


def _stalled_s(history: FleetHistory, began: float, ended: float) -> float:
    return sum(max(0.0, min(ended, it.ended) - max(began, it.began)) for it in history.faults if it.kind == "stalled")


def _mustered(history: FleetHistory) -> Iterator[Violation]:
    """Serving is not a word in a status: each engine has to answer somebody, at every gateway."""
    for muster in history.musters:
        silent = sorted(muster.expected - muster.answered)
        if silent:
            what = f"{muster.gateway}: nothing of {', '.join(silent)} in {muster.asked} chats"
            yield Violation("who serves answers at every gateway", muster.ended, what)


# -- ports


def _ports(history: FleetHistory) -> Iterator[Violation]:
    yield from ports_for_two(history.views)


def _same_ports(history: FleetHistory) -> Iterator[Violation]:
    """The same port everywhere, but where a gateway could not read which one that is when it took its own, or had no
    daemon when the engine came: then it may take the engine for the one before, if that engine (vLLM over HTTP, say)
    tells nothing of its start.
    """
    for rest in history.rests:
        last = {it.gateway: it for it in history.views if rest.began < it.at <= rest.ended}
        for one in rest.expected:
            ports = {name: port for name, view in last.items() if (port := _port_in(view, one.replica)) is not None}
            odd = [
                name
                for name, port in ports.items()
                if not _took_its_own(history, name, one.replica, port) and not _was_away(history, name, one.engine)
            ]
            if len({ports[name] for name in odd}) > 1:
                yield Violation("the same port everywhere", rest.ended, f"{one}: {ports}")


def _port_in(view: View, replica: str) -> int | None:
    return next((it.port for it in view.rows if it.replica == replica and it.state == "serving"), None)


def _took_its_own(history: FleetHistory, gateway: str, replica: str, port: int) -> bool:
    """Whether the store failed it, or the machine stalled, when the gateway took this port."""
    views = (it for it in history.views if it.gateway == gateway)
    at = next((it.at for it in views if any((row.replica, row.port) == (replica, port) for row in it.rows)), None)
    return at is not None and any(
        it.kind in _STORE | {"stalled"} and it.gateway in (None, gateway)
        and it.began <= at and it.ended >= at - _OWN_PORT_S
        for it in history.faults
    )  # fmt: skip


def _was_away(history: FleetHistory, gateway: str, engine: str) -> bool:
    """Whether the gateway had no daemon when the engine began."""
    at = next((it.at for it in history.begun if it.engine == engine), None)
    return at is not None and any(
        it.kind in _GATEWAY and it.gateway == gateway and it.began <= at <= it.ended for it in history.faults
    )


# -- keys


def _keys(history: FleetHistory) -> Iterator[Violation]:
    """A key lets in at every gateway that reads the store once it was added, and no more once it was revoked."""
    for term in history.key_terms:
        known = {name: _known_by(history, name, term.added) for name in history.gateways}
        refused = {name: _known_by(history, name, term.revoked) for name in history.gateways}
        for use in history.keys_used:
            if use.key != term.key or use.status is None:
                continue
            if use.status != 401 and use.at > refused[use.gateway]:
                yield Violation("no key in force once it was revoked", use.at, f"{use}; {term}")
            elif use.status == 401 and known[use.gateway] < use.at < term.revoked:
                yield Violation("a key that was added lets in", use.at, f"{use}; {term}")


def _known_by(history: FleetHistory, gateway: str, at: float) -> float:
    """When a gateway knows at the latest what the store was told: so long after whatever hinders it has ended."""
    end = at + REVOKED_S
    hindering = [it for it in history.faults if _hinders(it, gateway)]
    for fault in sorted(hindering, key=lambda it: it.began):
        if fault.began <= end and fault.ended > at:
            end = max(end, fault.ended + REVOKED_S)
    return end


def _hinders(fault: Fault, gateway: str) -> bool:
    return fault.kind in _STORE | _GATEWAY | {"stalled"} and fault.gateway in (None, gateway)


# -- orders


def _orders(history: FleetHistory) -> Iterator[Violation]:
    """What a gateway is asked for it does, unless the store, or its own end, keeps it from it."""
    for ordered in history.ordered:
        if not _is_done(ordered) and not any(_excuses(fault, ordered) for fault in history.faults):
            yield Violation("what is ordered is done", ordered.ended, str(ordered))


def _is_done(ordered: Ordered) -> bool:
    if ordered.what == "delete" and ordered.code == 404:
        return True  # An earlier request that had no answer did it.
    return ordered.code is not None and ordered.code < 300


def _excuses(fault: Fault, ordered: Ordered) -> bool:
    if not fault.began <= ordered.ended <= fault.ended + _AGAIN_S:
        return False  # What waited on had its time without the fault.
    if ordered.code == 504:  # A drain waits for every gateway, and for what is in flight there.
        return fault.kind in _STORE | _GATEWAY | {"stalled", "cut from node", "nginx killed", "router killed"}
    return fault.kind in _STORE | _GATEWAY | {"stalled"} and fault.gateway in (None, ordered.gateway)


# -- what was logged


def _logged(history: FleetHistory) -> Iterator[Violation]:
    for line in history.log:
        if line.event in NEVER_LOGGED:
            yield Violation("no fault of the daemon's own", line.at, line.text[:2000])


def _stage(history: FleetHistory) -> Iterator[Violation]:
    for failure in history.failures:
        yield Violation("the stage gets on", 0.0, failure)
