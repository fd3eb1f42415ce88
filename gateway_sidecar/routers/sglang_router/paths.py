"""sglang-router's paths and headers (0.3.2): which are for clients, which control it, which it asks of engines."""

from __future__ import annotations

from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths, each

_KEEPS_NOTHING = "/generate /rerank /v1/chat/completions /v1/classify /v1/completions /v1/embeddings /v1/rerank"

PATHS = RouterPaths(
    inference=each(
        f"""
        {_KEEPS_NOTHING} /health /health_generate /liveness /readiness /v1/models /v1/responses /v1/responses/*
        /v1/responses/*/cancel /v1/responses/*/input_items
        """
    ),
    # Conversations are here since it keeps those of all clients together, and nothing tells whose each is.
    control=each(
        """
        /workers /flush_cache /get_loads /ha /parse /wasm /v1/conversations /v1/tokenizers /v1/tokenize /v1/detokenize
        """
    ),
    fleet=("/engine_metrics", "/get_model_info", "/get_server_info"),
    repeatable=each(_KEEPS_NOTHING),
    asked=each("/get_load /get_model_info /get_server_info /metrics /model_info /server_info /v1/models"),
)

HEADERS = RouterHeaders(
    bridge_key="X-Request-Id-Gateway-Key",  # it passes few headers on, and those that begin with `X-Request-Id-`
    passed=("X-Smg-Routing-Key",),
    steering={"x-smg-target-worker": "chooses an engine by its number"},
)
