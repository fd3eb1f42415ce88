"""The journal: the last events of each replica and service, bounded, whatever a noisy one does."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway_sidecar.telemetry import logs
from gateway_sidecar.telemetry.journal import OF_A_REPLICA, OF_A_SERVICE, RECENT, Journal
from gateway_sidecar.telemetry.logs import get_logger, set_up_logs

_BEGAN = datetime(2027, 1, 31, tzinfo=UTC)


class Noted:
    """A journal, and events a second apart."""

    def __init__(self, most: int = 16_384) -> None:
        self.journal = Journal(most)
        self._at = _BEGAN

    def note(self, name: str, **said: object) -> None:
        self._at += timedelta(seconds=1)
        self.journal.note({"timestamp": self._at.isoformat(), "level": "info", "event": name, **said})

    def names(self, service: str | None = None, replica: str | None = None) -> list[str]:
        return [it.name for it in self.journal.entries(service, replica)]

    def events(self, service: str | None = None, replica: str | None = None) -> list[dict[str, Any]]:
        return [json.loads(it.line) for it in self.journal.entries(service, replica)]


def test_events_are_found_by_replica_by_service_and_all_together() -> None:
    """Those of a service include its replicas', in the order in which they came."""
    it = Noted()
    it.note("replica.seen", service="chat", replica="r1")
    it.note("router.started", service="chat")
    it.note("replica.seen", service="code", replica="r1")
    it.note("nginx.started")
    it.note("loop.failed", service="-")
    assert it.names("chat", "r1") == ["replica.seen"]
    assert it.names("chat") == ["replica.seen", "router.started"]
    assert it.names("code", "r2") == it.names("other") == []
    assert it.names() == ["replica.seen", "router.started", "replica.seen", "nginx.started", "loop.failed"]


