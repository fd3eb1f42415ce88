"""The frontend's paths and headers (ai-dynamo 1.6): which are for clients, which control it, what shims ask."""

from __future__ import annotations

from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths


def _each(paths: str) -> tuple[str, ...]:
    return tuple(paths.split())


# Nothing is kept of these; nor is it of a response, but that says in its answer that it is.
_REPEATABLE = _each(
    """
    /v1/audio/speech /v1/chat/completions /v1/classify /v1/completions /v1/embeddings /v1/messages
    /v1/messages/count_tokens /v1/pooling /v1/rerank /v1/responses/input_tokens
    """
)

PATHS = RouterPaths(
    inference=(*_REPEATABLE, "/v1/responses", "/live", "/v1/models", "/v1/models/**"),
    # `/health` tells of its workers with their addresses.
    control=("/busy_threshold", "/clear_kv_blocks", "/engine", "/health", "/v1/loras"),
    fleet=("/metrics",),
    repeatable=_REPEATABLE,
    # An entry that is deleted cuts off what was sent to its worker and has no answering connection yet.
    loses=True,
    asked=("/v1/models",),
)

HEADERS = RouterHeaders(
    # It passes no header on to its workers: a shim shows the bridges their key by itself.
    bridge_key="X-Dynamo-Bridge-Key",
    passes_answers=False,
    steering={
        "x-worker-instance-id": "chooses a worker by its number",
        "x-prefill-instance-id": "chooses a prefill worker by its number",
        "x-dp-rank": "chooses a rank of a worker",
        "x-prefill-dp-rank": "chooses a rank of a prefill worker",
    },
)
