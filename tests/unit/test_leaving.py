"""How a gateway leaves, in fake time, with an nginx and clients that are played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config import LeaveSettings
from gateway_sidecar.control.process.leaving import LeaveHost, Leaving
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leaving import Arrivals, Leave, LeavePhase, LeaveRules, Seen
from gateway_sidecar.errors import LeaveError, StateError
from gateway_sidecar.nginx.connections import Client
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time
from tests.unit.ready_marks import PlayedMarks

RULES = LeaveRules(quiet_s=10, balancer_s=60)


# -- the pure part


def test_it_waits_until_nobody_sends_anything_any_more() -> None:
    """Or for as long as load balancers may take to notice."""
    leave = Leave.begin(100, timeout_s=600)
    assert leave.next(109, Seen(), RULES) is leave, "a load balancer may not have asked yet"
    assert leave.next(110, Seen(), RULES).phase is LeavePhase.DRAINING
    assert leave.next(115, Seen(arrived=106), RULES) is leave
    assert leave.next(116, Seen(arrived=106), RULES).was_quiet
    assert leave.next(159, Seen(arrived=159), RULES) is leave
    late = leave.next(160, Seen(arrived=160), RULES)
    assert (late.phase, late.was_quiet) == (LeavePhase.DRAINING, False)
    assert Leave.begin(100, timeout_s=3).next(103, Seen(), RULES).phase is LeavePhase.DRAINING


def test_it_stops_when_nothing_is_in_flight_and_nothing_can_come() -> None:
    """That nobody is connected proves nothing as long as nginx still takes requests."""
    leave = Leave(LeavePhase.DRAINING, 0, 10, until=600)
    assert leave.next(11, Seen(in_flight=0, refuses=False), RULES) is leave
    assert leave.next(11, Seen(in_flight=1, refuses=True), RULES) is leave
    done = leave.next(11, Seen(in_flight=0, refuses=True), RULES)
    assert (done.phase, done.cut) == (LeavePhase.STOPPING, 0)
    cut = leave.next(600, Seen(in_flight=2, refuses=True), RULES)
    assert (cut.phase, cut.cut) == (LeavePhase.STOPPING, 2)
    assert cut.next(10_000, Seen(), RULES) is cut


def test_a_client_is_who_is_there_for_two_looks_and_was_not_before() -> None:
    """A load balancer's question is over within one."""
    seen = Arrivals().look(0, {"old"}).look(1, {"old"})
    assert seen.at == 1, "those of before count once: they may have come just now"
    seen = seen.look(2, {"old", "check"}).look(3, {"old", "other check"})
    assert seen.at == 1
    seen = seen.look(4, {"old", "client"}).look(5, {"old", "client"})
    assert seen.at == 5
    assert seen.look(6, {"client"}).look(7, {"client"}).at == 5


# -- the daemon's part


class Site:
    """A gateway with one address. `clients`: who is connected; `slow`: nginx does not refuse requests yet."""

    def __init__(self, **settings: float) -> None:
        self.settings = LeaveSettings(**cast("Any", settings))
        self.marks = PlayedMarks()
        self.clients: set[Client] = set()
        self.began: float | None = None
        self.slow = False
        self.written = 0
        self.stopped: list[int] = []
        self.address = SimpleNamespace(
            listens=["127.0.0.1:30000", "[::1]:30001"], places=[("127.0.0.1", 30000), ("::1", 30001)]
        )  # fmt: skip
        self.supervisor = SimpleNamespace(
            nginx=SimpleNamespace(ready_marks=self.marks), up=True, applied=[self.address], reason="",
            touch=self.touch, apply=self.apply,
        )  # fmt: skip
        self.asked: set[tuple[str, int]] = set()
        self.leaving = self.another()

    def another(self) -> Leaving:
        """The next daemon's."""
        host = LeaveHost(
            lambda: cast("Any", [self.address]), lambda: self.began, lambda: None, self.write_down, self.end
        )
        return Leaving(
            cast("Any", self.supervisor),
            host,
            cast("Any", SimpleNamespace(settings=SimpleNamespace(leave=self.settings))),
            Metrics(),
            self.look,
        )

    def touch(self) -> None:
        if not self.slow:
            self.supervisor.applied = [] if self.leaving.refuses else [self.address]

    def end(self, *, stop_all: bool, timeout_s: float, by_command: bool) -> None:
        assert stop_all
        assert by_command
        assert self.leaving.leave is not None
        cut = self.leaving.leave.cut or 0
        assert (timeout_s == 0) is (cut > 0), "what is cut has had its time"
        self.stopped.append(cut)

    async def apply(self) -> None:
        self.touch()

    async def write_down(self) -> None:
        self.written += 1

    def look(self, places: Any) -> frozenset[Client]:
        self.asked = places
        return frozenset(self.clients)

    async def until(self, condition: Callable[[], object], most_s: float = 1000) -> float:
        """How long that took."""
        began = awake.now()
        while not condition():
            assert awake.now() - began < most_s, self.leaving.describe()
            await asyncio.sleep(0.05)
        return awake.now() - began

    def is_in(self, phase: LeavePhase) -> Callable[[], bool]:
        return lambda: self.leaving.leave is not None and self.leaving.leave.phase is phase


