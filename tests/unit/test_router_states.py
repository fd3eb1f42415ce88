"""The states of a router: every way that docs/architecture.md draws is walked, with processes that are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.routers import process
from gateway_sidecar.control.routers.process import RouterHost, RouterProcess, SavedRouter
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.errors import RouterUnavailable
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts, RouterSetup
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, Process
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import SERVICE
from tests.unit.fake_time import beside, in_fake_time
from tests.unit.test_states import drawn

WAYS = drawn("A router (`RouterState`)")
PORTS = RouterPorts(23001, 23002)


class Played:
    """A process."""

    def __init__(self, pid: int, exits_with: int | None = None) -> None:
        self.pid = pid
        self.exit_code = exits_with
        self.identity = Identity(pid, 1, "boot")
        self.ended = asyncio.Event()
        if exits_with is not None:
            self.ended.set()

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    async def wait(self) -> None:
        await self.ended.wait()

    async def stop(self, *, grace_s: float) -> None:
        self.exit_code = -9
        self.ended.set()


class Machine:
    """Where routers run. What the next ones do: answer, be silent, or exit with a code."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.exits_with: int | None = None
        self.answers = True
        self.digest = "as it is"
        self.processes: list[Played] = []
        self.ways: list[tuple[str, str]] = []
        patch.setattr(Process, "spawn", self._spawn)
        patch.setattr(Process, "adopt", lambda identity: self._add())
        patch.setattr(process, "busy_ports", lambda _: [])
        log = SimpleNamespace(open_for_child=self._log_fd, trouble=None, follow=lambda _: None, read_tail=self._tail)
        ports = SimpleNamespace(choose=lambda _: PORTS, restore=lambda *_: None)
        self.router = RouterProcess(
            SERVICE, "chat", self.setup("smg"), cast("Any", log),
            RouterHost(cast("Any", ports), Metrics(), _nothing, self._changed),
        )  # fmt: skip
        self._before = self.router.state

    def setup(self, kind: str) -> RouterSetup:
        return cast(
            "RouterSetup",
            SimpleNamespace(
                command=lambda _ports, _key: LaunchCommand(["router"]),
                digest=lambda: f"{kind}, {self.digest}",
                client=lambda _ports, _key: SimpleNamespace(kind=kind, list_workers=self._list, close=_nothing),
                read_log_line=lambda line: LogLine("warning", line),
            ),
        )

    async def adopt(self, kind: str = "smg") -> bool:
        """An earlier daemon's router, as it was then."""
        saved = SavedRouter("chat", None, PORTS, "key", kind, f"{kind}, as it is")
        return await self.router.adopt(saved, Identity(1, 1, "boot"), self.setup(kind))

    def _changed(self) -> None:
        if self.router.state is not self._before:
            self.ways.append((self._before.value, self.router.state.value))
            self._before = self.router.state

    def _add(self) -> Played:
        self.processes.append(Played(len(self.processes) + 1, self.exits_with))
        return self.processes[-1]

    async def _spawn(self, *_: object, **__: object) -> Played:
        return self._add()

    async def _list(self) -> dict[str, object]:
        await asyncio.sleep(0.01)
        if not self.answers:
            raise RouterUnavailable("no answer")
        return {}

    async def _log_fd(self) -> int:
        return 1

    async def _tail(self, _: int) -> list[str]:
        return ["smg: error: no such option"]

    @property
    def now(self) -> Played:
        return self.processes[-1]

    async def until(self, state: RouterState) -> None:
        await self._until(lambda: self.router.state is state)

    async def until_gone(self, *way: str) -> None:
        await self._until(lambda: way in self.ways)

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = awake.monotonic() + 120
        while not condition():
            assert awake.monotonic() < deadline, self.ways
            await asyncio.sleep(0.001)


async def _nothing() -> None:
    return None


@asynccontextmanager
async def running(patch: pytest.MonkeyPatch, **changes: object) -> AsyncIterator[Machine]:
    machine = Machine(patch)
    for name, value in changes.items():
        setattr(machine, name, value)
    with capture_logs():
        async with beside(machine.router.run()):
            yield machine


# What is done to reach a state, from the beginning.
BEFORE: dict[str, dict[str, object]] = {
    "starting": {"answers": False},
    "up": {},
    "refused": {"exits_with": 2},
    "backing_off": {"exits_with": 1},
}


