"""What the daemon exports to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric

from gateway_sidecar.api.exposition import WorkerInfo
from gateway_sidecar.telemetry.metrics import Metrics


def all_families() -> Iterable[Metric]:
    """Every metric, also those that are read from the records; without a replica they have no series."""
    metrics, nobody = Metrics(), SimpleNamespace(services={})
    daemon: Any = nobody
    metrics.registry.register(WorkerInfo(daemon))
    return metrics.registry.collect()
