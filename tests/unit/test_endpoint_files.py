"""Files tell other routers which replicas serve, and a replica that drains is out of them before it is safe to stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.config import EndpointsSettings
from gateway_sidecar.control.replicas import endpoint_files
from gateway_sidecar.domain.endpoints import FORMATS, FileEndpoint, document
from gateway_sidecar.domain.model import ConnectionMode, Ready, ReplicaId, WorkerType
from gateway_sidecar.supervision import awake
from tests.unit.fake_time import in_fake_time
from tests.unit.world import FACTS, REFUSED, Worlds

R1 = ReplicaId("r1")
READ_WITHIN_S = 10.0


def of(file: Path, **more: Any) -> dict[str, Any]:
    """The settings of a service with this file."""
    return {"endpoints": [{"path": str(file), "read_within_s": READ_WITHIN_S, **more}]}


def states(file: Path) -> dict[str, str]:
    """What the file says: replica -> state."""
    return {row["replica"]: row["state"] for row in json.loads(file.read_text())["endpoints"]}


def says(file: Path, **wanted: str) -> Callable[[], bool]:
    return lambda: file.exists() and states(file) == wanted


@in_fake_time
async def test_a_replica_is_named_while_it_serves_whatever_its_router_does(worlds: Worlds, tmp_path: Path) -> None:
    """Law 5: no file shrinks because a router is started again, or because of one answer that did not come."""
    file = tmp_path / "chat.json"
    async with worlds(**of(file, host="10.0.0.5")) as world:
        await world.until(says(file))
        world.appear("r1")
        world.appear("r2")
        await world.until(says(file, r1="serving", r2="serving"))
        [row, _] = json.loads(file.read_text())["endpoints"]
        assert row["url"] == f"http://10.0.0.5:{world.tenure('r1').bridge.port}"
        assert row["models"] == ["tiny"]
        written = file.stat().st_ino
        world.process.end()
        await world.until(lambda: world.serves("r1", "r2"))
        await asyncio.sleep(60)
        assert file.stat().st_ino == written, "it is written when something changes, and only then"
        world.vanish("r2")
        await world.until(says(file, r1="serving"))


@in_fake_time
async def test_one_that_drains_is_out_of_the_file_first_and_bridged_until_its_requests_end(
    worlds: Worlds, tmp_path: Path
) -> None:
    """Connections count `read_within_s` after the file was written: until then a router may still begin one."""
    file = tmp_path / "chat.json"
    async with worlds(**of(file)) as world:
        port = await world.in_use("r1")
        await world.until(says(file, r1="serving"))
        draining = asyncio.create_task(world.service.drains.drain(R1, 600.0))
        await world.until(says(file, r1="draining"))
        out_at = awake.monotonic()
        await asyncio.sleep(READ_WITHIN_S / 2)
        world.connections.clear()  # Nothing is in flight just then; a router that has not read the file sends on.
        await asyncio.sleep(READ_WITHIN_S / 4)
        assert not draining.done()
        world.connections[port] = 1
        await asyncio.sleep(60)
        assert not draining.done()
        assert world.tenure("r1").bridge.linked
        world.connections.clear()
        assert (await draining).drained
        assert awake.monotonic() >= out_at + READ_WITHIN_S
        assert not world.tenure("r1").bridge.linked
        world.service.drains.resume(R1)
        await world.until(says(file, r1="serving"))


@in_fake_time
async def test_while_the_file_cannot_be_written_nobody_is_safe_to_stop(
    worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said why, and it is tried again."""
    file = tmp_path / "chat.json"
    async with worlds(**of(file)) as world:
        world.appear("r1")
        await world.until(says(file, r1="serving"))

        def full(*_: object) -> bool:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(endpoint_files, "keep_shared", full)
            assert not (await world.service.drains.drain(R1, 60.0)).drained
            assert world.service.endpoints.problem == f"{file}: No space left on device"
            assert world.metrics.endpoints_up.labels("chat")._value.get() == 0
            assert "endpoints.not_written" in {each["event"] for each in world.log}
        await world.until(world.tenure("r1").drain.done.is_set)
        assert world.service.endpoints.problem == ""


