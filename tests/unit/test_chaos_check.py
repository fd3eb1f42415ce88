"""The checker can fail: each law is broken by hand, and kept by what differs in that one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.check import check, expected_is_there, explain, failures, port_of, story, summary
from tests.chaos.history import (
    Expected,
    Fault,
    Held,
    History,
    Listing,
    LogLine,
    Muster,
    Out,
    Remains,
    Request,
    Rest,
    Row,
    Served,
    Snapshot,
    Worker,
)

OK = Request(1, "chat", "calm", True, 10.0, 11.0, "ok", 200, "", "c0-0")
LOST = replace(OK, outcome="status", status=502, detail='{"code":"router_lost"}', engine=None)
BROKEN = replace(OK, outcome="broken", detail="the stream ended before [DONE]")
C0 = Expected("chat", "c0", "c0-0", "regular", "http", "sglang")
ROW = Row("chat", "c0", "serving", 24001, "id-1")
WORKER = Worker("http://127.0.0.1:24001", "regular", "http", "sglang", "ready")


def clean() -> History:
    """A history in which nothing is wrong."""
    history = History(1, requests=[OK], served=[Served("c0-0", 1, 10.1, 10.9, "completed")])
    history.snapshots = [Snapshot(at, (ROW,), 1, 0, 7, (("chat", 8),)) for at in (20.5, 22.0)]
    history.listings = [Listing(22.0, "chat", (WORKER,))]
    history.rests = [Rest(20.0, 23.0, (C0,))]
    history.remains = Remains()
    return history


def laws(history: History) -> list[str]:
    return [violation.law for violation in check(history)]


def test_a_clean_history_is_clean() -> None:
    assert check(clean()) == []


# -- requests


def failed(request: Request, *faults: Fault, on: str | None = None) -> list[str]:
    history = clean()
    history.requests = [request]
    history.served = [Served(on, request.number, request.began, None, None)] if on else []
    history.faults = list(faults)
    return laws(history)


def test_a_failure_without_a_fault_is_a_violation() -> None:
    """Of whatever kind it is."""
    for request in (LOST, BROKEN, replace(OK, outcome="timeout"), replace(OK, outcome="refused"),
                    replace(OK, outcome="wrong"), replace(OK, outcome="status", status=404)):  # fmt: skip
        assert failed(request) == ["no failure without its cause"]


HARMLESS = ("daemon away", "router restart", "reload", "router frozen", "state removed")


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_must_cost_nothing_excuses_nothing(kind: str) -> None:
    """The daemon's absence, a replacement, a reload, a router that went on in time, lost state."""
    for request in (LOST, BROKEN, replace(OK, outcome="status", status=503, detail="router_unavailable")):
        assert failed(request, Fault(kind, 9.0, 12.0, "chat")) == ["no failure without its cause"]


def test_a_killed_router_excuses_what_was_in_flight_in_it() -> None:
    """In time, and in place."""
    killed = Fault("router killed", 10.5, 12.0, "chat")
    assert failed(LOST, killed) == []
    assert failed(BROKEN, killed) == []
    assert failed(LOST, replace(killed, service="pairs")) != []
    assert failed(LOST, replace(killed, began=11.5)) != [], "it was over before"
    assert failed(LOST, replace(killed, began=9.0)) != [], "it was begun long after: it had to wait"
    assert failed(replace(OK, outcome="status", status=404), killed) != [], "who waits finds everybody there"
    assert failed(replace(OK, outcome="status", status=503, detail="router_unavailable"), killed) != []


def test_nothing_excuses_that_nobody_lets_a_request_wait() -> None:
    """Not even that router and daemon, or replicas and daemon, are away at the same time."""
    refused = replace(OK, outcome="status", status=503, detail="router_unavailable")
    away = Fault("daemon away", 9.0, 12.0)
    for kind in ("router killed", "router lost", "sockets away"):
        assert failed(refused, Fault(kind, 9.5, 11.5, "chat"), away) != []


def test_a_frozen_router_excuses_only_if_it_was_given_up() -> None:
    lost = Fault("router lost", 9.0, 12.0, "chat")
    assert failed(LOST, lost) == []
    assert failed(LOST, replace(lost, kind="router frozen")) != []


