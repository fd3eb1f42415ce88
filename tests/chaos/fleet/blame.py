"""Which fault a request that failed may be blamed on. Pure.

Strict about place and time: a fault excuses requests that may have passed the part that it happened to, while it
lasted, and only failures of the kind that it may cause. Leaving, a drain, a reload, a daemon that is away, and whatever
happens to etcd excuse nothing; where HAProxy was asked, a gateway that was lost excuses only what was in flight there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.chaos.fleet.history import ADDRESS, HAPROXY, Fault, FleetHistory
from tests.chaos.history import Request

EVIDENCE_S = 8.0
"""What ended or was cut may cost requests that were sent there until it is out, or until its tunnel is back."""
_KNOWN_S = 1.0
"""Where the engine of a request is known there is nothing to find out."""
_NOTICE_S = 0.7
"""Sockets of a process that was killed live on for a moment."""
_SILENT_S = 12.0
"""HAProxy finds a machine that is silent by two checks, each of which waits 5 s at most."""
_BACK_S = 3.0
_MOVES_S = 6.0
"""Keepalived takes three advertisements and more to find out, and machines on the network a moment more."""
_CUT = frozenset(("broken", "refused", "timeout"))
_RESTARTS = frozenset(("daemon away", "gateway lost"))
MOVED = "address moved"


class Blame:
    """Explains the failures of one history."""

    def __init__(self, history: FleetHistory) -> None:
        self._history = history
        self._nodes = {it.engine: it.node for it in history.begun}
        self._moves = [Fault(MOVED, it.at, it.at) for it in history.holders[1:]]
        engines: defaultdict[int, set[str]] = defaultdict(set)
        for served in history.served:
            engines[served.request].add(served.engine)
        self._engines = engines

    def engines_of(self, request: Request) -> frozenset[str]:
        """The engines that worked on it, or answered it."""
        told = {request.engine} if request.engine in self._nodes and request.engine is not None else set()
        return frozenset(self._engines.get(request.number, set()) | told)

    def gateways_of(self, request: Request) -> frozenset[str]:
        """The gateways that it may have passed."""
        if request.gateway is not None:
            return frozenset((request.gateway,))
        if request.via == HAPROXY:
            return frozenset(self._history.gateways)
        if request.via != ADDRESS:
            return frozenset((request.via,))
        found: set[str] = set()
        for before, after in zip(self._history.holders, [*self._history.holders[1:], None], strict=True):
            ends = after.at if after is not None else float("inf")
            if before.at <= request.ended and ends + _MOVES_S >= request.began:
                found |= before.gateways
        return frozenset(found)

    def explain(self, request: Request) -> Fault | None:
        """The fault that this failed request may be blamed on; None if there is none."""
        possible = [it for it in (*self._history.faults, *self._moves) if self._may_blame(request, it)]
        return min(possible, key=lambda fault: abs(request.ended - fault.began), default=None)

    def _may_blame(self, request: Request, fault: Fault) -> bool:
        if fault.gateway is not None and fault.gateway not in self.gateways_of(request):
            return False
        match fault.kind:
            case "gateway lost":
                return self._lost_with(request, fault)
            case "gateway left":
                # A client that asks a gateway which has left is refused; balancers ask another one.
                return request.via == fault.gateway and request.outcome in _CUT and _overlap(request, fault, _BACK_S)
            case "nginx killed":
                told = request.outcome == "wrong" and "an error in the stream" in request.detail
                is_cut = request.outcome in ("broken", "refused") or told or _is_status(request, 502, 503)
                return is_cut and _overlap(request, fault, _KNOWN_S)
            case "router killed":
                in_flight = request.began <= fault.began + _NOTICE_S and request.ended >= fault.began
                return in_flight and (request.outcome == "broken" or "router_lost" in request.detail)
            case "engine ended":
                return self._is_on(request, fault, {fault.engine} if fault.engine is not None else set())
            case "cut from node" | "logins ended":
                return self._is_on(request, fault, {it for it, node in self._nodes.items() if node == fault.node})
            case "stalled":
                return request.outcome == "timeout" and _overlap(request, fault)
            case "address moved":
                return request.via == ADDRESS and request.outcome in _CUT and _near(request, fault.began, _MOVES_S)
        return False

    def _lost_with(self, request: Request, fault: Fault) -> bool:
        if request.via != HAPROXY:
            return _overlap(request, fault, _BACK_S)
        until = fault.began + (_NOTICE_S if fault.how == "killed" else _SILENT_S)
        is_cut = request.outcome in _CUT or _is_status(request, 502, 504)
        return is_cut and request.began <= until and request.ended >= fault.began

    def _is_on(self, request: Request, fault: Fault, engines: Iterable[str]) -> bool:
        """Whether it was with one of these engines, as far as anybody knows."""
        if request.outcome == "refused":
            return False  # No gateway that is there refuses a connection for its engines' sake.
        known = self.engines_of(request)
        if known:
            return not known.isdisjoint(engines) and _overlap(request, fault, _KNOWN_S)
        return _overlap(request, fault, self._felt_s(request, fault))

    def _felt_s(self, request: Request, fault: Fault) -> float:
        """How long after it a fault may be felt: until a daemon has been there for a while that reacts to it."""
        end, gateways = fault.ended + EVIDENCE_S, self.gateways_of(request)
        blind = [it for it in self._history.faults if it.kind in _RESTARTS and it.gateway in gateways]
        for other in sorted(blind, key=lambda it: it.began):
            if other.began <= end and other.ended > end - EVIDENCE_S:
                end = max(end, other.ended + EVIDENCE_S)
        return end - fault.ended


def _is_status(request: Request, *codes: int) -> bool:
    return request.outcome == "status" and request.status in codes


def _overlap(request: Request, fault: Fault, after_s: float = 0.0) -> bool:
    return request.began <= fault.ended + after_s and request.ended >= fault.began


def _near(request: Request, at: float, around_s: float) -> bool:
    return request.began <= at + around_s and request.ended >= at - around_s
