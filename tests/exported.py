"""What the daemon exports to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric

from gateway_sidecar.api.exposition import Recorded
from gateway_sidecar.control.process.file_on_disk import OnDisk
from gateway_sidecar.telemetry.metrics import Metrics


def all_families() -> Iterable[Metric]:
    """Every metric, also those that are read from the records; without a replica they have no series."""
    metrics = Metrics()
    daemon: Any = SimpleNamespace(services={}, file=SimpleNamespace(found=OnDisk("in force")))
    metrics.registry.register(Recorded(daemon))
    return metrics.registry.collect()
