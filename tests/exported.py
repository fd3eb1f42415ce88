"""What the daemon exports to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric

from gateway_sidecar.telemetry.metrics import Metrics
from scripts.reference.metrics import recorded


def all_families() -> Iterable[Metric]:
    """Every metric, also those that are read from the records; without a replica they have no series."""
    metrics = Metrics()
    metrics.registry.register(recorded())
    return metrics.registry.collect()