def test_nginx_excuses_broken_connections_and_nothing_else() -> None:
    killed = Fault("nginx killed", 9.0, 10.5)
    assert failed(BROKEN, killed) == []
    assert failed(replace(OK, outcome="refused"), killed) == []
    assert failed(replace(OK, outcome="wrong", detail="an error in the stream: h2 protocol error"), killed) == []
    assert failed(replace(OK, outcome="wrong", detail="its last token is missing"), killed) != []
    not_reached = replace(OK, outcome="status", status=500, detail='{"error":{"code":"start_generation_failed"}}')
    assert failed(not_reached, killed) == []
    assert failed(replace(not_reached, detail='{"error":{"code":"server_error"}}'), killed) != []
    assert failed(LOST, killed) != []
    assert failed(BROKEN, replace(killed, ended=9.9)) != []


def test_an_engine_excuses_only_what_was_on_it() -> None:
    """A neighbour's end is no reason to fail."""
    died = Fault("engine ended", 10.5, 10.6, "chat", "c0-0", "calm")
    assert failed(BROKEN, died, on="c0-0") == []
    assert failed(BROKEN, replace(died, engine="c5-1"), on="c0-0") != []
    assert failed(BROKEN, replace(died, began=2.0, ended=2.1), on="c0-0") != [], "long ago"
    nowhere = replace(BROKEN, engine=None)
    assert failed(nowhere, died) == [], "nobody knows where it was: it may have been on the way there"
    assert failed(nowhere, replace(died, model="wild")) != []
    assert failed(nowhere, replace(died, service="pairs")) != []
    assert failed(LOST, died) != [], "no engine makes the daemon say that a router is lost"


def test_an_engine_is_felt_for_longer_while_nobody_reacts() -> None:
    died = Fault("engine ended", 1.0, 1.1, "chat", "c0-0", "calm")
    away = Fault("daemon away", 1.0, 9.0)
    assert failed(replace(BROKEN, engine=None), died) != []
    assert failed(replace(BROKEN, engine=None), died, away) == []


def test_sockets_that_are_away_excuse_only_that_nobody_is_there() -> None:
    away = Fault("sockets away", 9.0, 10.5, "chat")
    assert failed(replace(OK, outcome="status", status=404, detail="model_not_found"), away) == []
    assert failed(BROKEN, away) != [], "what was in flight goes on"
    tried = replace(OK, outcome="status", status=500, detail="error sending request")
    assert failed(tried, away) != [], "the daemon takes them out"
    assert failed(tried, away, Fault("daemon away", 9.0, 12.0)) == []
    closed = replace(OK, outcome="status", status=503, detail="router_unavailable")
    assert failed(closed, away) != [], "it can wait"
    assert failed(LOST, away) != []


def test_a_socket_that_goes_unseen_excuses_only_pairs() -> None:
    """Anybody else's request SMG has to send elsewhere."""
    unseen = Fault("unlinked unseen", 10.5, 12.0, "pairs", "p1-1", "calm")
    answer = replace(OK, service="pairs", outcome="status", status=502, detail="Transport error")
    assert failed(answer, unseen) == []
    assert failed(replace(answer, service="chat"), replace(unseen, service="chat")) != []
    assert failed(replace(answer, outcome="broken"), unseen) != []
    assert failed(replace(answer, began=13.0, ended=13.1), unseen) != []


def test_lost_state_excuses_only_what_does_not_fit_into_memory() -> None:
    removed = Fault("state removed", 9.5, 10.5)
    large = replace(OK, outcome="status", status=503, detail='"code":"gateway_unavailable"', large=True)
    assert failed(large, removed) == []
    assert failed(replace(large, large=False), removed) != []
    assert failed(replace(large, began=13.0, ended=13.1), removed) != []


def test_an_answer_by_another_model_is_a_violation() -> None:
    history = clean()
    history.faults = [Fault("engine ended", 1.0, 1.1, "chat", "c0-0", "wild")]
    assert laws(history) == ["answered by the right model"]
    history.requests = [replace(OK, engine=None)]
    assert laws(history) == ["answered by the right model"]


def test_a_successor_of_another_model_may_get_what_was_on_its_way_to_the_old_engine() -> None:
    """The path is the same one: it may, in that moment, and nobody else may."""
    history = clean()
    history.requests = [replace(OK, engine="c0-1")]
    other = Fault("engine ended", 1.0, 1.1, "chat", "c0-1", "wild")
    ended = Fault("engine ended", 9.9, 10.0, "chat", "c0-0", "calm")
    history.faults = [other]
    assert laws(history) == ["answered by the right model"]
    history.faults = [other, ended]
    assert laws(history) == []
    earlier = replace(ended, began=5.0, ended=5.1)
    history.faults = [other, earlier]
    assert laws(history) == ["answered by the right model"]
    history.faults = [other, earlier, Fault("daemon away", 4.0, 10.5)]
    assert laws(history) == [], "no daemon was there that could tell the router"
    history.faults = [other, earlier, Fault("daemon away", 4.0, 8.0)]
    assert laws(history) == ["answered by the right model"], "it is back since"
    history.faults = [other, replace(ended, engine="c1-0")]
    assert laws(history) == ["answered by the right model"]


