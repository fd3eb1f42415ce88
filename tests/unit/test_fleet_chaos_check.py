"""The checker of fleets can fail: each law is broken by hand, and kept by what differs in that one thing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.check import Violation
from tests.chaos.fleet.blame import MOVED, Blame
from tests.chaos.fleet.check import REVOKED_S, SETTLE_S, check
from tests.chaos.fleet.history import (
    ADDRESS,
    HAPROXY,
    Begun,
    Expected,
    Fault,
    FleetHistory,
    Holders,
    KeyTerm,
    KeyUsed,
    Muster,
    Ordered,
    Rest,
    Safe,
    View,
)
from tests.chaos.fleet.report import failures, story, summary
from tests.chaos.history import LogLine, Request, Row, Served

GATEWAYS = ("gw-1", "gw-2", "gw-3")
OK = Request(1, "chat", "tiny", True, 10.0, 11.0, "ok", 200, "", "a1-0", via=HAPROXY, gateway="gw-1")
AT_2 = replace(OK, via="gw-2", gateway=None)
BROKEN = replace(OK, outcome="broken", detail="the stream ended before [DONE]")
LOST = replace(OK, outcome="status", status=502, detail='{"code":"router_lost"}')
A1 = Expected("a1", "a1-0")
ROW = Row("chat", "a1", "serving", 24001, "id-1")
SAFE = Safe("a1-0", 30.0, 40.0, "safe", "a1", "gw-1")
TERM = KeyTerm("k1", added=10.0, revoked=40.0)


def clean() -> FleetHistory:
    """A history in which nothing is wrong."""
    history = FleetHistory(1, GATEWAYS, requests=[OK], served=[Served("a1-0", 1, 10.1, 10.9, "completed")])
    history.begun = [Begun("a1", "a1-0", 1, 1.0)]
    history.views = [View(at, name, (ROW,)) for at in (50.5, 52.0) for name in GATEWAYS]
    history.rests = [Rest(50.0, 53.0, (A1,))]
    history.musters = [Muster("gw-1", 50.0, 52.0, 3, frozenset(("a1-0",)), frozenset(("a1-0",)))]
    history.safe = [SAFE]
    history.key_terms = [TERM]
    history.keys_used = [KeyUsed("k1", "gw-1", 30.0, 200), KeyUsed("k1", "gw-1", 60.0, 401)]
    history.ordered = [Ordered("put", "gw-1", 1.0, 1.1, 201)]
    history.holders = [Holders(0.0, frozenset(("gw-1",)))]
    return history


def laws(history: FleetHistory) -> list[str]:
    return [violation.law for violation in check(history)]


def test_a_clean_history_is_clean() -> None:
    assert check(clean()) == []


# -- requests

NO_CAUSE = "no failure without its cause"


def failed(request: Request, *faults: Fault, on: str | None = None) -> list[str]:
    history = clean()
    history.requests = [request]
    history.served = [Served(on, request.number, request.began, request.ended, "cut")] if on else []
    history.faults = list(faults)
    return laws(history)


def test_a_failure_without_a_fault_is_a_violation() -> None:
    """Of whatever kind it is, and whichever way it came."""
    for outcome in ("broken", "status", "timeout", "refused", "wrong"):
        for request in (OK, AT_2, replace(OK, via=ADDRESS, gateway=None)):
            assert failed(replace(request, outcome=outcome)) == [NO_CAUSE]


HARMLESS = ("daemon away", "reload", "cut from store", "members away", "store away", "compacted")


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_must_cost_nothing_excuses_nothing(kind: str) -> None:
    """The daemon's absence, a reload, and all that happens to etcd."""
    for request in (BROKEN, LOST, replace(AT_2, outcome="refused"), replace(OK, outcome="status", status=503)):
        assert failed(request, Fault(kind, 9.0, 12.0, "gw-1")) == [NO_CAUSE]


def test_a_fault_excuses_what_passed_its_gateway_at_its_time() -> None:
    """And neither what passed another one, nor what came earlier or later."""
    fault = Fault("router killed", 10.5, 12.0, "gw-1")
    assert failed(LOST, fault) == []
    assert failed(replace(LOST, gateway="gw-2"), fault) == [NO_CAUSE]
    assert failed(replace(LOST, via="gw-2", gateway=None), fault) == [NO_CAUSE]
    assert failed(replace(LOST, began=20.0, ended=21.0), fault) == [NO_CAUSE]
    assert failed(replace(LOST, detail="router_unavailable"), fault) == [NO_CAUSE], "it is held, not refused"


