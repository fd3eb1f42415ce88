"""What nginx tells the hold of a request, and what comes of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from gateway_sidecar.api import hold
from gateway_sidecar.api.hold import read_history
from gateway_sidecar.config import HoldSettings
from gateway_sidecar.control.hold.queue import History, HoldQueue, Verdict, digest_of
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.workqueue import WorkQueue
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.routers.smg.paths import PATHS
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.world import PlayedGate

TOLD = [
    ("", "", History()),
    ("-", "0.000", History(tries=1)),
    ("0.001", "3.100", History(tries=1, accepted=True, lost=1)),
    ("0.001, -", "2.000, 0.000", History(tries=1, accepted=True, lost=1)),
    ("-, -", "0.000, 0.000", History(tries=1)),
    ("- : 0.000 : -", "0.000 : 0.512 : 0.001", History(tries=2, released=1, waited_s=0.512)),
    ("0.000 : -", "2.000 : 0.000", History(tries=1, released=1, waited_s=2.0)),
    ("0.000 : 0.000", "2.000 : 9.500", History(tries=1, accepted=True, lost=1, released=1, waited_s=2.0)),
    ("- : 0.000, -, 0.001 : -", "0.000 : 2.000, 0.250, 0.500 : 0.0", History(tries=2, released=1, waited_s=2.75)),
    ("- : 0.000 : - : 0.000 : -", "0.0 : 1.000 : 2.001 : 0.500 : -", History(tries=3, released=2, waited_s=1.5)),
]


@pytest.mark.parametrize(("connected", "took", "meant"), TOLD)
def test_history_of_a_request(connected: str, took: str, meant: History) -> None:
    """Where it was, how long it waited here, and whether the last router had taken it."""
    assert read_history(connected, took) == meant


@in_fake_time
async def test_what_keeps_nothing_is_sent_again_when_its_router_dies() -> None:
    """A chat costs an engine twice the work at worst; a stored response would be there twice."""
    lost = read_history("0.000", "2.000", "0")
    for asked in (True, False):
        here = held(PlayedGate(), retry_in_flight=asked)
        here.open()
        for repeatable in (True, False):
            answer = await here.wait(lost, repeatable=repeatable)
            assert answer.verdict is (Verdict.GO_ON if asked and repeatable else Verdict.LOST)


@in_fake_time
async def test_what_a_dying_router_had_taken_does_not_meet_it_again() -> None:
    """Its sockets live on for a moment, in which nobody has noticed yet: the gate is open."""
    here = held(PlayedGate())
    here.open()
    waiting = asyncio.create_task(here.wait(read_history("0.000", "2.000", "0"), repeatable=True))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    here.close(Missing.ROUTER)
    await asyncio.sleep(5)
    assert not waiting.done()
    here.open()
    assert (await waiting).verdict is Verdict.GO_ON


@in_fake_time
async def test_whom_replicas_refused_waits_alone_where_nginx_is_the_router() -> None:
    """One that found all full is no reason for others to wait; it comes back some four times, ever later."""
    gates = PlayedGate()
    here = held(gates)
    here.open()
    waited = []
    for history in ("-", "- : 0.0 : -", "- : 0.0 : - : 0.0 : -", "- : 0.0 : - : 0.0 : - : 0.0 : -"):
        began = awake.now()
        answer = await here.wait(read_history(history, history.replace("-", "0.0")), alone=True)
        assert (answer.verdict, here.is_open, here.doubt) == (Verdict.GO_ON, True, None)
        waited.append(awake.now() - began)
    assert waited == sorted(waited)
    assert 2 < sum(waited) < 7
    end = "- : 0.0 : " * 4 + "-"
    answer = await here.wait(read_history(end, end.replace("-", "0.0")), alone=True)
    assert (answer.verdict, answer.code) == (Verdict.TOO_LONG, "no_replica")
    lost = await here.wait(read_history("0.0", "0.0", "0"), alone=True)
    assert (lost.verdict, lost.code) == (Verdict.LOST, "replica_lost")


@in_fake_time
async def test_a_request_that_routers_may_die_of_is_sent_again_once() -> None:
    """Each try costs everybody else's requests a router."""
    here = held(PlayedGate())
    here.open()
    again = read_history("0.000 : 0.000 : - : 0.000 : 0.000", "2.0 : 0.1 : 0.0 : 0.1 : 2.0", "0 : 120 : 0 : 120 : 0")
    assert (again.tries, again.lost) == (3, 2)
    assert (await here.wait(again, repeatable=True)).verdict is Verdict.LOST


