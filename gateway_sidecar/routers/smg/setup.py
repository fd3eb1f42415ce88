"""SMG as one service has it configured, and how it is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerType
from gateway_sidecar.routers import pairing
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts, RouterReading, RouterSetup, find_program
from gateway_sidecar.routers.http import RestApi
from gateway_sidecar.routers.program import keeping_secret
from gateway_sidecar.routers.smg import mesh
from gateway_sidecar.routers.smg.client import InMesh, SmgClient
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.routers.smg.metrics import read_metrics
from gateway_sidecar.routers.smg.settings import SmgSettings

_OWN_TOKENIZER = frozenset(("--tokenizer-path", "--model-path", "--disable-tokenizer-autoload"))
_CONNECTION_GAP_S = 1
"""Between its attempts to reach a worker that it was told of. SMG's own 30 s keep an engine that was away for a moment
out for half a minute.
"""


def find_smg(command: str) -> Path:
    """The `smg` to run. Raises ProcessError."""
    return find_program(command, "pip install 'gateway-sidecar[smg]' into the daemon's environment")


def launch_command(program: Path, ports: RouterPorts, settings: SmgSettings, *, key: str) -> LaunchCommand:
    """The command that starts SMG on private loopback ports, its key kept off the command line."""
    options = [
        "launch",
        *("--host", "127.0.0.1", "--port", str(ports.api)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports.metrics)),
        "--enable-igw",  # without it a gRPC worker that is registered at run time gets no traffic
        *("--worker-startup-check-interval", str(_CONNECTION_GAP_S)),
        "--disable-circuit-breaker",  # ten failures, a client's or nginx's own, shut an engine out that was well
        "--trust-tenant-header",  # nginx names the tenant, so that one key does not see what another stored
        *("--policy", settings.policy),
        *(() if ports.mesh is None else mesh.options(ports.mesh)),
        *("--log-json", "--log-level", settings.log_level),
        *settings.args,
    ]
    keys = ["--control-plane-api-keys", f"gateway-sidecar:gateway-sidecar:admin:{key}"]
    return keeping_secret(program, options, keys, settings.env)


@dataclass(frozen=True, slots=True)
class SmgSetup(RouterSetup):
    """One service's SMG; `RouterSetup` says what each method is for.

    health: SMG's own per-worker settings; its checks matter only while the daemon is away.
    bridge_key: what it shows the bridges of HTTP engines. service: its name.
    """

    refuses_unknown: ClassVar[bool] = True
    late_s: ClassVar[float] = 30.0
    """A registration that SMG accepted cannot be taken back: its worker may appear that much later (seen: 25 s)."""

    ready_within_s: ClassVar[float | None] = 5.0
    """A gRPC engine that tells no model just as it is registered is listed, and its tokenizer never loaded (seen).

    Where it tells one, SMG has it within 40 ms. Whoever is pending is asked again every 2 s, by SMG itself.
    """

    settings: SmgSettings
    health: Mapping[str, int]
    bridge_key: str = field(repr=False)
    service: str = ""

    @property
    def wants_mesh(self) -> bool:
        return self.settings.mesh

    def objection(self, worker_type: WorkerType, mode: ConnectionMode) -> str | None:
        """A worker's URL has to say which replica is meant, and that of a gRPC worker has no place for it."""
        if self.settings.mesh and mode is ConnectionMode.GRPC:
            return "router.mesh is for engines over HTTP; start the engine with HTTP, or leave router.mesh out"
        return None

    def digest(self) -> str:
        # Whether it is in a mesh, and not where: that differs from start to start.
        return f"{RouterSetup.digest(self)}{'-mesh' if self.settings.mesh else ''}"

    def program(self) -> Path:
        return find_smg(self.settings.command)

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        return launch_command(self.program(), ports, self.settings, key=key)

    def client(self, ports: RouterPorts, key: str) -> SmgClient:
        return SmgClient(
            RestApi(ports.url, key, self.settings.api_timeout_s),
            health=self.health,
            bridge_key=self.bridge_key,
            loads_tokenizers=not any(word.partition("=")[0] in _OWN_TOKENIZER for word in self.settings.args),
            in_mesh=None if ports.mesh is None else InMesh(self.service, mesh.owner_of(key)),
        )

    def read_log_line(self, line: str) -> LogLine | None:
        return read_log_line(line)

    def read_metrics(self, text: bytes) -> RouterReading:
        return read_metrics(text)

    def read_mesh(self, text: bytes) -> Mapping[str, float]:
        return mesh.read_rounds(text)

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        return pairing.unanswered(workers)