async def go(patch: pytest.MonkeyPatch, start: str, end: str) -> list[tuple[str, str]]:
    """Goes from one state to another; all the ways that were gone."""
    if (start, end) == ("stopped", "up"):
        machine = Machine(patch)
        with capture_logs():
            assert await machine.adopt()
        return machine.ways
    if start == "unresponsive":
        return await _from_unresponsive(patch, end)
    async with running(patch, **BEFORE.get(start if start != "stopped" else "up", {})) as machine:
        if start != "stopped":
            await machine.until(RouterState(start))
        acts: dict[tuple[str, str], Callable[[], Awaitable[object]]] = {
            ("starting", "backing_off"): lambda: machine.now.stop(grace_s=0),
            ("up", "backing_off"): lambda: machine.now.stop(grace_s=0),
        }
        if end == "stopped":
            await machine.router.stop(grace_s=0)
        elif (start, end) in acts:
            await acts[start, end]()
        elif (start, end) == ("starting", "up"):
            machine.answers = True
        elif (start, end) == ("starting", "refused"):
            machine.now.exit_code = 2
            machine.now.ended.set()
        elif (start, end) == ("up", "unresponsive"):
            machine.router.report_unresponsive()
        elif start == "refused":
            machine.digest, machine.exits_with = "another", None
        await machine.until_gone(start, end)
        return machine.ways


async def _from_unresponsive(patch: pytest.MonkeyPatch, end: str) -> list[tuple[str, str]]:
    """It is ended at once, unless somebody who waits for its end is told to end it first."""
    async with running(patch) as machine:
        await machine.until(RouterState.UP)
        if end == "stopped":
            hangs = asyncio.Event()

            async def hang(*, grace_s: float) -> None:
                if grace_s == 0 and not hangs.is_set():
                    hangs.set()
                    await asyncio.Event().wait()
                machine.now.ended.set()

            patch.setattr(machine.now, "stop", hang)
            machine.router.report_unresponsive()
            await hangs.wait()
            await machine.router.stop(grace_s=0)
        else:
            machine.router.report_unresponsive()
            await machine.until_gone("unresponsive", "backing_off")
        return machine.ways


@pytest.mark.parametrize(("start", "end"), sorted(WAYS))
def test_every_way_that_is_drawn_can_be_gone(start: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def walk() -> None:
        ways = await go(monkeypatch, start, end)
        assert (start, end) in ways
        assert set(ways) <= WAYS

    in_fake_time(walk)()


@in_fake_time
async def test_an_adopted_router_of_another_kind_is_talked_to_as_what_it_is_until_another_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Grow before shrink: it serves on, is outdated, and is never started again as what it was."""
    machine = Machine(monkeypatch)

    def kinds() -> tuple[str, str, str]:
        saved = machine.router.saved()
        assert saved is not None
        return cast("Any", machine.router.client).kind, machine.router.kind, saved.kind

    with capture_logs():
        assert await machine.adopt("smg")
        assert not await machine.router.is_outdated()
        assert await machine.adopt("toy")
        assert await machine.router.is_outdated()
        await machine.router.renew_client(machine.setup("smg"))
        assert kinds() == ("toy", "toy", "toy")
        async with beside(machine.router.run()):
            machine.now.ended.set()
            await machine.until_gone("starting", "up")
            assert kinds() == ("smg", "smg", "smg")
            assert not await machine.router.is_outdated()


@in_fake_time
async def test_a_router_that_ends_again_and_again_is_started_less_and_less_often() -> None:
    """The first time at once: the fleet is waiting, and one exit proves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        async with running(patch, exits_with=1) as machine:
            await asyncio.sleep(600)
            assert 20 <= len(machine.processes) <= 60


@in_fake_time
async def test_a_router_that_never_answers_is_ended_after_its_start_timeout() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with running(patch, answers=False) as machine:
            await machine.until(RouterState.BACKING_OFF)
            assert awake.monotonic() == pytest.approx(30, abs=1)
            assert "did not answer within its start timeout" in machine.router.reason


@in_fake_time
async def test_why_the_last_one_ended_is_shown_until_the_next_is_up() -> None:
    """Not that the next one does not answer yet, which says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        async with running(patch, exits_with=1) as machine:
            await machine.until(RouterState.BACKING_OFF)
            machine.exits_with, machine.answers = None, False
            await machine.until(RouterState.STARTING)
            await asyncio.sleep(1)
            assert "exit code 1" in machine.router.reason
            machine.answers = True
            await machine.until(RouterState.UP)
            assert machine.router.reason == ""
