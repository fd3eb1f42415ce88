"""Any other OpenAI-compatible HTTP server, such as mlx_lm.server: a regular worker that tells little of itself."""

from __future__ import annotations

from gateway_sidecar.domain.discovery import HttpAnswer, ModelList, document
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Foreign
from gateway_sidecar.engines.dialect import Engine, HttpDialect
from gateway_sidecar.engines.fields import text

NAME = "external"

ELSEWHERE = "/server_info"
"""A path that mlx_lm.server does not have."""


def read_listed(models: ModelList, _: tuple[HttpAnswer, ...]) -> EngineFacts:
    """Read a server that lists models. mlx_lm.server lists its whole cache: only a list of one names the model."""
    return EngineFacts(NAME, ConnectionMode.HTTP, model=models.only)


def read_info(info: HttpAnswer, model: str | None) -> EngineFacts | None:
    """Read `/info`, by which TEI and TGI name their model; None for a server whose model nobody names.

    model: what the operator calls it.
    """
    told = document(info) if info.status == 200 else None
    said = text(told, "model_id") if isinstance(told, dict) else None
    return EngineFacts(NAME, ConnectionMode.HTTP, model=model or said) if model or said else None


def read_bare(elsewhere: HttpAnswer, health: HttpAnswer) -> EngineFacts | Foreign:
    """Read a server whose `/v1/models` answers 200 and lists nothing, as mlx_lm.server does without a cache.

    That alone proves no engine: it must also answer 404 elsewhere (a server that says 200 to everything is
    none), and `/health` must be mlx_lm.server's, word for word.
    """
    if elsewhere.status == 404 and health.status == 200 and document(health) == {"status": "ok"}:
        return EngineFacts(NAME, ConnectionMode.HTTP)
    return Foreign("HTTP, but /v1/models lists no model and nothing else shows an engine")


HTTP = HttpDialect(owned_by=frozenset(), questions=(), read=read_listed)
"""For whatever lists models and names no engine that is known."""

ENGINE = Engine(NAME, HTTP, single_connection=True)
