"""What a router without models may be told: workers of one model alone, since it sends any request to any of them."""

from __future__ import annotations

from collections.abc import Collection

from gateway_sidecar.domain.model import WorkerSpec
from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.errors import RouterRefused


def refuse_another_model(spec: WorkerSpec, urls: Collection[str], models: Collection[str], cure: str) -> None:
    """Raises RouterRefused for a worker of another model than these, which the router serves at these URLs.

    A further name of an engine is fine where the engine itself is. cure: what to do about it.
    """
    base = base_of(spec.url)
    if base != spec.url:
        if base not in urls:
            raise RouterRefused(f"its engine is no worker of this router, so its name '{spec.model_id}' is none", 400)
    elif models and spec.model_id is not None and spec.model_id not in models:
        known = ", ".join(sorted(models)[:3])
        text = f"it serves '{spec.model_id}' and this router's other workers '{known}', and the router knows no models"
        raise RouterRefused(f"{text}; {cure}", 400)
