"""Engines' own metrics, read through their sockets: the two histograms that signals are made of.

Engines that speak gRPC have no metrics page on their socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway_sidecar.domain.discovery import HttpAnswer, NoAnswer
from gateway_sidecar.domain.metrics_text import histogram
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts
from gateway_sidecar.engines.unix_http import UnixHttp
from gateway_sidecar.engines.unix_socket import connect
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision.awake import within

MOST_BYTES = 4 * 1024 * 1024
"""Real engines' pages are far smaller: some hundred series, as many again for each data-parallel rank and model."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """Time to first token and pause between tokens: upper bound in seconds -> cumulative count; empty if not said."""

    ttft: Mapping[float, float]
    itl: Mapping[float, float]


def why_no_metrics(facts: EngineFacts) -> str | None:
    """Why this engine has no metrics page, in words; None if it may have one."""
    if facts.connection_mode is not ConnectionMode.HTTP:
        speaks = "gRPC" if facts.connection_mode is ConnectionMode.GRPC else "no HTTP"
        return f"a {facts.runtime_type} engine that speaks {speaks} has no metrics page on its socket"
    return None


class EngineMetrics:
    """Reads engines' metrics. Stateless."""

    async def page(self, address: str, facts: EngineFacts, access: Access, *, timeout_s: float) -> bytes:
        """The whole page, of 4 MiB at the most. Raises MetricsError."""
        if (reason := why_no_metrics(facts)) is not None:
            raise MetricsError(reason, absent=True)
        path = ENGINES[facts.runtime_type].metrics.path
        try:
            async with within(timeout_s):
                answer = await _get(address, path, access)
        except TimeoutError:
            raise MetricsError(f"no answer to {path} within {timeout_s:g} s") from None
        if isinstance(answer, NoAnswer):
            raise MetricsError(f"{path}: {answer}")
        if answer.status == 404:
            raise MetricsError(f"the engine has no {path}; it may have to be started with metrics on", absent=True)
        if answer.status != 200:
            raise MetricsError(f"the engine answers {path} with {answer.status}")
        return answer.body

    def read(self, page: bytes, facts: EngineFacts) -> EngineReading:
        """What signals are made of. A page of 4 MiB may take a twentieth of a second: not in the event loop."""
        names = ENGINES[facts.runtime_type].metrics
        return EngineReading(_first(page, names.ttft), _first(page, names.itl))


def says_latency(facts: EngineFacts) -> bool:
    """Whether an engine of this kind may export latencies."""
    return why_no_metrics(facts) is None and bool(ENGINES[facts.runtime_type].metrics.ttft)


async def _get(address: str, path: str, access: Access) -> HttpAnswer | NoAnswer:
    sock = await connect(address, tls=access.tls is True)
    if isinstance(sock, NoAnswer):
        return sock
    conversation = UnixHttp(address, sock, access, budget_bytes=MOST_BYTES)
    try:
        return await conversation.get(path, last=True)
    finally:
        conversation.close()


def _first(page: bytes, names: tuple[str, ...]) -> dict[float, float]:
    return next((found for name in names if (found := histogram(page, name))), {})