def test_long_after_the_faults_nothing_may_fail() -> None:
    """Not even on an engine that was at fault: whoever serves then is well."""
    history = clean()
    history.rests = [Rest(20.0, 40.0, (C0,))]
    history.served.append(Served("c0-0", 2, 31.0, 31.5, "completed"))
    history.faults = [Fault("engine misbehaved", 1.0, 31.2, "chat", "c0-0", "calm")]
    history.requests = [replace(OK, number=2, began=31.0, ended=31.6, outcome="broken")]
    assert laws(history) == ["no failure without its cause"]
    history.requests = [replace(history.requests[0], ended=40.5)]
    history.faults = [Fault("engine ended", 40.4, 40.5, "chat", "c0-0", "calm")]
    assert laws(history) == [], "the next round had begun"


def test_who_serves_gets_requests() -> None:
    """To be called serving is not enough."""
    history = clean()
    history.musters = [Muster(21.0, 23.0, 9, (C0,))]
    assert laws(history) == ["who serves gets requests"]
    history.served.append(Served("c0-0", 2, 21.5, 21.6, "completed"))
    assert laws(history) == []


# -- drains


def test_a_drained_engine_begins_nothing() -> None:
    history = clean()
    history.out = [Out("c0-0", 10.0, 30.0, "drained")]
    assert laws(history) == ["out of rotation is out"]
    history.out = [Out("c0-0", 10.95, 30.0, "drained")]
    assert laws(history) == []
    history.out = [Out("c0-0", 9.0, 10.05, "drained")]
    assert laws(history) == [], "taken back before"


def test_a_drained_engine_has_nothing_in_flight() -> None:
    history = clean()
    history.out = [Out("c0-0", 10.2, 30.0, "drained")]
    assert laws(history) == ["nothing in flight once drained"]
    history.served = [replace(history.served[0], ended=None)]
    assert laws(history) == ["nothing in flight once drained"]
    history.faults = [Fault("engine ended", 10.95, 10.96, engine="c0-0", note="killed with its process")]
    assert laws(history) == ["nothing in flight once drained"], "it was called drained long before that"
    history.faults = [Fault("engine ended", 10.15, 10.16, engine="c0-0", note="killed with its process")]
    assert laws(history) == []


# -- at rest


def test_who_is_well_must_serve_within_the_bound() -> None:
    history = clean()
    history.snapshots = [replace(s, rows=(replace(ROW, state="unreachable"),)) for s in history.snapshots]
    assert "all who are well serve, and nobody else" in laws(history)
    history = clean()
    history.rests = [Rest(1.0, 23.0, (C0,))]
    assert "all who are well serve, and nobody else" in laws(history), "too late"


def test_nobody_else_may_serve() -> None:
    history = clean()
    other = Row("chat", "w1", "serving", 24002, "id-2")
    history.snapshots = [replace(s, rows=(ROW, other)) for s in history.snapshots]
    assert laws(history) == ["all who are well serve, and nobody else"]
    assert not expected_is_there([C0], (ROW, replace(ROW, port=24003))), "nor one of them twice"


def test_settled_stays_settled() -> None:
    history = clean()
    history.snapshots.append(replace(history.snapshots[0], at=22.5, rows=()))
    assert "settled stays settled" in laws(history)