def client(number: int) -> Client:
    return 30000, bytes([number])


@in_fake_time
async def test_it_leaves_phase_by_phase() -> None:
    site = Site()
    task = asyncio.create_task(site.leaving.run())
    with capture_logs() as log:
        site.clients = {client(1)}
        await site.leaving.start(None)
        assert site.marks.is_leaving
        assert site.leaving.is_on
        assert not site.leaving.refuses
        assert site.written == 1
        assert "everything is served; " in site.leaving.describe()
        assert await site.until(site.is_in(LeavePhase.DRAINING)) == pytest.approx(10.5, abs=0.7)
        await asyncio.sleep(30)
        assert site.asked == {("127.0.0.1", 30000), ("::1", 30001)}
        assert "waits for 1 connection in flight, 560 s at most" in site.leaving.describe()
        assert site.leaving.connections == {30000: 1}
        site.clients.clear()
        await site.until(site.is_in(LeavePhase.STOPPING), 1)
        assert site.stopped == []
        assert await site.until(lambda: site.stopped) == pytest.approx(1, abs=0.5), "whoever follows can read it"
    assert site.stopped == [0]
    assert [each["event"] for each in log] == ["leave.begun", "leave.draining", "leave.stopping"]
    task.cancel()


@in_fake_time
@pytest.mark.parametrize("asks_again", [True, False])
async def test_whoever_follows_reads_the_end_however_late_it_asks(asks_again: bool) -> None:
    """A busy machine keeps it for seconds. Who does not ask any more is waited for once, and not for long."""
    site = Site()
    task = asyncio.create_task(site.leaving.run())
    site.clients = {client(1)}
    await site.leaving.start(None)
    await site.until(site.is_in(LeavePhase.DRAINING))
    site.leaving.note_reader()
    site.clients.clear()
    await site.until(site.is_in(LeavePhase.STOPPING), 1)
    await asyncio.sleep(5)
    assert site.stopped == []
    if asks_again:
        site.leaving.note_reader()
        await site.until(lambda: site.stopped, 0.5)
    else:
        assert await site.until(lambda: site.stopped) == pytest.approx(4.5, abs=1)
    task.cancel()


@in_fake_time
async def test_requests_that_still_come_are_waited_for_and_then_refused() -> None:
    """Whether they show by their connections, or when they end."""
    site = Site(balancer_s=40)
    task = asyncio.create_task(site.leaving.run())
    await site.leaving.start(None)
    for number in range(60):
        if site.leaving.refuses:
            break
        if number < 15:
            site.clients = {client(99), client(number)}
        else:
            site.clients = {client(99)}
            site.began = awake.now()
        await asyncio.sleep(1)
    assert site.leaving.leave is not None
    assert not site.leaving.leave.was_quiet
    assert site.leaving.leave.phase_began - site.leaving.leave.began == pytest.approx(40, abs=0.6)
    await asyncio.sleep(1)
    assert "does not ask /readyz" in site.leaving.describe()
    task.cancel()


