"""What one daemon writes down the next one reads; what cannot be read is a hint less, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.process.shared import Shared
from gateway_sidecar.control.process.written_down import WrittenDown, api_replicas_before
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.unit.fake_time import in_fake_time

FIRST, OTHER = "1" * 32, "2" * 32


class PlayedNginx:
    """One that runs, with a key for its bridges."""

    def __init__(self, key: str) -> None:
        self.bridge_key = key
        self.process = SimpleNamespace(identity=Identity(7, 1, "boot"), running=True)

    def take_over_key(self, key: str) -> None:
        self.bridge_key = key


def daemon_in(directory: Path, key: str) -> tuple[WrittenDown, PlayedNginx]:
    """A daemon's records, and its nginx; it has one service, which is asleep, with one router."""
    nginx = PlayedNginx(key)
    nothing = cast("Any", SimpleNamespace())
    leases = PortLeases(range(24001, 24011))
    leases.quarantine(24005, 100.0, service="chat")
    fleet = cast("Any", SimpleNamespace(ports=SimpleNamespace(told={"chat/r1": (24001, "chat/r1/1:2:3/0")})))
    shared = Shared(cast("Any", nginx), leases, nothing, nothing, nothing, nothing, nothing, nothing, Problems(), fleet)
    router = SavedRouter("chat", Identity(8, 1, "boot"), RouterPorts(15000, 15001), "secret", "smg", "digest")
    service = SimpleNamespace(
        slots=SimpleNamespace(saved=lambda: [router]),
        saved=list,
        hold_policy=SimpleNamespace(models=("tiny",)),
    )
    services = cast("Any", SimpleNamespace(by_name=lambda: {"chat": service}))
    departing = cast("Any", SimpleNamespace(identities=[("chat", Identity(9, 1, "boot"))]))
    settings = cast("Any", SimpleNamespace(run_dir=directory / "run", state_dir=directory / "state"))
    return WrittenDown(settings, shared, services, departing, lambda: None, Metrics()), nginx


@in_fake_time
async def test_the_next_daemon_reads_what_this_one_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And shows its bridges the key that the routers know, which go on."""
    written, _ = daemon_in(tmp_path, FIRST)
    await written.write_all()
    following, nginx = daemon_in(tmp_path, OTHER)
    processes, leases = await following.read()
    assert nginx.bridge_key == FIRST
    assert processes["nginx"]["pid"] == 7
    assert [row["slot"] for row in processes["routers"]["chat"]] == ["chat"]
    assert leases["models"] == {"chat": ["tiny"]}
    assert len(leases["resting"]) == 1
    assert records.told_from_json(leases) == {"chat/r1": (24001, "chat/r1/1:2:3/0")}
    assert records.told_from_json({**leases, "boot_id": "another"}) == {}, "a remote engine may be the same"
    following.remove()
    assert await following.read() == ({}, {})


@in_fake_time
async def test_a_record_that_cannot_be_read_is_no_reason_not_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run/processes.json", "state/leases.json"):
        (tmp_path / name).parent.mkdir(mode=0o700)
        (tmp_path / name).write_text("{")
    written, nginx = daemon_in(tmp_path, OTHER)
    with capture_logs() as log:
        assert await written.read() == ({}, {})
    assert [each["event"] for each in log] == ["state.ignored", "state.ignored"]
    assert nginx.bridge_key == OTHER


@in_fake_time
async def test_processes_are_written_down_before_the_leases_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the file of leases has what we have not."""
    written, _ = daemon_in(tmp_path, OTHER)
    await written.write_processes()
    assert json.loads((tmp_path / "run" / "processes.json").read_text())["bridge_key"] == OTHER
    assert not (tmp_path / "state").exists()


def test_who_was_put_over_the_api_is_known_by_the_leases() -> None:
    """Should the record of the API be lost, they stay as they are."""
    rows = [
        {"replica": "r1", "source": "api"},
        {"replica": "r2", "source": "api", "leaving": True},
        {"replica": "r3", "source": "sockets"},
        "nonsense",
    ]
    assert api_replicas_before({"services": {"chat": rows}}) == {"chat": ["r1"]}
