"""What each HTTP engine says of itself, path by path, after recorded answers of real ones (`answers/`)."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.simulated.core import EngineCore, Health
from examples.simulated.options import EngineKind, Lie, Role

ANSWERS = Path(__file__).parent / "answers"


@dataclass(frozen=True, slots=True)
class Page:
    """One answer: a dict or list becomes JSON, text stays text."""

    body: dict[str, Any] | list[Any] | str = ""
    status: int = 200


PageMaker = Callable[[EngineCore], Page]

FASTAPI_NOT_FOUND = Page({"detail": "Not Found"}, 404)
PLAIN_NOT_FOUND = Page("Not Found", 404)


@dataclass(frozen=True, slots=True)
class Site:
    """One engine's HTTP surface: its GET pages, what else is answered, and which paths ask for a key."""

    pages: Mapping[str, PageMaker]
    not_found: Page
    guards: Callable[[str], bool]
    native_generate: bool = False


@functools.cache
def answer(name: str) -> Any:
    """A recorded answer; not to be changed."""
    return json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8"))


def disaggregation_mode(core: EngineCore) -> str:
    """SGLang's word for the role; `null` is text."""
    return "null" if core.spec.role is Role.REGULAR else core.spec.role.value


def sglang_server_args(core: EngineCore) -> dict[str, Any]:
    """SGLang's server arguments, as both of its protocols tell them."""
    spec = core.spec
    args: dict[str, Any] = answer("sglang_server_args") | {
        "model_path": spec.model,
        "tokenizer_path": spec.model,
        "served_model_name": spec.model,
        "dp_size": spec.dp_size,
        "disaggregation_mode": disaggregation_mode(core),
        "disaggregation_bootstrap_port": spec.bootstrap_port,
        "random_seed": core.instance,
    }
    if core.behaviour.lie is Lie.TYPES:
        args |= {
            "disaggregation_mode": 7,
            "disaggregation_bootstrap_port": "abc",
            "dp_size": [],
            "model_path": {},
        }
    return args


def _health(core: EngineCore) -> Page:
    if core.behaviour.words is not None and core.health is Health.SERVING:
        return Page(core.behaviour.words)
    return Page("", 200 if core.health is Health.SERVING else 503)


def _mlx_health(core: EngineCore) -> Page:
    return Page({"status": "ok"}) if core.health is Health.SERVING else Page("", 503)


def _dynamo_health(core: EngineCore) -> Page:
    if core.health is Health.SERVING:
        return Page({"status": "healthy", "endpoints": ["dyn://dynamo.backend.generate"], "instances": []})
    return Page({"status": "unhealthy", "endpoints": []}, 503)


def _sglang_server_info(core: EngineCore) -> Page:
    args = sglang_server_args(core)
    facts: dict[str, Any] = {"version": core.spec.version, "internal_states": [dict(args)]}
    if core.behaviour.lie is Lie.TYPES:
        facts = {"version": 5, "internal_states": "none"}
    return Page(args | answer("sglang_scheduler_info") | facts)


def _sglang_model_info(core: EngineCore) -> Page:
    model: object = [1] if core.behaviour.lie is Lie.TYPES else core.spec.model
    names = {"model_path": model, "served_model_name": model, "tokenizer_path": model}
    return Page(answer("sglang_model_info") | names | {"disaggregation_mode": disaggregation_mode(core)})


def _models(core: EngineCore, **card: object) -> Page:
    if core.behaviour.lie is Lie.TYPES:
        return Page({"object": 1, "data": {"id": None, "owned_by": ["vllm"]}})
    entry = {"id": core.spec.model, "object": "model", "created": int(time.time())} | card
    more = [entry | {"id": name} for name in core.behaviour.names.split(",") if name]
    # A server that loads models on demand lists those in its cache, which may be none.
    return Page({"object": "list", "data": [entry, *more] if core.spec.model else []})


def _ollama_models(core: EngineCore) -> Page:
    page = _models(core, owned_by="library")
    assert isinstance(page.body, dict)
    return Page(page.body | {"data": page.body["data"] or None})


def _is_sleeping(core: EngineCore) -> Page:
    return Page({"is_sleeping": core.behaviour.asleep}) if core.spec.dev_mode else FASTAPI_NOT_FOUND


