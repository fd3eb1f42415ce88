"""Engines that are played, for a prober without a world around it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import BridgeHosts, Probed, Tenure
from gateway_sidecar.control.workqueue import WorkQueue
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    ProbeResult,
    Ready,
    ReplicaId,
    SocketIdentity,
    WorkerType,
)
from gateway_sidecar.domain.tunnels import PathState, PathStatus
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics

FACTS = EngineFacts("vllm", ConnectionMode.HTTP, WorkerType.REGULAR, "tiny")

SETTINGS = ServiceSettings.model_validate(
    {"name": "chat", "listen": "127.0.0.1:1", "replicas": {"sockets": "/r/{replica}.sock"}}
)


class PlayedProbe:
    """Gives these answers, one after the other; during each of them the daemon is stopped, if it is to be."""

    def __init__(self, *answers: tuple[ProbeResult, bool]) -> None:
        self.left = list(answers)
        self.stalls = 0

    async def identify(self, _address: str, *, timeout_s: float, access: Access) -> ProbeResult:
        raise AssertionError((timeout_s, access))

    def ask_health(self, *_: object, **__: object) -> None:
        """Each question is a task here."""

    async def check_health(
        self, _address: str, _facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
    ) -> ProbeResult:
        del timeout_s, access, relist
        answer, stalls = self.left.pop(0)
        self.stalls += stalls
        await asyncio.sleep(0)
        return answer


def tenure_of(name: str) -> Tenure:
    sighting = Sighting(ReplicaId(name), Path(f"/{name}.sock"), SocketIdentity(1, 2, 3), "sockets")
    hosts = BridgeHosts("127.0.0.1", "127.0.0.1")
    return Tenure(1, f"chat/{name}", 0, sighting, awake.monotonic(), 99, hosts)


def prober_of(tenures: list[Tenure], probe: PlayedProbe) -> Prober:
    return Prober(
        SETTINGS,
        probe,
        cast("Registry", tenures),
        WorkQueue(awake.monotonic),
        lambda _: PathStatus(PathState.UP),
        Metrics(),
    )


def well_engine(probe: PlayedProbe) -> tuple[Tenure, Prober]:
    tenure = tenure_of("r1")
    tenure.probe = Probed(facts=FACTS, result=Ready(FACTS), identify_next=False)
    tenure.notes.of = tenure.sighting
    return tenure, prober_of([tenure], probe)