@in_fake_time
async def test_an_answer_that_nginx_cannot_read_is_not_asked_for_again() -> None:
    """The engine has done the work, and would do it again for the same answer."""
    said = read_history("- : 0.000 : 0.000", "0.0 : 0.1 : 3.0", "0 : 120 : 65536")
    assert said.answered
    answer = await held(PlayedGate()).wait(said, repeatable=True)
    assert (answer.verdict, answer.code) == (Verdict.UNREADABLE, "answer_not_readable")
    assert not read_history("0.000 : 0.000", "0.1 : 3.0", "120 : 0").answered


def test_only_requests_that_keep_nothing_are_repeatable() -> None:
    """All that SMG serves is inference; what it stores, or hands out, it would store or hand out twice."""
    kept = ("/v1/responses", "/v1/conversations", "/v1/interactions", "/v1/realtime")
    assert set(PATHS.repeatable) <= set(PATHS.inference)
    assert not any(path.startswith(kept) for path in PATHS.repeatable)
    reads = ("/health", "/health_generate", "/liveness", "/readiness", "/v1/models", "/v1/models/**")
    assert all(it in PATHS.repeatable or it.startswith(kept) or it in reads for it in PATHS.inference)


def held(gates: PlayedGate, timeout_s: float = 30.0, *, retry_in_flight: bool = True) -> HoldQueue:
    settings = HoldSettings(timeout_s=timeout_s, retry_in_flight=retry_in_flight)
    return HoldQueue("chat", settings, gates, Metrics(), WorkQueue(awake.monotonic))


@in_fake_time
async def test_refusal_closes_the_gate_until_a_connection_is_taken() -> None:
    """What one request met the next ones are spared."""
    gates = PlayedGate()
    here = held(gates)
    here.open()
    first = asyncio.create_task(here.wait(History(tries=1)))
    await asyncio.sleep(0)
    assert gates.closed
    here.open()
    assert gates.closed, "not before it is trusted again"
    assert not first.done()
    here.trust()
    here.open()
    assert (await first).verdict is Verdict.GO_ON
    assert not gates.closed


@in_fake_time
async def test_time_is_bounded_over_all_returns_and_so_is_their_number() -> None:
    """A request that comes back goes on with the time it has left, and does not come back for ever."""
    here = held(PlayedGate())
    answer = await here.wait(History(tries=2, released=1, waited_s=29.99))
    assert answer.verdict is Verdict.TOO_LONG
    here.open()
    answer = await here.wait(History(tries=5, released=4, waited_s=1.0))
    assert answer.verdict is Verdict.TOO_LONG
    assert "refused 5 times" in answer.message


@in_fake_time
async def test_request_that_is_refused_again_waits_longer() -> None:
    """A router that takes our connections and not nginx's is on new ports: its few tries must outlast a reload."""
    here = held(PlayedGate())
    pauses: list[float] = []
    for released in range(4):
        here.open()
        waiting = asyncio.create_task(here.wait(History(tries=released + 1, released=released)))
        await asyncio.sleep(0)
        assert here.doubt is not None
        pauses.append(here.doubt.pause_s)
        here.trust()
        here.open()
        assert (await waiting).verdict is Verdict.GO_ON
    assert pauses == sorted(pauses)
    assert sum(pauses) > 2, "a reload of nginx takes some tenths of a second"


