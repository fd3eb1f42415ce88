"""What an earlier daemon left running is found by its output and by the record, and told in words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_sidecar.control.process import left_running
from gateway_sidecar.control.process.left_running import LeftRouter, LeftRunning, look_for_left
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leaving import Leave
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity
from tests.unit.fake_time import in_fake_time
from tests.unit.processes import PlayedProcess, as_process

PORTS = RouterPorts(23001, 23002)


def process(pid: int) -> Identity:
    return Identity(pid, 1, "boot")


class Machine:
    """Its processes: those that write to a log, those that live, the workers of a master."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.run, self.state = directory / "run", directory / "state"
        self.writers: dict[Path, dict[str, list[Identity]]] = {}
        self.alive: set[Identity] = set()
        self.workers: dict[Identity, list[Identity]] = {}
        patch.setattr(left_running, "writers_below", lambda where: self.writers.get(where, {}))
        patch.setattr(left_running, "session_members", lambda master: self.workers.get(master, []))
        patch.setattr(Identity, "is_alive", lambda identity: identity in self.alive)

    def write_down(self, **content: object) -> None:
        records.write_record(self.run / "processes.json", content)

    def look(self) -> LeftRunning:
        return look_for_left(self.run, self.state)


def test_where_nothing_runs_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Machine(monkeypatch, tmp_path).look()
    assert not left
    assert (str(left), left.pids) == ("", set())


def test_each_process_is_found_by_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the record says: a daemon may die before it writes one."""
    machine = Machine(monkeypatch, tmp_path)
    machine.writers = {
        machine.state / "log": {"nginx.log": [process(1)], "router-chat.log": [process(2)]},
        machine.run / "log": {
            "router-chat.next.log": [process(3)],
            "peers.log": [process(4)],
            "hold.log": [process(5)],
        },
        machine.run / "tunnels": {"gate.log": [process(6)]},
    }
    machine.workers = {process(1): [process(11)]}
    left = machine.look()
    assert left.pids == {1, 2, 3, 4, 5, 6, 11}
    assert (left.router_in("chat.next", "chat"), left.router_in("chat"), left.router_in("code")) == (
        process(3),
        process(2),
        None,
    )
    assert str(left) == (
        "nginx (pid 1), the router of chat (pid 2), the router of chat.next (pid 3), 1 nginx of a replica's own, "
        "1 SSH connection, 1 process that keeps waiting requests"
    )
    assert look_for_left(machine.run, None).pids == {3, 4, 5, 6}, "a state directory that is not known is not looked at"


def test_what_the_record_names_is_left_if_that_very_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's output cannot be seen; the record tells the ports of routers."""
    machine = Machine(monkeypatch, tmp_path)
    machine.alive = {process(1), process(2), process(9)}
    machine.write_down(
        nginx=records.identity_to_json(process(1)),
        routers={
            "chat": [
                records.router_to_json(SavedRouter("chat", process(pid), PORTS, "key", "smg")) for pid in (2, 3)
            ] + [{"odd": 1}]
        },
        departing=records.departing_to_json([("old", process(9)), ("older", process(10))]),
    )  # fmt: skip
    left = machine.look()
    assert left.nginx == (process(1),)
    assert left.routers == {process(2): "chat", process(9): "old"}
    assert left.ports == {process(2): PORTS}


def test_what_becomes_of_it_is_said_with_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that was leaving goes on with that: whoever starts the daemon to have it serve has to know."""
    machine = Machine(monkeypatch, tmp_path)
    machine.writers = {machine.state / "log": {"nginx.log": [process(1)]}}
    said = "an earlier daemon left nginx (pid 1): that serves on; the next daemon (`systemctl start gateway-sidecar`) "
    cure = ", `gateway-sidecar stop --all` ends it"
    assert machine.look().prospect == f"{said}adopts it{cure}"
    machine.write_down(leave=records.leave_to_json(Leave.begin(awake.now(), 600)))
    assert machine.look().prospect == f"{said}adopts it and goes on leaving (it was waiting){cure}"


def test_a_dead_masters_workers_are_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They still serve, and still have the ports."""
    machine = Machine(monkeypatch, tmp_path)
    machine.workers = {process(1): [process(11), process(12)]}
    machine.write_down(nginx=records.identity_to_json(process(1)))
    assert machine.look().nginx == (process(1),)
    assert {11, 12} <= machine.look().pids
    machine.workers = {}
    assert not machine.look()


def test_a_record_that_cannot_be_read_hides_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, tmp_path)
    machine.run.mkdir()
    (machine.run / "processes.json").write_text("{")
    machine.writers = {machine.run / "log": {"nginx.log": [process(1)]}}
    assert machine.look().nginx == (process(1),)


@in_fake_time
async def test_a_left_router_can_be_ended_as_one_of_ours() -> None:
    played = PlayedProcess(7, stubborn=True)
    left = LeftRouter(as_process(played), PORTS)
    assert (left.pid, left.ports) == (7, PORTS)
    await left.close_client()
    ending = asyncio.create_task(left.stop(grace_s=5))
    await asyncio.sleep(4)
    assert left.pid == 7
    await ending
    assert left.pid is None
