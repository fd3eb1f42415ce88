"""docs/reference/metrics.md, from the metrics themselves."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from gateway_sidecar.api.exposition import Recorded
from gateway_sidecar.control.process.file_on_disk import OnDisk
from gateway_sidecar.telemetry.metrics import Metrics
from scripts.reference.tables import table


def metrics() -> str:
    """One table, in the order in which they are declared."""
    return table(("metric", "type", "labels", "meaning"), _rows())


def recorded() -> Recorded:
    """What is read from a daemon's records: of one without services."""
    daemon: Any = SimpleNamespace(services={}, file=SimpleNamespace(found=OnDisk("in force")))
    return Recorded(daemon)


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            suffix = "_total" if metric._type == "counter" else ""
            yield _row(metric._name + suffix, str(metric._type), metric._labelnames, metric._documentation)
    for family in recorded().collect():
        labels: tuple[str, ...] = family._labelnames  # type: ignore[attr-defined]
        yield _row(family.name, family.type, labels, family.documentation)


def _row(name: str, kind: str, labels: tuple[str, ...], text: str) -> tuple[str, str, str, str]:
    return f"`{name}`", kind, ", ".join(labels), text
