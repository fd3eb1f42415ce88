"""What vllm-router's own metrics say that is of use here.

Seen on 0.1.17: `vllm_router_processed_requests_total` counts requests by worker once they were sent there, and
`vllm_router_cb_outcomes_total` the tries that failed, also with `--disable-circuit-breaker`. `..._running_requests` is
there with `cache_aware` alone, so requests in flight are not read here: nginx and engines say how many there are.
"""

from __future__ import annotations

from gateway_sidecar.domain.metrics_text import samples
from gateway_sidecar.routers.base import RouterReading

_RUNNING = "vllm_router_running_requests"
_TOTAL = "vllm_router_processed_requests_total"
_OUTCOMES = "vllm_router_cb_outcomes_total"


def read_metrics(text: bytes) -> RouterReading:
    """One reading."""
    by_worker: dict[str, dict[str, float]] = {_RUNNING: {}, _TOTAL: {}, "failure": {}}
    for name, labels, value in samples(text, (_RUNNING, _TOTAL, _OUTCOMES)):
        counts = by_worker.get(labels.get("outcome", "") if name == _OUTCOMES else name)
        if counts is not None and "worker" in labels:
            counts[labels["worker"]] = counts.get(labels["worker"], 0.0) + value
    return RouterReading(None, by_worker[_RUNNING], by_worker[_TOTAL], {}, {}, by_worker["failure"])