def test_a_gateway_that_was_lost_costs_haproxy_only_what_was_in_flight_there() -> None:
    """What comes later goes to another gateway. A client of its own has nobody else to ask."""
    fault = Fault("gateway lost", 10.5, 30.0, "gw-1", how="killed")
    unknown = replace(BROKEN, gateway=None)
    assert failed(unknown, fault) == []
    assert failed(replace(unknown, began=15.0, ended=16.0), fault) == [NO_CAUSE]
    assert failed(replace(unknown, began=15.0, ended=16.0), replace(fault, how="power cut")) == []
    assert failed(replace(unknown, began=25.0, ended=26.0), replace(fault, how="power cut")) == [NO_CAUSE]
    refused = replace(AT_2, via="gw-1", outcome="refused", began=25.0, ended=26.0)
    assert failed(refused, fault) == []
    assert failed(replace(refused, via="gw-2"), fault) == [NO_CAUSE]


def test_a_gateway_that_leaves_costs_only_those_who_ask_no_other() -> None:
    """Neither HAProxy's clients, nor those of another gateway."""
    fault = Fault("gateway left", 9.0, 30.0, "gw-2")
    assert failed(replace(AT_2, outcome="refused"), fault) == []
    assert failed(replace(OK, outcome="broken", gateway="gw-2"), fault) == [NO_CAUSE]
    assert failed(replace(AT_2, via="gw-1", outcome="refused"), fault) == [NO_CAUSE]


def test_an_engine_excuses_what_was_on_it_and_what_nobody_knows() -> None:
    """Known to have been on another engine is no excuse."""
    fault = Fault("engine ended", 10.5, 10.6, node=1, engine="a1-0")
    unknown = replace(BROKEN, engine=None)
    assert failed(unknown, fault) == []
    assert failed(unknown, fault, on="a1-0") == []
    assert failed(unknown, fault, on="a2-0") == [NO_CAUSE]
    assert failed(replace(unknown, outcome="refused"), fault) == [NO_CAUSE], "a gateway takes the connection"
    assert failed(replace(unknown, began=30.0, ended=31.0), fault) == [NO_CAUSE]
    not_asked = replace(fault, gateway="gw-2", how="not asked")
    assert failed(unknown, not_asked, on="a1-0") == [NO_CAUSE], "only at the gateway that counted as dead"
    away = Fault("daemon away", 9.0, 29.0, "gw-1")
    assert failed(replace(unknown, began=30.0, ended=31.0), fault, away) == [], "nobody was there to find out"
    assert failed(replace(unknown, began=30.0, ended=31.0), fault, replace(away, gateway="gw-2")) == [NO_CAUSE]


def test_a_cut_network_excuses_what_was_at_that_gateway_on_that_node() -> None:
    """Each other pair of both goes on."""
    fault = Fault("cut from node", 9.0, 12.0, "gw-1", node=1)
    assert failed(BROKEN, fault, on="a1-0") == []
    assert failed(replace(BROKEN, gateway="gw-2"), fault, on="a1-0") == [NO_CAUSE]
    assert failed(BROKEN, replace(fault, node=2), on="a1-0") == [NO_CAUSE]


def test_an_address_that_moves_breaks_what_came_by_it() -> None:
    """Around that moment, and nothing that came another way."""
    history = clean()
    history.holders.append(Holders(12.0, frozenset(("gw-2",))))
    history.requests = [replace(BROKEN, via=ADDRESS, gateway=None)]
    assert laws(history) == []
    explained = Blame(history).explain(history.requests[0])
    assert explained is not None
    assert explained.kind == MOVED
    history.requests = [replace(BROKEN, via=ADDRESS, gateway=None, began=30.0, ended=31.0)]
    assert laws(history) == [NO_CAUSE]
    history.requests = [BROKEN]
    assert laws(history) == [NO_CAUSE]


def test_what_came_by_the_address_was_at_who_had_it() -> None:
    """Just before a move it may have been at either."""
    history = clean()
    history.holders.append(Holders(20.0, frozenset(("gw-2",))))
    blame, by_address = Blame(history), replace(OK, via=ADDRESS, gateway=None)
    assert blame.gateways_of(by_address) == {"gw-1"}
    assert blame.gateways_of(replace(by_address, ended=21.0)) == {"gw-1", "gw-2"}
    assert blame.gateways_of(replace(by_address, began=40.0, ended=41.0)) == {"gw-2"}


# -- drains


