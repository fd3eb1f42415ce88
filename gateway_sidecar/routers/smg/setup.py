"""SMG as one service has it configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gateway_sidecar.domain.model import Registered
from gateway_sidecar.routers.base import LaunchCommand, LogLine, RouterPorts, RouterReading, RouterSetup
from gateway_sidecar.routers.smg import pairing
from gateway_sidecar.routers.smg.client import SmgClient
from gateway_sidecar.routers.smg.launch import find_smg, launch_command
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.routers.smg.metrics import read_metrics
from gateway_sidecar.routers.smg.settings import SmgSettings

_OWN_TOKENIZER = frozenset(("--tokenizer-path", "--model-path", "--disable-tokenizer-autoload"))


@dataclass(frozen=True, slots=True)
class SmgSetup(RouterSetup):
    """One service's SMG.

    health: SMG's own per-worker settings; its checks matter only while the daemon is away.
    bridge_key: what it shows the bridges of HTTP engines.
    """

    kind: ClassVar[str] = "smg"
    late_s: ClassVar[float] = 30.0
    """A registration that SMG accepted cannot be taken back: its worker may appear that much later (seen: 25 s)."""

    settings: SmgSettings
    health: Mapping[str, int]
    bridge_key: str = field(repr=False)

    def program(self) -> Path:
        """The `smg` to run. Raises ProcessError if it cannot be found."""
        return find_smg(self.settings.command)

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """How to start it. Raises ProcessError if its program cannot be found."""
        return launch_command(self.program(), ports, self.settings, key=key)

    def client(self, ports: RouterPorts, key: str) -> SmgClient:
        """A client for its API."""
        return SmgClient(
            ports.url,
            key,
            timeout_s=self.settings.api_timeout_s,
            health=self.health,
            bridge_key=self.bridge_key,
            loads_tokenizers=not any(word.partition("=")[0] in _OWN_TOKENIZER for word in self.settings.args),
        )

    def read_log_line(self, line: str) -> LogLine | None:
        """One line of its output; None for what is not worth passing on."""
        return read_log_line(line)

    def read_metrics(self, text: bytes) -> RouterReading:
        """What its metrics page says."""
        return read_metrics(text)

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        """Model -> why its requests cannot be answered: half a pair of prefill and decode."""
        return pairing.unanswered(workers)