@in_fake_time
async def test_it_does_not_stop_before_nginx_refuses_requests() -> None:
    site = Site(timeout_s=100)
    site.slow, site.supervisor.reason = True, "the disk is full"
    task = asyncio.create_task(site.leaving.run())
    await site.leaving.start(None)
    await site.until(site.is_in(LeavePhase.DRAINING))
    await asyncio.sleep(20)
    assert site.leaving.describe() == "nginx is told to take no new requests: the disk is full"
    site.supervisor.applied = []
    await site.until(lambda: site.stopped, 3)
    task.cancel()


@in_fake_time
async def test_what_is_in_flight_when_its_time_is_over_is_cut() -> None:
    """A second `leave` follows the first; one with a time of its own sets that time."""
    site = Site()
    task = asyncio.create_task(site.leaving.run())
    site.clients = {client(1), client(2)}
    await site.leaving.start(None)
    await asyncio.sleep(100)
    before = site.leaving.leave
    await site.leaving.start(None)
    assert site.leaving.leave == before
    await site.leaving.start(5)
    assert await site.until(lambda: site.stopped) == pytest.approx(6, abs=0.8)
    assert site.stopped == [2]
    task.cancel()


@in_fake_time
@pytest.mark.parametrize("after_s", [1, 30])
async def test_it_is_taken_back_until_it_stops(after_s: float) -> None:
    site = Site()
    task = asyncio.create_task(site.leaving.run())
    site.clients = {client(1)}
    assert not await site.leaving.join()
    await site.leaving.start(None)
    await asyncio.sleep(after_s)
    assert await site.leaving.join()
    assert not site.marks.is_leaving
    assert site.supervisor.applied == [site.address]
    assert site.leaving.saved() is None
    await asyncio.sleep(1000)
    assert site.stopped == []
    await site.leaving.start(0)
    await site.until(site.is_in(LeavePhase.STOPPING))
    with pytest.raises(LeaveError, match="too late"):
        await site.leaving.join()
    task.cancel()


@in_fake_time
async def test_load_balancers_that_cannot_be_told_keep_it() -> None:
    """Nothing is half done: a gateway that refused requests then would fail them."""
    site = Site()

    def full(*, leaving: bool) -> None:
        raise OSError(28, "No space left on device", "/run/gates/.leaving")

    site.marks.leave = full  # type: ignore[method-assign]
    with pytest.raises(LeaveError, match="No space left"):
        await site.leaving.start(None)
    assert not site.leaving.is_on


@in_fake_time
async def test_the_next_daemon_goes_on_where_this_one_ended() -> None:
    site = Site()
    task = asyncio.create_task(site.leaving.run())
    site.clients = {client(1)}
    await site.leaving.start(None)
    await site.until(site.is_in(LeavePhase.DRAINING))
    task.cancel()
    saved, before = site.leaving.saved(), site.leaving.leave
    site.marks.is_leaving = False
    site.leaving = site.another()
    site.leaving.begin({"leave": saved})
    assert site.leaving.leave == before
    assert site.marks.is_leaving
    assert site.leaving.refuses
    site.leaving = site.another()
    site.leaving.begin({})
    assert not site.leaving.is_on
    assert not site.marks.is_leaving


@in_fake_time
async def test_a_record_of_another_boot_or_of_long_ago_makes_no_gateway_leave() -> None:
    """Who starts a daemon then wants it to serve."""
    saved = records.leave_to_json(Leave.begin(awake.now(), 600))
    assert records.leave_from_json({"leave": saved}) is not None
    assert records.leave_from_json({}) is None
    assert records.leave_from_json({"leave": {**saved, "boot_id": "another"}}) is None
    with pytest.raises(StateError, match="of an unknown form"):
        records.leave_from_json({"leave": {**saved, "phase": "gone"}})
    await asyncio.sleep(601)
    with pytest.raises(StateError, match="now it stays"):
        records.leave_from_json({"leave": saved})
