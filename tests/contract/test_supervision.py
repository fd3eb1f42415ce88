"""Child processes: ours by pid, start time and boot; their output bounded."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.errors import ProcessError
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.notify import SystemdNotifier
from gateway_sidecar.supervision.process import (
    Identity,
    Process,
    environment_of_child,
    rss_bytes,
    session_members,
    start_ticks,
)

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


async def spawn(log: ChildLog, *argv: str) -> Process:
    return await Process.spawn(argv, log_fd=await log.open_for_child())


async def test_a_process_that_ends_is_noticed_with_its_code(tmp_path: Path) -> None:
    """No polling: the kernel tells."""
    process = await spawn(ChildLog(tmp_path / "log"), sys.executable, "-c", "raise SystemExit(7)")
    await process.wait()
    assert (process.running, process.exit_code) == (False, 7)


async def test_stop_asks_first_and_then_insists(tmp_path: Path) -> None:
    """SIGTERM, and SIGKILL for one that does not listen."""
    log = ChildLog(tmp_path / "log")
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = await spawn(log, sys.executable, "-c", deaf)
    while not log.tail(1):
        assert process.running
    await process.stop(grace_s=0.05)
    assert process.exit_code == -signal.SIGKILL


async def test_only_that_very_process_is_adopted(tmp_path: Path) -> None:
    """A pid alone proves nothing: start time and boot id must match too."""
    process = await spawn(ChildLog(tmp_path / "log"), *SLEEP)
    identity = process.identity
    try:
        assert Process.adopt(replace(identity, start_ticks=identity.start_ticks - 1)) is None
        assert Process.adopt(replace(identity, boot_id="another boot")) is None
        adopted = Process.adopt(identity)
        assert adopted is not None
        assert rss_bytes(adopted.pid) or 0 > 1_000_000
        await adopted.stop(grace_s=5)
    finally:
        await process.stop(grace_s=5)
    assert Process.adopt(identity) is None
    assert start_ticks(identity.pid) is None


async def test_members_of_a_dead_leaders_session_are_found(tmp_path: Path) -> None:
    """Orphans are told by the session their leader opened, and nobody else is."""
    log = ChildLog(tmp_path / "log")
    parent = "import subprocess, sys; c = subprocess.Popen(sys.argv[1:]); print(c.pid, flush=True); c.wait()"
    leader = await spawn(log, sys.executable, "-c", parent, *SLEEP)
    while not log.tail(1):
        assert leader.running
    child = int(log.tail(2)[0])
    assert [member.pid for member in session_members(leader.identity)] == [child]
    leader.send(signal.SIGKILL)
    await leader.wait()
    [orphan] = session_members(leader.identity)
    assert orphan.pid == child
    assert os.getpid() not in {member.pid for member in session_members(leader.identity)}
    adopted = Process.adopt(orphan)
    assert adopted is not None
    await adopted.stop(grace_s=5)
    assert session_members(Identity(leader.pid, 0, "another boot")) == []


async def test_what_cannot_be_started_is_named(tmp_path: Path) -> None:
    """The reason is in the error, and no descriptor is left open. What other tests left may be closed meanwhile."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessError, match="cannot start /nowhere/smg: No such file"):
        await spawn(ChildLog(tmp_path / "log"), "/nowhere/smg")
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_child_learns_nothing_that_systemd_told_us_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router must not answer systemd's watchdog in our name."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    log = ChildLog(tmp_path / "log")
    program = "import os; print(sorted(n for n in os.environ if n in ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'MINE')))"
    process = await Process.spawn([sys.executable, "-c", program], log_fd=await log.open_for_child(), env={"MINE": "1"})
    await process.wait()
    assert log.new_lines() == ["['MINE']"]


ADDRESSES = "localhost,127.0.0.1,::1,0.0.0.0/0,::/0"


@pytest.mark.parametrize(
    ("told", "above", "exempt"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, {}, ADDRESSES),
        ({"NO_PROXY": "x", "no_proxy": ".corp"}, {"all_proxy": "http://p:1"}, f".corp,x,{ADDRESSES}"),
        ({"http_proxy": "http://p:1"}, {"NO_PROXY": ".corp"}, f".corp,{ADDRESSES}"),
        ({"http_proxy": "", "NO_PROXY": ".corp"}, {}, ".corp"),
        ({}, {}, None),
    ],
)
def test_a_childs_proxy_is_for_names_and_not_for_addresses(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], above: dict[str, str], exempt: str | None
) -> None:
    """A router asks its workers, which are addresses, directly, whoever named the proxy; names go where they went."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = environment_of_child(above)
    assert found.get("NO_PROXY") == exempt
    assert found.get("no_proxy") == (exempt if exempt != ".corp" else None)


async def test_the_log_is_bounded_and_its_writer_goes_on(tmp_path: Path) -> None:
    """The file is cut under a writer that knows nothing of it; one earlier file is kept."""
    log = ChildLog(tmp_path / "log", most_bytes=1000)
    fd = await log.open_for_child()
    try:
        seen = 0
        for number in range(500):
            os.write(fd, f"line {number}\n".encode())
            seen += len(log.new_lines())
    finally:
        os.close(fd)
    assert seen == 500
    assert log.path.stat().st_size <= 1020
    assert log.path.with_name("log.1").exists()
    assert log.tail(1) == ["line 499"]


def test_nothing_is_sent_where_systemd_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET the daemon runs as well."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = SystemdNotifier()
    notifier.ready()
    assert notifier.watchdog_s is None


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of sd_notify(3)."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        notifier = SystemdNotifier()
        assert notifier.watchdog_s == 30
        notifier.ready()
        notifier.status("chat: 2 serving")
        notifier.alive()
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=chat: 2 serving", b"WATCHDOG=1"]
        notifier.stopping(within_s=0)
        notifier.stopping(within_s=30)
        assert systemd.recv(100) == b"STOPPING=1"
        assert systemd.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000", "time for what is in flight"
