"""What is known of a router's workers, with a router that is played."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_sidecar.control.routers.process import RouterProcess
from gateway_sidecar.control.routers.workers import WorkerSync
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerStatus, WorkerType
from gateway_sidecar.domain.planning import Deregister, Register, Why
from gateway_sidecar.errors import RouterUnavailable
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time, stall

URL = "http://127.0.0.1:24001"
SPEC = WorkerSpec(
    url=URL,
    runtime_type="sglang",
    connection_mode=ConnectionMode.HTTP,
    worker_type=WorkerType.REGULAR,
    model_id="tiny",
)


class PlayedRouter:
    """Accepts everything; `status` is what it lists its one worker as."""

    def __init__(self) -> None:
        self.status: WorkerStatus | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.timeout_s = 60.0

    async def register(self, _spec: WorkerSpec) -> str:
        self.status = WorkerStatus.PENDING
        return "w1"

    async def deregister(self, _worker_id: str) -> None:
        self.status = WorkerStatus.DRAINING

    async def list_workers(self) -> dict[str, Registered]:
        try:
            async with within(self.timeout_s):
                await self.answers.wait()
        except TimeoutError as error:
            raise RouterUnavailable("no answer") from error
        return {} if self.status is None else {URL: self._row(self.status)}

    async def find(self, _worker_id: str) -> Registered | None:
        return None if self.status is None else self._row(self.status)

    def _row(self, status: WorkerStatus) -> Registered:
        return Registered("w1", URL, status, WorkerType.REGULAR, ConnectionMode.HTTP, "sglang")


class RunningBook:
    """The book of the played router, observing it."""

    def __init__(
        self,
        router: PlayedRouter,
        *,
        api_timeout_s: float = 5.0,
        is_adopted: bool = False,
        ready_within_s: float | None = 5.0,
        rescan_interval_s: float = 0.01,
    ) -> None:
        self.killed = 0
        process = SimpleNamespace(
            service="chat",
            epoch=1,
            up=True,
            client=router,
            is_adopted=is_adopted,
            report_unresponsive=self._kill,
            setup=SimpleNamespace(late_s=30.0, still_listed_s=0.1, ready_within_s=ready_within_s),
        )
        self._news = asyncio.Event()
        self.book = WorkerSync(
            cast("RouterProcess", cast("Any", process)),
            cast("WorkQueue[Key]", cast("Any", self)),
            Metrics(),
            rescan_interval_s=rescan_interval_s,
            api_timeout_s=api_timeout_s,
        )

    def add(self, _key: Key, *, urgent: bool = False) -> None:
        """As a queue has it."""
        del urgent
        self._news.set()

    def _kill(self) -> None:
        self.killed += 1
        self._news.set()

    async def __aenter__(self) -> RunningBook:
        self._task = asyncio.create_task(self.book.run())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.book.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def do(self, action: Register | Deregister) -> None:
        self.book.start(action)
        await self.until(lambda: not self.book.view(URL).busy)


@in_fake_time
async def test_worker_that_is_taken_back_before_it_was_ready_may_come_late() -> None:
    """Its port must not be somebody else's by then."""
    async with RunningBook(PlayedRouter()) as running:
        await running.do(Register(SPEC))
        await running.do(Deregister("w1", URL, Why.SOCKET_GONE))
        assert running.book.late_until(URL) > awake.monotonic() + 5
        assert running.book.late_until(URL) == 0, "told once"


@in_fake_time
async def test_worker_that_was_ready_does_not_come_late() -> None:
    router = PlayedRouter()
    async with RunningBook(router) as running:
        await running.do(Register(SPEC))
        router.status = WorkerStatus.READY
        await running.until(lambda: getattr(running.book.workers.get(URL), "status", None) is WorkerStatus.READY)
        await running.do(Deregister("w1", URL, Why.SOCKET_GONE))
        assert running.book.late_until(URL) == 0


@in_fake_time
async def test_a_worker_that_stays_not_ready_is_overdue_after_what_its_router_may_take() -> None:
    """Twice as long after each time that it was registered anew, until it was ready: then it all begins again."""
    router = PlayedRouter()
    async with RunningBook(router, rescan_interval_s=2.0) as running:

        async def until_listed(status: WorkerStatus | None) -> None:
            router.status = status
            await running.until(lambda: getattr(running.book.view(URL).worker, "status", None) is status)

        for most_s in (5.0, 10.0, 20.0):
            await running.do(Register(SPEC))
            await asyncio.sleep(60)
            assert not running.book.view(URL).overdue, "who is pending is being asked"
            await until_listed(WorkerStatus.NOT_READY)
            assert running.book.due_in_s(URL) == pytest.approx(most_s, rel=0.01)
            await asyncio.sleep(most_s - 0.1)
            assert not running.book.view(URL).overdue
            await asyncio.sleep(0.2)
            assert running.book.view(URL).overdue
            await running.do(Deregister("w1", URL, Why.OVERDUE))
            assert running.book.trouble(URL) == f"the router did not make it ready within {most_s:.0f} s"
            assert running.book.view(URL).held, "and a moment is waited"
            await until_listed(None)
            assert not running.book.view(URL).overdue
        await running.do(Register(SPEC))
        await until_listed(WorkerStatus.READY)
        assert running.book.due_in_s(URL) is None
        await until_listed(WorkerStatus.NOT_READY)
        assert running.book.due_in_s(URL) == pytest.approx(5.0, rel=0.01)


