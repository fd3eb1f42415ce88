"""All tunnels of a daemon, with connections that are played."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.tunnels.connection import SshConnection
from gateway_sidecar.tunnels.fleet import TunnelFleet
from tests.unit.fake_time import in_fake_time

ROUTE = SshRoute((SshServer("gpu.example", 22, "root"),))


def tunnel(replica: str) -> Tunnel:
    return Tunnel(f"chat/{replica}", ROUTE, f"/run/{replica}.sock")


@in_fake_time
async def test_fault_in_a_connections_task_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told and counted, and the connection is kept again."""
    faults, kept = [ZeroDivisionError("a fault of ours")], asyncio.Event()

    async def run(_: SshConnection) -> None:
        if faults:
            raise faults.pop()
        kept.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(SshConnection, "run", run)
    metrics = Metrics()
    tasks = Tasks("-", metrics)
    fleet = TunnelFleet(tmp_path / "tunnels", tasks)
    fleet.prepare()
    with capture_logs() as logs:
        fleet.request([tunnel("r1")], complete=True)
        await kept.wait()
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["loop.failed"]
    assert metrics.loop_failures.labels("-")._value.get() == 1
    await tasks.close()


@in_fake_time
async def test_fault_in_a_connections_end_does_not_keep_it_from_beginning_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    async def run(connection: SshConnection) -> None:
        began.append(connection.name)
        await asyncio.Event().wait()

    async def end(_: SshConnection) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(SshConnection, "run", run)
    monkeypatch.setattr(SshConnection, "end", end)
    metrics = Metrics()
    tasks = Tasks("-", metrics)
    fleet = TunnelFleet(tmp_path / "tunnels", tasks)
    fleet.prepare()
    for wanted in ([tunnel("r1")], [], [tunnel("r1")]):
        fleet.request(wanted, complete=True)
        await asyncio.sleep(1)
    assert len(began) == 2
    assert metrics.loop_failures.labels("-")._value.get() == 1
    await tasks.close()
