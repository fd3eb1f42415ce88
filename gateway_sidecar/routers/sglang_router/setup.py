"""sglang-router as one service has it configured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.domain.model import ConnectionMode, WorkerType
from gateway_sidecar.routers.base import LaunchCommand, RouterPorts, RouterReading, find_program
from gateway_sidecar.routers.program import keeping_secret
from gateway_sidecar.routers.sglang_router.client import SglangRouterClient
from gateway_sidecar.routers.sglang_router.metrics import read_metrics
from gateway_sidecar.routers.sglang_router.settings import SglangRouterSettings
from gateway_sidecar.routers.tracing_log import TracingSetup

_ADDING_S = 10
"""For how long it tries to reach a worker that it was told of; by itself half an hour."""
_PAIR = (WorkerType.PREFILL, WorkerType.DECODE)


@dataclass(frozen=True, slots=True)
class SglangRouterSetup(TracingSetup):
    """One service's sglang-router; `RouterSetup` says what each method is for.

    bridge_key: what it shows the bridges of HTTP engines.
    """

    late_s: ClassVar[float] = 2.0 * _ADDING_S
    """A registration that it accepted cannot be taken back."""

    settings: SglangRouterSettings
    bridge_key: str = field(repr=False)

    def program(self) -> Path:
        cure = "pip install sglang-router into an environment and name its program"
        return find_program(self.settings.command, cure)

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """The command that starts it on private loopback ports, its key kept off the command line."""
        settings = self.settings
        options = [
            "launch",
            *("--host", "127.0.0.1", "--port", str(ports.api)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
            *("--worker-startup-timeout-secs", str(_ADDING_S), "--worker-startup-check-interval", "1"),
            *("--policy", settings.policy, "--log-level", settings.log_level),
            "--disable-circuit-breaker",  # it counts what clients did wrong, too, and shuts out an engine that is well
            *(["--pd-disaggregation"] if settings.mode == "prefill_decode" else []),
            *settings.args,
        ]
        keys = ["--control-plane-api-keys", f"gateway-sidecar:gateway-sidecar:admin:{key}"]
        return keeping_secret(self.program(), options, keys, settings.env)

    def client(self, ports: RouterPorts, key: str) -> SglangRouterClient:
        return SglangRouterClient(ports.url, key, self.objection, self.bridge_key, self.settings.api_timeout_s)

    def objection(self, worker_type: WorkerType, mode: ConnectionMode) -> str | None:
        if mode is not ConnectionMode.HTTP:
            return "sglang-router is run for HTTP engines only; start its engine over HTTP, or use router.type: smg"
        if worker_type is WorkerType.ENCODE:
            return "sglang-router knows no encode workers; use router.type: smg"
        takes = _PAIR if self.settings.mode == "prefill_decode" else (WorkerType.REGULAR,)
        if worker_type in takes:
            return None
        needed = "prefill_decode" if worker_type in _PAIR else "regular"
        return f"sglang-router takes {worker_type.value} workers with router.mode: {needed} only"

    def read_metrics(self, text: bytes) -> RouterReading:
        return read_metrics(text)
