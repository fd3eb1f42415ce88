"""SMG as one service has it configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.domain.model import Registered
from gateway_sidecar.routers import pairing
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts, RouterReading, RouterSetup
from gateway_sidecar.routers.smg.client import SmgClient
from gateway_sidecar.routers.smg.launch import find_smg, launch_command
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.routers.smg.metrics import read_metrics
from gateway_sidecar.routers.smg.settings import SmgSettings

_OWN_TOKENIZER = frozenset(("--tokenizer-path", "--model-path", "--disable-tokenizer-autoload"))


@dataclass(frozen=True, slots=True)
class SmgSetup(RouterSetup):
    """One service's SMG; `RouterSetup` says what each method is for.

    health: SMG's own per-worker settings; its checks matter only while the daemon is away.
    bridge_key: what it shows the bridges of HTTP engines.
    """

    late_s: ClassVar[float] = 30.0
    """A registration that SMG accepted cannot be taken back: its worker may appear that much later (seen: 25 s)."""

    settings: SmgSettings
    health: Mapping[str, int]
    bridge_key: str = field(repr=False)

    def program(self) -> Path:
        return find_smg(self.settings.command)

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        return launch_command(self.program(), ports, self.settings, key=key)

    def client(self, ports: RouterPorts, key: str) -> SmgClient:
        return SmgClient(
            ports.url,
            key,
            timeout_s=self.settings.api_timeout_s,
            health=self.health,
            bridge_key=self.bridge_key,
            loads_tokenizers=not any(word.partition("=")[0] in _OWN_TOKENIZER for word in self.settings.args),
        )

    def read_log_line(self, line: str) -> LogLine | None:
        return read_log_line(line)

    def read_metrics(self, text: bytes) -> RouterReading:
        return read_metrics(text)

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        return pairing.unanswered(workers)
