"""What sglang-router's own metrics say that is of use here: SMG's names, fewer of them (seen on 0.3.2).

`smg_worker_cb_outcomes_total` counts a client's mistakes among the failures, so that it is no evidence against an
engine, and its sum is the requests of each worker.
"""

from __future__ import annotations

from gateway_sidecar.domain.metrics_text import samples
from gateway_sidecar.routers.base import RouterReading

_ACTIVE = "smg_worker_requests_active"
_OUTCOMES = "smg_worker_cb_outcomes_total"


def read_metrics(text: bytes) -> RouterReading:
    """One reading."""
    by_worker: dict[str, dict[str, float]] = {_ACTIVE: {}, _OUTCOMES: {}}
    for name, labels, value in samples(text, (_ACTIVE, _OUTCOMES)):
        if "worker" in labels:
            counts = by_worker[name]
            counts[labels["worker"]] = counts.get(labels["worker"], 0.0) + value
    return RouterReading(None, by_worker[_ACTIVE], by_worker[_OUTCOMES], {}, {})
