"""No router: nginx balances over the live bridges by itself. No process is started, and nothing is reloaded.

Any HTTP application may stand behind it (`services[].engine: http`), and OpenAI-compatible engines of one model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.config.values import show
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerType
from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths
from gateway_sidecar.routers.base import RouterKind, RouterRules, Surroundings

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings

_REPEATABLE = (
    *("/classify", "/detokenize", "/generate", "/pooling", "/rerank", "/score", "/tokenize"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions", "/v1/classify", "/v1/completions"),
    *("/v1/detokenize", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens", "/v1/rerank", "/v1/score"),
    *("/v1/tokenize", "/v2/rerank"),
)
"""Inference that keeps nothing, whichever engine answers."""


class NoneSettings(RouterSettings):
    """No router: nginx sends each request to the replica with the fewest, and takes no further settings."""

    type: Literal["none"] = Field(description="The kind of router.")
    command: CommandValue = ""

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, value: Any) -> Any:
        more = sorted(set(value) & set(RouterSettings.model_fields) - {"type"}) if isinstance(value, dict) else []
        if more:
            raise ValueError(f"{show(more[0])} says how a router's process runs, and `none` has none; leave it out")
        return value


class NoRouter(RouterRules):
    """What holds where nginx balances: what it is told is done at once."""

    by_model = False
    late_s = 0.0
    still_listed_s = 0.0

    def objection(self, worker_type: WorkerType, mode: ConnectionMode) -> str | None:
        if mode is not ConnectionMode.HTTP:
            return "nginx balances engines that speak HTTP only; use a router for gRPC, such as smg"
        if worker_type is not WorkerType.REGULAR:
            return f"nginx does not pair prefill with decode, and this is {worker_type}; use a router, such as smg"
        return None

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        """Models that only some of the engines have: nginx does not read which one a request is for."""
        engines: dict[str, set[str]] = {}
        for worker in workers:
            if worker.model_id is not None:
                engines.setdefault(base_of(worker.url), set()).add(worker.model_id)
        having = Counter(name for names in engines.values() for name in names)
        return {
            model: f"{count} of {len(engines)} replicas have it, and without a router requests go to any of them;"
            " give each model a service of its own, or use a router such as smg"
            for model, count in having.items()
            if count < len(engines)
        }


def build(_settings: NoneSettings, _service: ServiceSettings, _around: Surroundings) -> NoRouter:
    """nginx, which needs nothing to be told."""
    return NoRouter()


PATHS = RouterPaths(
    inference=(
        *_REPEATABLE,
        *("/health", "/ping", "/v1/models", "/v1/models/**", "/v1/realtime"),
        *("/v1/responses", "/v1/responses/*", "/v1/responses/*/cancel"),
    ),
    control=(
        *("/flush_cache", "/reset_prefix_cache", "/sleep", "/wake_up", "/start_profile", "/stop_profile"),
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    ),
    repeatable=_REPEATABLE,
)
"""With engines: what clients ask of them. What controls vLLM and SGLang never passes."""

ROUTER = RouterKind("none", NoneSettings, build, PATHS, RouterHeaders(""), applications=RouterPaths((), anything=True))