def drained(served: Served, *, safe: Safe = SAFE, request: Request | None = None) -> list[str]:
    history = clean()
    history.safe, history.served = [safe], [served]
    history.requests = [request] if request else []
    return laws(history)


def test_what_is_safe_to_stop_gets_no_request() -> None:
    """From the answer on, until it is resumed."""
    for began, broken in ((29.0, False), (30.5, True), (39.9, True), (40.5, False)):
        expected = ["safe to stop gets no request"] if broken else []
        assert drained(Served("a1-0", 1, began, began + 0.1, "completed")) == expected
    assert drained(Served("a2-0", 1, 30.5, 30.6, "completed")) == []


def test_nothing_is_in_flight_at_what_is_safe_to_stop() -> None:
    """The engine itself says so."""
    for ended, broken in ((30.2, False), (31.0, True), (None, True)):
        expected = ["nothing in flight at what is safe to stop"] if broken else []
        assert drained(Served("a1-0", 1, 29.0, ended, "completed")) == expected


def test_a_gateway_that_was_named_as_dead_may_still_send_there() -> None:
    """Its nginx serves on; the guide says what to do. One that was not named may not."""
    late, dead = Served("a1-0", 1, 30.5, 30.6, "completed"), replace(SAFE, dead=frozenset(("gw-2",)))
    assert drained(late, safe=dead, request=AT_2) == []
    assert drained(late, safe=SAFE, request=AT_2) == ["safe to stop gets no request"]
    assert drained(late, safe=dead, request=replace(AT_2, via="gw-3")) == ["safe to stop gets no request"]
    assert drained(late, safe=dead) == ["safe to stop gets no request"], "nobody knows where it came from"
    again = replace(AT_2, via=HAPROXY, gateway="gw-3")  # Answered there; one that HAProxy gave up came by another one.
    assert drained(replace(late, outcome="aborted"), safe=dead, request=again) == []
    assert drained(late, safe=dead, request=again) == ["safe to stop gets no request"]
    assert drained(replace(late, outcome="aborted"), safe=SAFE, request=again) == ["safe to stop gets no request"]


# -- at rest


def test_every_replica_serves_at_every_gateway_within_the_bound() -> None:
    """Stalls of the machine do not count."""
    history = clean()
    late = 50.0 + SETTLE_S + 5.0
    history.rests = [Rest(50.0, late + 5, (A1,))]
    history.views = [it for it in history.views if it.gateway != "gw-3"]
    assert laws(history) == ["who is well serves at every gateway"]
    history.views.append(View(late, "gw-3", (ROW,)))
    assert laws(history) == ["who is well serves at every gateway"]
    history.faults = [Fault("stalled", 55.0, 61.0)]
    assert laws(history) == []


def test_nobody_else_serves_and_settled_stays_settled() -> None:
    """Also one who was removed, or whom only one gateway has."""
    history = clean()
    history.views.append(View(52.5, "gw-2", (ROW, replace(ROW, replica="r1", port=24002))))
    assert laws(history) == ["settled stays settled"]
    history.views[-1] = View(52.5, "gw-2", ())
    assert laws(history) == ["settled stays settled"]


def test_who_serves_answers_at_every_gateway() -> None:
    history = clean()
    history.musters = [replace(history.musters[0], answered=frozenset())]
    assert laws(history) == ["who serves answers at every gateway"]


def test_no_port_is_for_two() -> None:
    history = clean()
    history.views.append(View(30.0, "gw-1", (ROW, replace(ROW, replica="r1"))))
    assert laws(history) == ["no port for two"]


def test_a_replica_has_the_same_port_everywhere_unless_the_store_failed_its_gateway() -> None:
    """When the gateway took that port; at another gateway, or much earlier, is no excuse."""
    history = clean()
    odd = replace(ROW, port=24050)
    history.views = [
        View(it.at, it.gateway, (odd,)) if it.gateway == "gw-2" else it for it in history.views
    ]  # fmt: skip
    assert laws(history) == ["the same port everywhere"]
    for fault, excused in (
        (Fault("cut from store", 45.0, 49.0, "gw-2"), True),
        (Fault("store away", 45.0, 49.0), True),
        (Fault("cut from store", 45.0, 49.0, "gw-1"), False),
        (Fault("store away", 20.0, 30.0), False),
        (Fault("nginx killed", 45.0, 49.0, "gw-2"), False),
        (Fault("daemon away", 0.5, 5.0, "gw-2"), True),
        (Fault("daemon away", 2.0, 5.0, "gw-2"), False),
    ):
        history.faults = [fault]
        assert laws(history) == ([] if excused else ["the same port everywhere"])


