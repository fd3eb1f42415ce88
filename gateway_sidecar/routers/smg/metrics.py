"""What SMG's own metrics say that is of use here.

Seen on smg 1.13, streamed and not, HTTP and gRPC workers, alone and in prefill/decode pairs:

* `smg_admission_inflight` counts inference requests from their beginning to the end of their stream; the
  daemon's own requests are not in it. It appears with the first one, as does `smg_router_requests_total`: a router
  that shows neither has had none.
* `smg_worker_requests_active` and `smg_worker_requests_total` are kept for each worker, of every kind.
* `smg_worker_cb_outcomes_total` counts the tries that failed at each worker, those that were tried elsewhere too, and
  also with `--disable-circuit-breaker`. Its successes say little: the headers of a stream are one.
* `smg_worker_errors_total` counts failed tries by `worker_type`; there is none before the first.
* `smg_router_tpot_seconds` is there for gRPC workers only, for streamed answers, once they have ended. It is the mean
  pause between one answer's tokens (tokenizer's tokens), so its quantiles are of answers and not of tokens.
* `smg_router_ttft_seconds` is no time to first token: with a first token after 0.3 s it said 0.00003 s, since it
  begins when the worker's first message has come. It is not read.
* `smg_http_request_duration_seconds` of a streamed answer ends with its headers. It is not read.
"""

from __future__ import annotations

import re

from gateway_sidecar.domain.mesh import unmarked
from gateway_sidecar.domain.metrics_text import histogram, samples
from gateway_sidecar.routers.base import RouterReading

_IN_FLIGHT = "smg_admission_inflight"
_ACTIVE = "smg_worker_requests_active"
_TOTAL = "smg_worker_requests_total"
_OUTCOMES = "smg_worker_cb_outcomes_total"
_ITL = "smg_router_tpot_seconds"
_ERRORS = "smg_worker_errors_total"
_ROUTED = "smg_router_requests_total"
_RANK = re.compile(r"@\d+$")


def read_metrics(text: bytes) -> RouterReading:
    """One reading."""
    in_flight: float | None = None
    has_routed = False
    errors: dict[str, float] = {}
    by_worker: dict[str, dict[str, float]] = {_ACTIVE: {}, _TOTAL: {}, "failure": {}}
    for name, labels, value in samples(text, (_IN_FLIGHT, _ACTIVE, _TOTAL, _OUTCOMES, _ERRORS, _ROUTED)):
        if name == _IN_FLIGHT:
            in_flight = value
        elif name == _ROUTED:
            has_routed = True
        elif name == _ERRORS:
            role = labels.get("worker_type", "")
            errors[role] = errors.get(role, 0.0) + value
        elif "worker" in labels:
            url = unmarked(_RANK.sub("", labels["worker"]))
            counts = by_worker.setdefault(labels.get("outcome", "") if name == _OUTCOMES else name, {})
            counts[url] = counts.get(url, 0.0) + value
    if in_flight is None and not has_routed and b"\nsmg_" in text:
        in_flight = 0.0
    return RouterReading(
        in_flight, by_worker[_ACTIVE], by_worker[_TOTAL], errors, histogram(text, _ITL), by_worker["failure"]
    )
