"""vllm-router as one service has it configured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.domain.model import ConnectionMode, WorkerType
from gateway_sidecar.routers.base import LaunchCommand, RouterPorts, RouterReading, find_program
from gateway_sidecar.routers.program import keeping_secret
from gateway_sidecar.routers.tracing_log import TracingSetup
from gateway_sidecar.routers.vllm_router.client import VllmRouterClient
from gateway_sidecar.routers.vllm_router.metrics import read_metrics
from gateway_sidecar.routers.vllm_router.settings import VllmRouterSettings

PD_KEY_VARIABLE = "OPENAI_API_KEY"
"""In prefill and decode, the router passes none of a request's headers on, and shows engines what this holds."""


@dataclass(frozen=True, slots=True)
class VllmRouterSetup(TracingSetup):
    """One service's vllm-router; `RouterSetup` says what each method is for.

    bridge_key: what it shows the bridges of HTTP engines.
    """

    late_s: ClassVar[float] = 0.0
    """It has added a worker when it answers; one that we stopped waiting for is not added (seen)."""

    settings: VllmRouterSettings
    bridge_key: str = field(repr=False)

    def program(self) -> Path:
        return find_program(self.settings.command, "pip install vllm-router into an environment and name its program")

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """The command that starts it on private loopback ports. It knows no key of its own: `key` goes nowhere."""
        settings = self.settings
        options = [
            *("--host", "127.0.0.1", "--port", str(ports.api)),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
            *("--policy", settings.policy, "--log-level", settings.log_level),
            "--disable-circuit-breaker",  # it counts what clients did wrong, too, and shuts out an engine that is well
            *(["--enable-igw"] if settings.models == "many" else []),
            *settings.args,
        ]
        level = {"RUST_LOG": settings.log_level.removesuffix("ing")}  # `--log-level warning` is `info` to it (seen)
        env = {**level, **settings.env, PD_KEY_VARIABLE: self.bridge_key}
        return keeping_secret(self.program(), options, [f"--api-key={self.bridge_key}"], env)  # it may begin with `-`

    def client(self, ports: RouterPorts, key: str) -> VllmRouterClient:
        return VllmRouterClient(
            ports.url,
            self.objection,
            self.bridge_key,
            timeout_s=self.settings.api_timeout_s,
            models=self.settings.models,
        )

    def objection(self, worker_type: WorkerType, mode: ConnectionMode) -> str | None:
        if mode is not ConnectionMode.HTTP:
            return "vllm-router speaks HTTP only; start its engine over HTTP, or use router.type: smg"
        if worker_type is WorkerType.ENCODE:
            return "vllm-router knows no encode workers; use router.type: smg"
        if worker_type is not WorkerType.REGULAR and self.settings.models == "one":
            return f"vllm-router takes {worker_type.value} workers with router.models: many only"
        return None

    def read_metrics(self, text: bytes) -> RouterReading:
        return read_metrics(text)