# -- keys


def test_a_key_is_not_in_force_once_it_was_revoked() -> None:
    """At a gateway that reads the store. One that cannot has so long after it can again."""
    history = clean()
    late = 40.0 + REVOKED_S + 1.0
    history.keys_used = [KeyUsed("k1", "gw-2", 41.0, 200)]
    assert laws(history) == []
    history.keys_used = [KeyUsed("k1", "gw-2", late, 200)]
    assert laws(history) == ["no key in force once it was revoked"]
    history.faults = [Fault("cut from store", 39.0, late + 5, "gw-2")]
    assert laws(history) == []
    history.faults = [Fault("cut from store", 39.0, late + 5, "gw-1")]
    assert laws(history) == ["no key in force once it was revoked"]
    history.keys_used, history.faults = [KeyUsed("k1", "gw-2", late, None)], []
    assert laws(history) == [], "no answer lets nobody in"


def test_a_key_that_was_added_lets_in() -> None:
    history = clean()
    history.keys_used = [KeyUsed("k1", "gw-3", 10.1, 401)]
    assert laws(history) == []
    history.keys_used = [KeyUsed("k1", "gw-3", 30.0, 401)]
    assert laws(history) == ["a key that was added lets in"]
    history.faults = [Fault("daemon away", 9.0, 29.0, "gw-3")]
    assert laws(history) == []


# -- orders, and what was logged


@pytest.mark.parametrize(
    ("what", "code", "kind", "gateway", "excused"),
    [
        ("put", 503, "store away", None, True),
        ("put", 503, "cut from store", "gw-1", True),
        ("put", 503, "cut from store", "gw-2", False),
        ("put", None, "daemon away", "gw-1", True),
        ("put", None, "nginx killed", "gw-1", False),
        ("drain", 504, "daemon away", "gw-2", True),
        ("drain", 504, "compacted", None, False),
        ("delete", 404, "compacted", None, True),
    ],
)
def test_what_is_ordered_is_done_unless_the_store_or_the_gateway_fails(
    what: str, code: int | None, kind: str, gateway: str | None, excused: bool
) -> None:
    """A drain waits for all gateways, so that any of them may keep it from being safe."""
    history = clean()
    history.ordered = [Ordered(what, "gw-1", 20.0, 21.0, code)]
    history.faults = [Fault(kind, 15.0, 25.0, gateway)]
    assert laws(history) == ([] if excused else ["what is ordered is done"])
    history.faults = []
    assert laws(history) == ([] if code == 404 else ["what is ordered is done"])


def test_a_drain_that_waited_on_after_the_fault_has_no_excuse() -> None:
    """A fault is felt for a while, and no longer, however early the drain was asked for."""
    history = clean()
    history.faults = [Fault("daemon away", 15.0, 25.0, "gw-2")]
    history.ordered = [Ordered("drain", "gw-1", 20.0, 39.0, 504)]
    assert laws(history) == []
    history.ordered = [Ordered("drain", "gw-1", 20.0, 60.0, 504)]
    assert laws(history) == ["what is ordered is done"]


def test_no_fault_of_the_daemons_own_is_logged() -> None:
    history = clean()
    history.faults = [Fault("daemon away", 9.0, 29.0, "gw-3")]
    history.log = [LogLine(10.0, "error", "loop.failed", "{}"), LogLine(10.0, "error", "store.away", "{}")]
    assert laws(history) == ["no fault of the daemon's own"]


def test_what_the_stage_could_not_do_is_a_violation() -> None:
    history = clean()
    history.failures = ["gw-1: the daemon did not start"]
    assert laws(history) == ["the stage gets on"]


# -- telling


def test_a_report_names_what_was_done_and_each_failure_with_its_cause() -> None:
    """And the story of a violation has what happened near it."""
    history = clean()
    history.requests = [OK, replace(BROKEN, number=2)]
    history.faults = [Fault("gateway lost", 10.5, 30.0, "gw-1", how="killed")]
    text = "\n".join(summary(history))
    for part in ("2 (2 by haproxy): 1 ok, 1 broken", "1 gateway lost (killed)", "safe      1", "revoked     1"):
        assert part in text
    (line,) = failures(history)
    assert "gateway lost" in line
    history.faults = []
    assert "1 NOTHING" in "\n".join(summary(history))
    told = story(history, Violation(NO_CAUSE, 10.0, "what"))
    assert told.startswith("VIOLATION (seed 1) at 10.00: no failure without its cause")
