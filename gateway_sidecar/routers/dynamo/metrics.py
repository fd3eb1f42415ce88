"""What the frontend's own metrics say that is of use here (ai-dynamo 1.6), streamed answers and others alike.

`dynamo_frontend_inflight_requests` counts each request from its beginning to the end of its answer, by model. It
appears with the first request. Nothing is counted by worker, but for load of Dynamo workers, in tokens and blocks.
"""

from __future__ import annotations

from gateway_sidecar.domain.metrics_text import histogram, samples
from gateway_sidecar.routers.base import RouterReading

_IN_FLIGHT = "dynamo_frontend_inflight_requests"
_ITL = "dynamo_frontend_inter_token_latency_seconds"


def read_metrics(text: bytes) -> RouterReading:
    """One reading."""
    in_flight = sum(value for _, _, value in samples(text, (_IN_FLIGHT,)))
    return RouterReading(in_flight if b"dynamo_" in text else None, {}, {}, {}, histogram(text, _ITL))
