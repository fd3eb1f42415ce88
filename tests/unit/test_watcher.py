"""What an engine's silence proves, and what it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.tenure import BridgeHosts, Tenure
from gateway_sidecar.control.replicas.workqueue import WorkQueue
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Occupant,
    ProbeResult,
    Ready,
    ReplicaId,
    RuntimeType,
    Unknown,
    WorkerType,
)
from gateway_sidecar.domain.tunnels import PathState, PathStatus
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import in_fake_time

FACTS = EngineFacts(RuntimeType.VLLM, ConnectionMode.HTTP, WorkerType.REGULAR, "tiny")


class PlayedProbe:
    """Gives these answers, one after the other; during each of them the daemon is stopped, if it is to be."""

    def __init__(self, *answers: tuple[ProbeResult, bool]) -> None:
        self.left = list(answers)
        self.stalls = 0

    async def identify(self, _address: str, *, timeout_s: float, api_key: str | None = None) -> ProbeResult:
        raise AssertionError((timeout_s, api_key))

    async def check_health(
        self, _address: str, _facts: EngineFacts, *, timeout_s: float, api_key: str | None = None
    ) -> ProbeResult:
        del timeout_s, api_key
        answer, stalls = self.left.pop(0)
        self.stalls += stalls
        await asyncio.sleep(0)
        return answer


async def evidence_after(probe: PlayedProbe, monkeypatch: pytest.MonkeyPatch) -> Tenure:
    """A tenure of an engine that was well, after one look at it."""
    monkeypatch.setattr(awake, "stalls", lambda: probe.stalls)
    sighting = Sighting(ReplicaId("r1"), Path("/r1.sock"), Occupant(1, 2, 3))
    tenure = Tenure(
        1, "chat/r1", 0, ReplicaId("r1"), sighting, awake.monotonic(), 99, BridgeHosts("127.0.0.1", "127.0.0.1")
    )
    tenure.facts, tenure.result, tenure.identify_next, tenure.notes_read = FACTS, Ready(FACTS), False, True
    settings = ServiceSettings.model_validate(
        {"name": "chat", "listen": "127.0.0.1:1", "replicas": {"sockets": "/r/{replica}.sock"}}
    )
    watcher = Prober(
        settings,
        probe,
        WorkQueue(awake.monotonic),
        Metrics(),
        tenures=lambda: [tenure],
        on_identified=lambda *_: None,
        on_replaced=lambda *_: None,
        path_of=lambda _: PathStatus(PathState.UP),
    )
    await watcher._ask(tenure, "/r1.sock")
    await watcher.close()
    return tenure


@in_fake_time
async def test_a_question_that_was_asked_across_a_stall_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time-out may have been the stall's; how often the daemon is stopped does not matter."""
    silence = Unknown("no answer")
    probe = PlayedProbe((silence, True), (silence, True), (Ready(FACTS), False))
    tenure = await evidence_after(probe, monkeypatch)
    assert probe.left == []
    assert tenure.evidence.failures == 0


@in_fake_time
async def test_silence_while_the_daemon_ran_is_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = PlayedProbe((Unknown("no answer"), True), (Unknown("no answer"), False), (Ready(FACTS), False))
    tenure = await evidence_after(probe, monkeypatch)
    assert len(probe.left) == 1
    assert tenure.evidence.failures == 1