def _tei_info(core: EngineCore) -> Page:
    return Page({"model_id": core.spec.model, "model_type": {"embedding": {"pooling": "cls"}}, "version": "1.8.2"})


def _sglang_models(core: EngineCore) -> Page:
    return _models(core, owned_by="sglang", root=core.spec.model, parent=None, max_model_len=1024)


def _vllm_models(core: EngineCore) -> Page:
    return _models(core, **(answer("vllm_model") | {"id": core.spec.model, "root": core.spec.model}))


def _trtllm_models(core: EngineCore) -> Page:
    return _models(core, owned_by="tensorrt_llm")


def _dynamo_models(core: EngineCore) -> Page:
    return _models(core, owned_by="nvidia")


def _version(core: EngineCore) -> Page:
    return Page({"version": 1.5 if core.behaviour.lie is Lie.TYPES else core.spec.version})


def _vllm_server_info(core: EngineCore) -> Page:
    if not core.spec.dev_mode:
        return FASTAPI_NOT_FOUND
    spec = core.spec
    kv = {"kv_connector": spec.kv_connector, "kv_role": spec.kv_role, "engine_id": spec.kv_engine_id}
    config = {"kv_transfer_config": kv if spec.kv_connector else None}
    return Page({"vllm_config": config | {"parallel_config": {"data_parallel_size": spec.dp_size}}, "vllm_env": {}})


def _metrics(core: EngineCore) -> Page:
    return Page(core.counters.page)


def _trtllm_server_info(_core: EngineCore) -> Page:
    return Page({"disaggregated_params": {}})


def _under_v1(path: str) -> bool:
    return path.startswith("/v1")


def _all_but_health(path: str) -> bool:
    return not path.startswith(("/health", "/metrics"))


SITES: Mapping[EngineKind, Site] = {
    EngineKind.SGLANG_HTTP: Site(
        pages={
            "/health": _health,
            "/health_generate": _health,
            "/server_info": _sglang_server_info,
            "/get_server_info": _sglang_server_info,
            "/model_info": _sglang_model_info,
            "/get_model_info": _sglang_model_info,
            "/v1/models": _sglang_models,
            "/metrics": _metrics,
        },
        not_found=FASTAPI_NOT_FOUND,
        guards=_all_but_health,
        native_generate=True,
    ),
    EngineKind.VLLM_HTTP: Site(
        pages={
            "/health": _health,
            "/version": _version,
            "/server_info": _vllm_server_info,
            "/is_sleeping": _is_sleeping,
            "/v1/models": _vllm_models,
            "/metrics": _metrics,
        },
        not_found=FASTAPI_NOT_FOUND,
        guards=_under_v1,
    ),
    # TensorRT-LLM and Dynamo: after their documentation and source, not seen running.
    EngineKind.TRTLLM_HTTP: Site(
        pages={
            "/health": _health,
            "/version": _version,
            "/server_info": _trtllm_server_info,
            "/v1/models": _trtllm_models,
        },
        not_found=FASTAPI_NOT_FOUND,
        guards=_under_v1,
    ),
    EngineKind.DYNAMO_HTTP: Site(
        pages={"/health": _dynamo_health, "/live": _dynamo_health, "/v1/models": _dynamo_models},
        not_found=Page("", 404),
        guards=_under_v1,
    ),
    EngineKind.OPENAI_HTTP: Site(
        pages={"/health": _mlx_health, "/v1/models": _models},
        not_found=PLAIN_NOT_FOUND,
        guards=_all_but_health,
    ),
    # After their sources, too.
    EngineKind.OLLAMA_HTTP: Site(
        pages={"/v1/models": _ollama_models}, not_found=Page("404 page not found", 404), guards=_under_v1
    ),
    EngineKind.LMSTUDIO_HTTP: Site(
        pages={"/v1/models": _models},
        not_found=Page({"error": "Unexpected endpoint or method. Returning 200 anyway"}),
        guards=_under_v1,
    ),
    EngineKind.TEI_HTTP: Site(
        pages={"/health": _health, "/info": _tei_info}, not_found=Page("", 404), guards=_all_but_health
    ),
}
