"""Dynamo's frontend as one service has it configured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.routers.base import (
    LaunchCommand,
    LogLine,
    RouterPorts,
    RouterReading,
    RouterSetup,
    Surroundings,
    find_program,
)
from gateway_sidecar.routers.dynamo.client import DynamoClient
from gateway_sidecar.routers.dynamo.inside import frontend, shim
from gateway_sidecar.routers.dynamo.log import read_log_line
from gateway_sidecar.routers.dynamo.metrics import read_metrics
from gateway_sidecar.routers.dynamo.settings import INSTALL, DynamoSettings

_PLANES = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "DYN_TCP_HOST_IDLE_TTL_SECS": "5",  # Its own three minutes keep the port of a worker that is gone for so long.
    "DYN_LOGGING_JSONL": "1",
    "HF_HUB_OFFLINE": "1",
}
"""The daemon's own; above what the operator says."""


@dataclass(frozen=True, slots=True)
class DynamoSetup(RouterSetup):
    """One service's frontend; `RouterSetup` says what each method is for."""

    refuses_unknown: ClassVar[bool] = True
    late_s: ClassVar[float] = 0.0
    """A registration that is taken back has no record any more, and so no entries."""
    still_listed_s: ClassVar[float] = 0.0

    settings: DynamoSettings
    around: Surroundings

    def program(self) -> Path:
        return find_program(self.settings.command, INSTALL)

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        del key  # Nothing controls it but its files.
        argv = [
            str(self.program()),
            frontend.__file__,
            str(self._directory(ports)),
            str(ports.metrics),
            *options(self.settings, ports.api),
        ]
        return LaunchCommand(argv, self._env(self.settings.log_level))

    def client(self, ports: RouterPorts, key: str) -> DynamoClient:
        del key
        return DynamoClient(
            ports.api,
            self._directory(ports),
            self.settings.api_timeout_s,
            LaunchCommand([self.settings.command], {**self._env("error"), shim.MODE_VARIABLE: self._mode_of_shims}),
            self.around.bridge_key,
        )

    @property
    def _mode_of_shims(self) -> str:
        """They know no tokens, by which `kv` chooses: with it no request for their models would be answered."""
        return "RoundRobin" if self.settings.policy == "kv" else ""

    def read_log_line(self, line: str) -> LogLine | None:
        return read_log_line(line)

    def read_metrics(self, text: bytes) -> RouterReading:
        return read_metrics(text)

    def _directory(self, ports: RouterPorts) -> Path:
        return self.around.directory / f"dynamo-{ports.api}"

    def _env(self, log_level: str) -> Mapping[str, str]:
        host = self.settings.response_host
        return {**self.settings.env, **_PLANES, "DYN_TCP_RESPONSE_STREAM_HOST": host, "DYN_LOG": log_level}


def options(settings: DynamoSettings, port: int) -> list[str]:
    """What the frontend is started with on this private port."""
    return [
        *("--http-host", "127.0.0.1", "--http-port", str(port)),
        *("--router-mode", settings.policy, "--migration-limit", str(settings.migration_limit)),
        *settings.args,
    ]
