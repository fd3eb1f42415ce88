"""SMG's paths and headers (smg 1.13): which are for clients, which control it, which it asks of engines."""

from __future__ import annotations

from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths, each

PATHS = RouterPaths(
    inference=each(
        """
        /generate /health /health_generate /liveness /readiness /rerank /v1/audio/transcriptions /v1/chat/completions
        /v1/classify /v1/completions /v1/conversations /v1/conversations/* /v1/conversations/*/items
        /v1/conversations/*/items/* /v1/decisions /v1/detokenize /v1/embeddings /v1/interactions /v1/messages
        /v1/messages/count_tokens /v1/models /v1/models/** /v1/realtime /v1/realtime/calls
        /v1/realtime/client_secrets /v1/realtime/sessions /v1/realtime/transcription_sessions /v1/rerank /v1/responses
        /v1/responses/* /v1/responses/*/cancel /v1/responses/*/input_items /v1/systemone /v1/tokenize
        """
    ),
    control=each(
        """
        /workers /flush_cache /wasm /v1/tokenizers /v1/rl /start_profile /stop_profile /heap_profile /get_loads /loads
        /v1/loads /parse
        """
    ),
    fleet=("/engine_metrics", "/get_model_info", "/get_server_info"),
    # Nothing is kept of these, whatever the body says: SMG knows `store` in a response or interaction only.
    repeatable=each(
        """
        /generate /rerank /v1/audio/transcriptions /v1/chat/completions /v1/classify /v1/completions /v1/decisions
        /v1/detokenize /v1/embeddings /v1/messages /v1/messages/count_tokens /v1/rerank /v1/systemone /v1/tokenize
        """
    ),
    asked=each(
        """
        /get_load /get_model_info /get_server_info /loads /metrics /model_info /server_info /v1/loads /v1/models
        /version
        """
    ),
)

HEADERS = RouterHeaders(
    # SMG passes only a few headers on to engines, in every one of its modes; those that begin with `X-Request-Id-` are
    # among them, and a worker's own key is not (prefill and decode).
    bridge_key="X-Request-Id-Gateway-Key",
    # It keeps stored responses and conversations of different tenants apart, and believes this header.
    tenant="X-Smg-Tenant-Id",
    # Affinity: requests with the same text meet the same engine. It names no engine.
    passed=("X-Smg-Routing-Key",),
    steering={
        "x-smg-target-worker": "chooses an engine by its number",
        "x-data-parallel-rank": "chooses a rank of an engine",
        "x-smg-tenant-id": "says whose a stored conversation is",
    },
    worker="X-Smg-Routed-Worker-Id",
    hidden=("X-Smg-Cache-Trace",),
)