@in_fake_time
async def test_the_next_daemon_leaves_the_file_as_it_is(worlds: Worlds, tmp_path: Path) -> None:
    """Law 8 and 9: an engine that has not been asked yet was ready when the last daemon died."""
    file = tmp_path / "chat.json"
    async with worlds(**of(file)) as world:
        world.appear("r1")
        world.appear("r2")
        await world.until(says(file, r1="serving", r2="serving"))
        written = file.stat().st_ino
        await world.restart()
        await world.until(lambda: world.serves("r1", "r2"))
        assert file.stat().st_ino == written
        world.answer("r2", REFUSED)
        await world.until(says(file, r1="serving", r2="draining"), within_s=120.0)


@in_fake_time
async def test_a_file_that_somebody_changes_is_written_again_and_one_that_goes_is_emptied(
    worlds: Worlds, tmp_path: Path
) -> None:
    """What is not named any more, or of a service that is no more, sends nobody here."""
    file, other = tmp_path / "chat.json", tmp_path / "other.json"
    async with worlds(**of(file)) as world:
        world.appear("r1")
        await world.until(says(file, r1="serving"))
        file.write_text("{}")
        await world.until(lambda: '"r1"' in file.read_text())
        file.unlink()
        await world.until(says(file, r1="serving"))
        moved = world.service.settings.model_copy(update={"endpoints": (EndpointsSettings(path=str(other)),)})
        world.service.reconfigure(moved)
        await world.until(says(other, r1="serving"))
        await world.until(says(file))
        await world.service.endpoints.withdraw()
        assert states(other) == {}


@in_fake_time
async def test_engines_over_grpc_are_not_in_the_file(worlds: Worlds, tmp_path: Path) -> None:
    """Their bridges serve the daemon's own router alone; they drain as ever."""
    file = tmp_path / "chat.json"
    async with worlds(**of(file)) as world:
        world.appear("r1", Ready(replace(FACTS, connection_mode=ConnectionMode.GRPC)))
        await world.until(lambda: world.serves("r1"))
        await world.until(says(file))
        assert (await world.service.drains.drain(R1, 60.0)).drained


@in_fake_time
async def test_a_service_without_files_takes_new_settings(worlds: Worlds) -> None:
    """And goes on: nobody waits for a file that is not there."""
    async with worlds() as world:
        world.service.reconfigure(world.service.settings)
        await world.in_use("r1", connections=0)
        assert (await world.service.drains.drain(R1, 60.0)).drained


def endpoint(replica: str, **more: Any) -> FileEndpoint:
    facts = {"host": "10.0.0.5", "port": 24001, "models": ("tiny", "tiny:lora"), "engine": "vllm"}
    return FileEndpoint(replica, **{**facts, "worker_type": WorkerType.REGULAR, **more})


def test_llm_d_reads_addresses_and_ports_as_texts_and_roles_as_labels() -> None:
    """As its `file-discovery` has it: no state, so who drains is left out."""
    rows = [endpoint("r1", worker_type=WorkerType.PREFILL), endpoint("r2", draining=True)]
    assert json.loads(document("llm-d", "chat", rows, {})) == {
        "endpoints": [
            {
                "name": "r1-24001",
                "address": "10.0.0.5",
                "port": "24001",
                "labels": {"service": "chat", "replica": "r1", "engine": "vllm", "llm-d.ai/role": "prefill"},
            }
        ]
    }


def test_production_stack_reads_a_url_for_each_name() -> None:
    """As many URLs as models; what else its document needs may be said in `fields`."""
    said = json.loads(document("production-stack", "chat", [endpoint("r1")], {"routing_logic": "session"}))
    assert said == {
        "service_discovery": "static",
        "routing_logic": "session",
        "static_backends": "http://10.0.0.5:24001,http://10.0.0.5:24001",
        "static_models": "tiny,tiny:lora",
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_replicas_make_the_same_file(format_: str) -> None:
    """In whatever order they came: a file changes only when something does."""
    rows = [endpoint("r1"), endpoint("r2", port=24002), endpoint("r2", port=24003, draining=True)]
    assert document(format_, "chat", rows, {}) == document(format_, "chat", rows[::-1], {})