def test_a_noisy_replica_pushes_out_no_other() -> None:
    """Nor a noisy event the others of its own replica, or of its service."""
    it = Noted()
    it.note("replica.seen", service="chat", replica="quiet")
    it.note("router.started", service="chat")
    it.note("replica.ejected", service="chat", replica="noisy")
    for number in range(2000):
        it.note("worker.operation_failed", service="chat", replica="noisy", failures=number)
        it.note("router.said", service="chat", text=str(number))
    assert it.names("chat", "quiet") == ["replica.seen"]
    assert it.names("chat", "noisy") == ["replica.ejected", *["worker.operation_failed"] * (OF_A_REPLICA // 2)]
    assert it.names("chat").count("router.said") == OF_A_SERVICE // 2
    assert "router.started" in it.names("chat")
    assert it.events("chat", "noisy")[-1]["failures"] == 1999


def test_the_whole_is_bounded_and_the_longest_give_way_first() -> None:
    """Replicas that come and go under new names for ever take no more room, and what is alive keeps its events."""
    it = Noted(most=64)
    for name in ("replica.seen", "replica.loading", "replica.registering", "replica.serving"):
        it.note(name, service="chat", replica="r0")
    for number in range(500):
        it.note("replica.seen", service="chat", replica=f"n{number}")
        it.note("replica.gone", service="chat", replica=f"n{number}")
        it.note("replica.serving", service="chat", replica="r0", number=number)
        assert len(it.names()) <= 64
    assert "replica.serving" in it.names("chat", "r0")
    assert it.names("chat", "n499")[-1] == "replica.gone"


def test_an_event_of_a_worker_belongs_to_its_replica() -> None:
    """The router knows URLs only: the replica that was last said to be there is meant, until it is gone."""
    it = Noted()
    it.note("replica.registering", service="chat", replica="r1", worker_url="http://127.0.0.1:24001")
    it.note("worker.operation_failed", service="chat", worker_url="http://127.0.0.1:24001/=lora", reason="no")
    it.note("worker.operation_failed", service="code", worker_url="http://127.0.0.1:24001", reason="another's")
    it.note("replica.gone", service="chat", replica="r1")
    it.note("worker.orphan", service="chat", worker_url="http://127.0.0.1:24001")
    assert it.names("chat", "r1") == ["replica.registering", "worker.operation_failed", "replica.gone"]
    assert it.events("chat", "r1")[1]["replica"] == "r1"
    assert it.names("code") == ["worker.operation_failed"]


def test_an_event_of_a_tunnel_belongs_to_all_its_replicas() -> None:
    """One connection that is down takes several with it, and each of them says why."""
    it = Noted()
    it.note("tunnel.down", replicas=["chat/r1", "code/r2"], reason="connection refused")
    it.note("peer.up", replica="chat/r1", address="10.0.0.1:8000")
    assert it.names("chat", "r1") == ["tunnel.down", "peer.up"]
    assert it.names("code") == ["tunnel.down"]
    assert it.names().count("tunnel.down") == 1


def test_numbers_only_grow() -> None:
    """Who asks for what came after one gets each later one once, whatever the clock does."""
    it = Noted()
    it.note("daemon.started")
    it._at -= timedelta(hours=1)
    it.note("daemon.stopped")
    first, second = it.journal.entries()
    assert first.seq < second.seq == it.journal.last
    assert it.journal.after(first.seq) == ([second], False)
    assert it.journal.after(second.seq) == ([], False)


def test_who_is_too_far_behind_is_told_that_something_is_lost() -> None:
    """What is not in order and whole is not passed off as such."""
    it = Noted()
    it.note("daemon.started")
    (first,) = it.journal.entries()
    for _ in range(RECENT):
        it.note("router.said", service="chat")
    assert it.journal.after(first.seq)[1] is False
    it.note("router.said", service="chat")
    fresh, lost = it.journal.after(first.seq)
    assert (len(fresh), lost) == (RECENT, True)


def test_what_an_earlier_daemon_wrote_comes_first() -> None:
    """Torn and foreign lines are left out, and all keep their numbers."""
    earlier = Noted()
    earlier.note("replica.seen", service="chat", replica="r1")
    earlier.note("replica.serving", service="chat", replica="r1", worker_url="http://127.0.0.1:24001")
    lines = [it.line for it in earlier.journal.entries()]
    now = Noted()
    now._at += timedelta(hours=1)
    now.note("state.ignored")
    damaged = [b"", b"7", b"{}", b'{"event": "x", "timestamp": "never", "seq": 1}', b'{"seq": "1"}', lines[1][:-5]]
    assert now.journal.restore([lines[0], *damaged, lines[1]]) == len(damaged)
    assert now.names() == ["replica.seen", "replica.serving", "state.ignored"]
    assert [it.seq for it in now.journal.entries("chat")] == [it.seq for it in earlier.journal.entries()]
    now.note("worker.operation_failed", service="chat", worker_url="http://127.0.0.1:24001")
    assert now.names("chat", "r1")[-1] == "worker.operation_failed"


@pytest.mark.parametrize("value", ["x" * 100_000, ["x" * 1000] * 1000, "half \ud83d a pair", 2**80, {"a": b"\xff"}])
def test_an_event_takes_a_bounded_number_of_bytes(value: object) -> None:
    """Whatever some engine, router or library has said."""
    it = Noted()
    it.note("router.said", service="chat", text=value, **{f"k{number}": number for number in range(500)})
    (entry,) = it.journal.entries("chat")
    assert len(entry.line) < 30_000
    assert json.loads(entry.line)["event"] == "router.said"


@pytest.fixture
def journal(own_logs: None, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """The one that the log feeds."""
    journal = Journal()
    monkeypatch.setattr(logs, "JOURNAL", journal)
    return journal


def test_every_event_of_the_log_is_noted_whatever_the_level(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    """`explain` knows as much where the log shows errors only. `debug` is for the log alone."""
    set_up_logs("json", "error")
    get_logger(service="chat").debug("replica.names", replica="r1")
    get_logger(service="chat").info("replica.seen", replica="r1")
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        get_logger().exception("loop.failed", service="-")
    assert [it.name for it in journal.entries()] == ["replica.seen", "loop.failed"]
    assert json.loads(journal.entries()[1].line)["fault"] == "ZeroDivisionError: by zero"
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loop.failed"]


def test_who_listens_is_told_of_each_event(journal: Journal) -> None:
    """Until it listens no more."""
    told: list[int] = []

    def tell() -> None:
        told.append(journal.last)

    set_up_logs("json", "error")
    journal.listen(tell)
    get_logger().info("daemon.started")
    journal.unlisten(tell)
    get_logger().info("daemon.stopped")
    assert len(told) == 1


def test_an_event_takes_no_more_memory_than_its_text() -> None:
    """What makes the text leaves a buffer of 4 KiB to it."""
    it = Noted()
    tracemalloc.start()
    try:
        for number in range(1000):
            it.note("replica.seen", service="chat", replica=f"r{number}", socket="/run/engines/" + "x" * 200)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 1000 < 2000, "its text, its ring and its name"