@in_fake_time
async def test_a_router_that_asks_its_workers_again_by_itself_is_not_told_again() -> None:
    router = PlayedRouter()
    async with RunningBook(router, ready_within_s=None, rescan_interval_s=2.0) as running:
        await running.do(Register(SPEC))
        router.status = WorkerStatus.NOT_READY
        await asyncio.sleep(600)
        assert running.book.workers[URL].status is WorkerStatus.NOT_READY
        assert not running.book.view(URL).overdue
        assert running.book.due_in_s(URL) is None


@in_fake_time
async def test_what_an_earlier_daemon_told_the_router_may_come_late() -> None:
    """Unless it was seen ready, any worker may be one that was taken back before it was."""
    router = PlayedRouter()
    router.status = WorkerStatus.READY
    other = URL.replace("24001", "24002")
    async with RunningBook(router, is_adopted=True) as running:
        await running.until(lambda: running.book.listed)
        assert running.book.late_until(URL) == 0
        assert running.book.late_until(other) > awake.monotonic() + 5
        assert running.book.late_until(None) > awake.monotonic() + 5


@in_fake_time
async def test_silence_is_told_before_it_is_certain_that_a_router_hangs() -> None:
    """Half of its time-out is enough to let requests wait; an answer ends that."""
    router = PlayedRouter()
    async with RunningBook(router, api_timeout_s=0.4) as running:
        await running.until(lambda: running.book.listed)
        assert not running.book.is_silent
        router.answers.clear()
        began = awake.monotonic()
        await running.until(lambda: running.book.is_silent)
        assert awake.monotonic() - began >= 0.2
        router.answers.set()
        await running.until(lambda: not running.book.is_silent)


@in_fake_time
async def test_a_stall_of_ours_is_not_the_routers_silence() -> None:
    """Stopped with us, and a moment longer: it is not killed for that. One that goes on being silent is."""
    router = PlayedRouter()
    router.timeout_s = 0.5
    with awake.watched():
        async with RunningBook(router, api_timeout_s=0.5) as running:
            await running.until(lambda: running.book.listed)
            router.answers.clear()
            await asyncio.sleep(0.2)
            stall(1.5)
            await asyncio.sleep(0.3)
            router.answers.set()
            await running.until(lambda: not running.book.is_silent)
            assert running.killed == 0
            router.answers.clear()
            await running.until(lambda: running.killed == 1)


@in_fake_time
async def test_what_a_router_did_not_answer_across_a_stall_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it failed before. Its first failure is none yet; one that nothing of ours excuses counts."""
    now, stalls = 1000.0, 0
    monkeypatch.setattr(awake, "now", lambda: now)
    monkeypatch.setattr(awake, "stalls", lambda: stalls)
    killed_before: list[int] = []

    class Failing(PlayedRouter):
        async def list_workers(self) -> dict[str, Registered]:
            nonlocal now, stalls
            killed_before.append(running.killed)
            question = len(killed_before)
            now += 100.0 if question == 2 else 0.0
            stalls += question == 2
            raise RouterUnavailable("no answer")

    async with RunningBook(Failing()) as running:
        async with asyncio.timeout(60):
            while running.killed == 0:
                await asyncio.sleep(0.01)
    assert killed_before == [0, 0, 0]


@in_fake_time
async def test_a_slow_answer_does_not_make_the_next_question_wait_as_long() -> None:
    """While something is about to change, a question that took long, or a stall, is no reason to ask late."""
    async with RunningBook(PlayedRouter()) as running:
        await running.do(Register(SPEC))
        assert running.book._next_gap_s(25.0, running.book._pending()) <= 0.01


@in_fake_time
async def test_workers_that_no_list_shows_yet_are_asked_for_by_name_in_turn() -> None:
    """A router takes seconds to add a crowd: to ask for each of it after every list would keep both of them busy."""
    router, specs = _Hiding(), [replace(SPEC, url=f"http://127.0.0.1:{port}") for port in range(24001, 24021)]
    async with RunningBook(router) as running:
        for spec in specs:
            running.book.start(Register(spec))
        await asyncio.sleep(0.9)
        assert router.asked == []
        await asyncio.sleep(30)
        assert set(router.asked) == {spec.url for spec in specs}
        assert max(Counter(router.asked).values()) <= 30


class _Hiding(PlayedRouter):
    """Accepts everything, and lists nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def register(self, spec: WorkerSpec) -> str:
        return spec.url

    async def list_workers(self) -> dict[str, Registered]:
        return {}

    async def find(self, worker_id: str) -> Registered | None:
        self.asked.append(worker_id)
        row = self._row(WorkerStatus.PENDING)
        return replace(row, worker_id=worker_id, url=worker_id)
