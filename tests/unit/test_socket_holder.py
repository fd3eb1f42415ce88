"""Who holds the socket where requests wait while no daemon does, with processes that are played."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.hold import socket_holder
from gateway_sidecar.control.hold.socket_holder import SocketHolder
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.supervision.process import Identity
from tests.unit.fake_time import in_fake_time
from tests.unit.processes import PlayedProcess


class Machine:
    """Where holders run. `others` are those of earlier daemons."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.listening = cast("Any", SimpleNamespace(fileno=lambda: 5))
        self.holders: list[PlayedProcess] = []
        self.held: list[object] = []
        self.others: list[PlayedProcess] = []
        self.fault: Exception | None = None
        played = SimpleNamespace(spawn=self._spawn, adopt=self._adopt)
        patch.setattr(socket_holder, "Process", played)
        patch.setattr(socket_holder, "writers_of", self._writers)
        patch.setattr(socket_holder, "open_to_append", lambda _: 1)
        self.holder = SocketHolder(directory / "log" / "hold.log", lambda: self.listening)

    async def _spawn(self, argv: object, *, log_fd: int, keep_fds: tuple[int, ...]) -> PlayedProcess:
        if self.fault is not None:
            raise self.fault
        self.holders.append(PlayedProcess(len(self.holders) + 100))
        self.held.append(keep_fds)
        return self.holders[-1]

    def _adopt(self, identity: Identity) -> PlayedProcess | None:
        return next((it for it in (*self.others, *self.holders) if it.identity == identity and it.running), None)

    def _writers(self, _: Path) -> list[Identity]:
        return [it.identity for it in (*self.others, *self.holders) if it.running]


@in_fake_time
async def test_one_process_inherits_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one alone, however often it is looked at."""
    machine = Machine(monkeypatch, tmp_path)
    await machine.holder.begin()
    assert not await machine.holder.repair()
    assert machine.held == [(5,)]
    assert not machine.holder.took_over


@in_fake_time
async def test_one_that_ended_and_one_that_holds_another_socket_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, tmp_path)
    await machine.holder.begin()
    machine.holders[0].end()
    assert await machine.holder.repair()
    machine.listening = cast("Any", SimpleNamespace(fileno=lambda: 6))
    assert await machine.holder.repair()
    assert machine.held == [(5,), (5,), (6,)]
    assert [it.running for it in machine.holders] == [False, False, True]


@in_fake_time
async def test_an_earlier_daemons_holder_ends_when_ours_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits at its socket is sent to ours."""
    machine = Machine(monkeypatch, tmp_path)
    machine.others = [PlayedProcess(7)]
    await machine.holder.begin()
    assert not machine.others[0].running
    assert machine.holders[0].running
    assert machine.holder.took_over


@in_fake_time
async def test_without_a_holder_the_daemon_serves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, tmp_path)
    machine.fault = ProcessError("no more processes")
    with capture_logs() as log:
        await machine.holder.begin()
        await machine.holder.end()
    assert [each["event"] for each in log] == ["hold.socket_not_held"]
    machine.fault = None
    assert await machine.holder.repair()


@in_fake_time
async def test_it_is_left_to_the_next_daemon_or_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, tmp_path)
    await machine.holder.begin()
    machine.holder.detach()
    assert machine.holders[0].is_let_go
    assert machine.holders[0].running
    await machine.holder.end()
    assert not machine.holders[0].running