CHANGES: dict[str, Callable[[Worker], tuple[Worker, ...]]] = {
    "missing": lambda _w: (),
    "twice": lambda w: (w, w),
    "an orphan": lambda w: (w, replace(w, url="http://127.0.0.1:24009")),
    "wrong type": lambda w: (replace(w, worker_type="prefill"),),
    "wrong mode": lambda w: (replace(w, connection_mode="grpc"),),
    "wrong runtime": lambda w: (replace(w, runtime_type="vllm"),),
    "not ready": lambda w: (replace(w, status="pending"),),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_smg_knows_just_those_who_serve(change: Callable[[Worker], tuple[Worker, ...]]) -> None:
    history = clean()
    history.listings = [Listing(22.0, "chat", change(WORKER))]
    assert laws(history) == ["SMG knows just those who serve"]


def test_a_list_is_needed_at_rest() -> None:
    history = clean()
    history.listings = [Listing(19.0, "chat", (WORKER,))]
    assert laws(history) == ["SMG can be asked at rest"]


def test_ports_of_urls() -> None:
    assert [port_of(u) for u in ("http://h:24001", "grpc://h:24002/", "http://h:24003@1")] == [24001, 24002, 24003]


# -- ports


def test_no_port_for_two() -> None:
    history = clean()
    history.snapshots.insert(0, Snapshot(5.0, (ROW, replace(ROW, replica="w1")), 2, 0, 7, (("chat", 8),)))
    assert laws(history) == ["no port for two"]


def test_no_port_again_while_somebody_holds_it() -> None:
    history = clean()
    history.held = [Held(24001, "chat", "w9", "w9-1", 15.0, 21.0)]
    assert laws(history) == ["no port again while it is held"]
    history.held = [Held(24001, "chat", "w9", "w9-1", 15.0, 20.0)]
    assert laws(history) == []


def test_a_connection_stays_with_its_engine() -> None:
    history = clean()
    history.held = [Held(24005, "chat", "w9", "w9-1", 15.0, 21.0, ("w9-1", "w9-2"))]
    assert laws(history) == ["a connection stays with its engine"]
    history.held = [Held(24005, "chat", "w9", "w9-1", 15.0, 21.0, ("w9-1", "", "w9-1"))]
    assert laws(history) == [], "a liar does not say its name"


# -- what is left, what was logged


@pytest.mark.parametrize(
    ("remains", "law"),
    [
        (Remains(zombies=("7 (nginx) Z",)), "no zombies"),
        (Remains(links=("24009.sock",)), "no links of the gone"),
        (Remains(leased_ports=(24009,)), "no leases of the gone"),
        (Remains(held_ports=(24009,)), "nobody on ports of the gone"),
        (Remains(quarantined=1), "quarantine empties"),
        (Remains(processes=("7 nginx",)), "no processes after stop --all"),
        (None, "the end was reached"),
    ],
)
def test_nothing_may_be_left(remains: Remains | None, law: str) -> None:
    history = clean()
    history.remains = remains
    assert laws(history) == [law]


def test_errors_need_a_cause() -> None:
    history = clean()
    history.log = [LogLine(12.0, "error", "router.exited", "daemon-1.log ...")]
    assert laws(history) == ["no errors without their cause"]
    history.faults = [Fault("router killed", 11.9, 12.5, "chat")]
    assert laws(history) == []
    history.log = [replace(history.log[0], event="loop.failed")]
    assert laws(history) == ["no errors without their cause"], "nothing explains a fault of our own"
    history.log = [replace(history.log[0], event="router.said"), replace(history.log[0], level="warning")]
    assert laws(history) == []


def test_what_the_stage_saw_counts() -> None:
    history = clean()
    history.failures = ["the daemon did not start"]
    assert laws(history) == ["what is ordered is done"]


# -- telling


def test_the_story_has_the_seed_the_request_and_what_was_near() -> None:
    history = clean()
    history.requests = [BROKEN]
    history.faults = [Fault("daemon away", 9.0, 9.5), Fault("reload", 100.0, 100.1)]
    history.log = [LogLine(11.0, "info", "replica.gone", "gone it is"), LogLine(50.0, "info", "x", "far away")]
    told = story(history, check(history)[0])
    assert "seed 1" in told
    assert "number=1" in told
    assert "daemon away" in told
    assert "gone it is" in told
    assert "reload" not in told
    assert "far away" not in told
    assert any("NOTHING" in line for line in summary(history))
    assert "None" in failures(history)[0]
    assert explain(BROKEN, history.faults, frozenset()) is None


def test_with_the_daemon_away_a_successor_may_get_what_was_for_the_engine_before() -> None:
    """It is at the same path, and nobody tells the router. With the daemon there that is over in a moment."""
    refused = replace(OK, outcome="status", status=501, detail="Method not found!", engine=None)
    ended, away = Fault("engine ended", 5.0, 5.1, "chat", "c0-0", "calm"), Fault("daemon away", 4.0, 10.5)
    assert failed(refused, ended, away, on="c0-1") == []
    assert failed(refused, ended, on="c0-1") != []
    assert failed(refused, ended, replace(away, ended=8.0), on="c0-1") != [], "it is back since"
    assert failed(refused, ended, away, on="c1-1") != [], "at another place"
    assert failed(refused, replace(ended, engine="c0-2"), away, on="c0-1") != [], "an earlier one"