@in_fake_time
async def test_fault_with_a_waiting_request_is_told_and_the_client_may_try_again() -> None:
    """Its connection is not cut, the next request is no worse off, and the gate is looked at again."""

    class Faulty:
        missing = None
        decided = 0

        async def wait(self, _: History, *, only_for_router: bool, **_more: bool | str) -> None:
            raise ZeroDivisionError(only_for_router)

        def decide(self) -> None:
            self.decided += 1

    faulty, metrics = Faulty(), Metrics()
    service = SimpleNamespace(name="chat", hold=faulty, hold_policy=faulty)
    app = web.Application()
    app[hold._DAEMON] = cast("Daemon", cast("Any", SimpleNamespace(services={"chat": service}, metrics=metrics)))
    with capture_logs() as logs:
        answer = await hold._hold(make_mocked_request("POST", "/v1/chat", {"X-Service": "chat"}, app=app))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert b"gateway_fault" in cast("bytes", answer.body)
    assert [(log["event"], log["loop"]) for log in logs] == [("loop.failed", "_wait")]
    assert metrics.loop_failures.labels("chat")._value.get() == 1
    assert faulty.decided == 1


@in_fake_time
async def test_shared_addresses_are_told_who_has_nobody() -> None:
    """As far as it is known: a router that is away says nothing of the replicas behind it."""
    gates = PlayedGate()
    hold = held(gates)
    history = (
        (Missing.ROUTER, False), (None, False), (Missing.REPLICA, True), (Missing.ROUTER, True),
        (Missing.PREFILL, True), (None, False), (Missing.ROUTER, False), (Missing.DECODE, True),
    )  # fmt: skip
    for missing, asleep in history:
        if missing is None:
            hold.open()
        else:
            hold.close(missing)
        assert gates.asleep is hold.is_asleep is asleep
    gates.asleep = False
    assert hold.repair()
    assert gates.asleep
    assert not hold.repair()


@in_fake_time
async def test_the_gate_is_closed_for_lost_models_alone() -> None:
    """Their requests wait, with words for their clients; a request for another model goes on, and so do all later."""
    gates = PlayedGate()
    hold = held(gates)
    hold.open({"large", "größer"})
    assert gates.closed
    assert set(gates.models.values()) == {"large", "größer"}
    assert not hold.repair()
    large = asyncio.create_task(hold.wait(History(), model=digest_of("large")))
    greater = asyncio.create_task(hold.wait(History(), model=digest_of("größer")))
    await asyncio.sleep(0)
    assert (await hold.wait(History(), model=digest_of("tiny"))).verdict is Verdict.GO_ON
    assert (await hold.wait(History())).verdict is Verdict.GO_ON
    assert hold.waiting_for_models == 2
    hold.open({"größer"})
    assert (await large).verdict is Verdict.GO_ON
    answer = await greater
    assert (answer.verdict, answer.code) == (Verdict.TOO_LONG, "no_replica")
    assert answer.message.startswith("No replica of service chat serves model größer now, and the request has waited")
    gates.models = {}
    assert hold.repair()
    assert set(gates.models.values()) == {"größer"}
    hold.open()
    assert not gates.closed
    assert not gates.models


@in_fake_time
async def test_a_service_that_lacks_everything_waits_as_a_whole() -> None:
    """Whoever waits for the router, or for any replica, is asked about its model when these are there."""
    gates = PlayedGate()
    hold = held(gates)
    hold.open({"large"})
    hold.close(Missing.REPLICA)
    assert gates.closed
    assert not gates.models
    waiting = asyncio.create_task(hold.wait(History(), model=digest_of("large")))
    other = asyncio.create_task(hold.wait(History(), model=digest_of("tiny")))
    await asyncio.sleep(1)
    hold.open({"large"})
    assert (await other).verdict is Verdict.GO_ON
    assert not waiting.done()
    assert gates.closed
    hold.open()
    assert (await waiting).verdict is Verdict.GO_ON


@in_fake_time
async def test_an_nginx_that_cannot_read_models_keeps_nobody_waiting_for_one() -> None:
    """The gate would be closed for all."""
    gates = PlayedGate()
    gates.reads_models = False
    hold = held(gates)
    hold.open({"large"})
    assert not gates.closed
    assert not hold.lost
    assert not hold.repair()
