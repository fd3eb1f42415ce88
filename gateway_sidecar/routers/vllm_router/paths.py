"""vllm-router's paths and headers (0.1.17). What it has no route for it sends on to an engine as it is.

So the paths of vLLM's own API are for clients, too, as far as they are for clients of vLLM.
"""

from __future__ import annotations

from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths, each

_KEEPS_NOTHING = """
    /classify /detokenize /generate /inference/v1/generate /pooling /rerank /score /tokenize
    /v1/audio/transcriptions /v1/audio/translations /v1/chat/completions /v1/chat/completions/render /v1/completions
    /v1/completions/render /v1/embeddings /v1/messages /v1/messages/count_tokens /v1/rerank /v1/score
"""

PATHS = RouterPaths(
    inference=each(
        f"""
        {_KEEPS_NOTHING} /health /health_generate /liveness /readiness /v1/models /v1/models/** /v1/responses
        /v1/responses/* /v1/responses/*/cancel /v1/responses/*/input
        """
    ),
    control=each(
        """
        /workers /add_worker /remove_worker /list_workers /flush_cache /get_loads /scheduling /finish_session /wasm
        """
    ),
    fleet=("/get_model_info", "/get_server_info"),
    repeatable=each(_KEEPS_NOTHING),
    asked=("/get_load", "/get_model_info", "/get_server_info", "/server_info", "/v1/models"),
)

HEADERS = RouterHeaders(
    # It passes a request's headers on, and what it asks by itself carries the key as `Authorization`; in prefill and
    # decode it passes none, and shows engines a key of its own (`PD_KEY_VARIABLE`).
    bridge_key="X-Request-Id-Gateway-Key",
    # Affinity, with `consistent_hash`: requests of one session meet the same engine. They name no engine.
    passed=("X-Session-Id", "X-User-Id"),
    steering={
        "x-data-parallel-rank": "chooses a rank of an engine",
        "x-worker-priority": "chooses engines by their priority",
        "x-prefer-pd": "chooses how a request is worked on",
    },
)
