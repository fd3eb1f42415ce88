"""Reads the counters by which an engine shows that it works: its metrics page over HTTP, `GetLoads` over gRPC."""

from __future__ import annotations

from gateway_sidecar.domain.metrics_text import samples
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts
from gateway_sidecar.engines.engine_metrics import EngineMetrics
from gateway_sidecar.engines.grpc_probe import GrpcConversation
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision.awake import within


async def read_progress(
    address: str, facts: EngineFacts, access: Access, *, timeout_s: float
) -> tuple[float, ...] | None:
    """Its counters now; None if it has none, or does not say them in time."""
    if facts.connection_mode is ConnectionMode.GRPC:
        return await _loads(address, facts, access, timeout_s)
    if facts.connection_mode is ConnectionMode.TCP:
        return None
    names = ENGINES[facts.runtime_type].metrics.progress
    if not names:
        return None
    try:
        page = await EngineMetrics().page(address, facts, access, timeout_s=timeout_s)
    except MetricsError:
        return None
    return tuple(value for _, _, value in samples(page, names)) or None


async def _loads(address: str, facts: EngineFacts, access: Access, timeout_s: float) -> tuple[float, ...] | None:
    dialect = ENGINES[facts.runtime_type].grpc
    if dialect is None or dialect.loads is None:
        return None
    conversation = GrpcConversation(address, access)
    try:
        async with within(timeout_s):
            return await conversation.loads(dialect.loads)
    except TimeoutError:
        return None
    finally:
        conversation.close()
