"""The probe against OpenAI-compatible servers as they are: without health page, model list or plain text, say.

The answers are those of the servers' own sources: Ollama, LM Studio, llama.cpp, TEI, TGI, LiteLLM.
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Foreign, Loading, Ready, Unknown
from gateway_sidecar.engines.probe import EngineProbe
from tests.certificates import Authority
from tests.contract.engine_replay import HttpReplay
from tests.contract.test_engine_identify import TIMEOUT_S, VLLM_HTTP, vllm_grpc

PROBE, PLAIN = EngineProbe(), Access()
EXTERNAL = EngineFacts("external", ConnectionMode.HTTP, model="m")
LISTED: dict[str, Any] = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "library"}]}
INFO = {"model_id": "m", "model_dtype": "float16", "model_type": {"embedding": {"pooling": "cls"}}, "version": "1.8.2"}
WELL = (200, "")


def server(*, otherwise: tuple[int, Any] = (404, "404 page not found"), **pages: tuple[int, Any]) -> HttpReplay:
    """One with these pages; `v1_models` is `/v1/models`."""
    return HttpReplay({"/" + name.replace("__", "/"): answer for name, answer in pages.items()}, otherwise=otherwise)


SERVERS: dict[str, tuple[HttpReplay, EngineFacts]] = {
    "Ollama": (server(v1__models=(200, LISTED)), replace(EXTERNAL, health=("/v1/models",))),
    "LM Studio": (
        server(v1__models=(200, LISTED), otherwise=(200, {"error": "Unexpected endpoint or method. (GET /x)"})),
        EXTERNAL,
    ),
    "llama.cpp": (
        server(v1__models=(200, {"models": [{"name": "m"}], **LISTED}), health=(200, {"status": "ok"})),
        EXTERNAL,
    ),
    "TEI": (server(info=(200, INFO), health=WELL), EXTERNAL),
    "TGI": (server(info=(200, {**INFO, "router": "text-generation-router"}), health=WELL), EXTERNAL),
    "a list without object": (server(v1__models=(200, {"data": [{"id": "m"}]}), health=WELL), EXTERNAL),
    "a list of names": (server(v1__models=(200, {"models": ["m"]}), health=WELL), EXTERNAL),
    "a list in Ollama's own form": (server(v1__models=(200, {"models": [{"name": "m"}]}), health=WELL), EXTERNAL),
    "a bare list": (server(v1__models=(200, [{"id": "m"}]), health=WELL), EXTERNAL),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r1.sock"


async def seen(path: Path, found: HttpReplay, access: Access = PLAIN) -> Any:
    """What is found of a server, at first and again."""
    async with found.serve(path):
        first = await PROBE.identify(str(path), timeout_s=TIMEOUT_S, access=access)
        if isinstance(first, Ready):
            assert await PROBE.check_health(str(path), first.facts, timeout_s=TIMEOUT_S, access=access) == first
        return first


@pytest.mark.parametrize("name", SERVERS)
async def test_servers_as_they_are_serve_without_a_setting(name: str, path: Path) -> None:
    """Without a page for health the model list is one; without a model list `/info` names the model."""
    found, facts = SERVERS[name]
    assert await seen(path, found) == Ready(facts)


async def test_what_an_engine_lacks_is_asked_once(path: Path) -> None:
    """Ollama has no `/health`: it is asked for it at first, and not each time, which would fill its log."""
    found, _ = SERVERS["Ollama"]
    found.seen.clear()
    await seen(path, found)
    assert [request.path for request in found.seen] == ["/v1/models", "/health", "/v1/models"]


async def test_a_model_that_the_operator_names_needs_no_model_list(path: Path) -> None:
    """A healthy server is an engine if its operator says so; without that the reason names the cure."""
    found = server(health=(200, "OK"))
    assert await seen(path, found, Access(model="bge")) == Ready(replace(EXTERNAL, model="bge"))
    unnamed = await seen(path, found)
    assert isinstance(unnamed, Foreign)
    assert "set `model`" in unnamed.reason
    assert "prefix" in unnamed.reason
    for unreadable in ({"error": "no such page"}, {"data": [{"id": 7}]}, {"data": [{"id": " "}]}):
        found = server(v1__models=(200, unreadable), health=(200, "OK"))
        assert await seen(path, found, Access(model="bge")) == Ready(replace(EXTERNAL, model="bge"))
        unnamed = await seen(path, found)
        assert isinstance(unnamed, Foreign)
        assert "set `model`" in unnamed.reason
    neither = await seen(path, server(), Access(model="bge"))
    assert isinstance(neither, Foreign)
    assert "set health.path" in neither.reason
    web = await seen(path, server(otherwise=(200, "<!DOCTYPE html>"), v1__models=(404, "")), Access(model="bge"))
    assert isinstance(web, Unknown)


@pytest.mark.parametrize(
    "body",
    [
        {"status": "unhealthy", "issues": ["gpu fell off"]},
        {"status": "loading model"},
        {"status": "DOWN", "groups": ["liveness"]},
        {"status": "OUT_OF_SERVICE"},
        {"status": {"state": "not ready"}},
        {"healthy_endpoints": [], "unhealthy_endpoints": [{"model": "m"}], "healthy_count": 0, "unhealthy_count": 1},
        {"ready": False},
        {"status": "ok", "is_sleeping": True},
        {"error": {"code": 503, "message": "Loading model"}},
        {"status": 503},
        {"code": 500, "msg": "CUDA error"},
        {"health": "bad"},
        {"healthy": 0},
        {"is_ready": False},
        {"isHealthy": False},
        {"engine_status": "unhealthy"},
        {"data": {"status": "unhealthy"}},
        {"message": "Unhealthy."},
        {"detail": "Engine is not alive"},
        [{"status": "unhealthy"}],
        False,
        "EngineDeadError",
        "Internal Server Error",
        "unhealthy",
        "Service Unavailable",
        "The model is not loaded yet",
    ],
)
async def test_a_health_page_that_says_it_is_ill_is_believed(body: Any, path: Path) -> None:
    """Whatever its status says; and the reason has the engine's words."""
    found = await seen(path, server(v1__models=(200, LISTED), health=(200, body)))
    assert isinstance(found, Loading)
    assert "/health answers 200, but says " in found.reason


@pytest.mark.parametrize(
    "body",
    [
        {"status": "ok", "error": None},
        {"status": "healthy", "endpoints": ["dyn://x"], "instances": []},
        {"healthy_endpoints": [{}], "unhealthy_endpoints": [{}], "healthy_count": 1, "unhealthy_count": 1},
        {"status": "no slot available", "slots_idle": 0},
        {"status": "UP"},
        {"status": "degraded"},
        {"ready": True, "loading": False},
        {"status": 200},
        {"status": 0, "code": 0},
        {"status": "ok", "message": "pending requests: 0", "detail": "errors: 0"},
        {"status": "ok", "model_loaded": None, "lora_ready": False},
        [{"status": "UP"}, {"status": "DOWN"}],
        {"notes": "never unhealthy"},
        [],
        "OK",
        "true",
        "Ollama is running",
        "",
    ],
)
async def test_a_health_page_that_says_it_is_well_is_believed(body: Any, path: Path) -> None:
    """Words that no verdict begins with, and busy engines, prove nothing against an engine."""
    assert await seen(path, server(v1__models=(200, LISTED), health=(200, body))) == Ready(EXTERNAL)


async def test_the_operator_says_which_page_and_which_words_are_good(path: Path) -> None:
    """`path` and `expect` count alone, then."""
    found = server(v1__models=(200, LISTED), ping=(200, "all systems go"), health=(500, ""))
    assert await seen(path, found, Access(path="/ping")) == Ready(replace(EXTERNAL, health=("/ping",)))
    assert await seen(path, found, Access(path="/ping", expect="systems")) == Ready(
        replace(EXTERNAL, health=("/ping",))
    )
    without = await seen(path, found, Access(path="/ping", expect="ready"))
    assert isinstance(without, Loading)
    assert "'ready' (health.expect)" in without.reason
    missing = await seen(path, found, Access(path="/nowhere"))
    assert isinstance(missing, Unknown)
    assert "health.path" in missing.reason


async def test_a_sleeping_vllm_is_not_ready_until_it_is_woken(path: Path) -> None:
    """Its `/health` says 200 all the same. One outside development mode is asked for its sleep once."""
    asleep = HttpReplay.of("vllm-http")
    asleep.answers["/is_sleeping"] = (200, {"is_sleeping": True})
    async with asleep.serve(path):
        first = await PROBE.identify(str(path), timeout_s=TIMEOUT_S)
        assert isinstance(first, Loading)
        assert "is_sleeping: true" in first.reason
        assert first.facts is not None
        assert await PROBE.check_health(str(path), first.facts, timeout_s=TIMEOUT_S) == first
        asleep.answers["/is_sleeping"] = (200, {"is_sleeping": False})
        assert await PROBE.check_health(str(path), first.facts, timeout_s=TIMEOUT_S) == Ready(first.facts)
    plain = HttpReplay.of("vllm-http")
    assert await seen(path, plain) == Ready(VLLM_HTTP)
    assert [request.path for request in plain.seen].count("/is_sleeping") == 1


@pytest.mark.parametrize(("prefix", "models"), [("/v3", "v3__models"), ("/openai/v1", "openai__v1__models")])
async def test_an_api_below_a_prefix_is_found_there(prefix: str, models: str, path: Path) -> None:
    """Its health page stays where it is."""
    found = server(**{models: (200, LISTED)}, health=WELL)
    assert await seen(path, found, Access(prefix=prefix)) == Ready(EXTERNAL)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority(tmp_path, "ca").sign("engine"))
    return context


async def test_an_engine_that_speaks_tls_only_is_called_that_and_is_asked_over_tls(
    path: Path, tls: ssl.SSLContext
) -> None:
    """It closes a plain connection without an answer, as nobody does who listens at the end of a tunnel."""
    found = HttpReplay.of("sglang-http")
    found.tls = tls
    plain = await seen(path, found)
    assert isinstance(plain, Foreign)
    assert "set `health: {tls: true}`" in plain.reason
    assert isinstance(await seen(path, found, Access(tls=True)), Ready)
    assert found.seen[-1].path == "/health"


async def test_an_engine_without_tls_is_called_that(path: Path) -> None:
    """Where `health.tls` is set, over either protocol."""
    without = await seen(path, HttpReplay.of("vllm-http"), Access(tls=True))
    assert isinstance(without, Foreign)
    assert "health.tls" in without.reason
    async with vllm_grpc().serve(path):
        assert not isinstance(await PROBE.identify(str(path), timeout_s=TIMEOUT_S, access=Access(tls=True)), Ready)


async def test_names_that_are_loaded_later_are_found_by_listing_again(path: Path) -> None:
    """vLLM lists its served names and its adapters. A list that cannot be read changes nothing."""
    found = HttpReplay.of("vllm-http")
    status, models = found.answers["/v1/models"]
    card = models["data"][0]
    adapter = card | {"id": "sql", "root": "/adapters/sql", "parent": "tiny-llama"}

    async def names(known: EngineFacts) -> tuple[str, ...]:
        again = await PROBE.check_health(str(path), known, timeout_s=TIMEOUT_S)
        assert isinstance(again, Ready)
        assert again.facts == VLLM_HTTP
        return again.facts.names

    async with found.serve(path):
        found.answers["/v1/models"] = (status, models | {"data": [card, card | {"id": "alias"}, adapter]})
        first = await PROBE.identify(str(path), timeout_s=TIMEOUT_S)
        assert first == Ready(VLLM_HTTP)
        assert isinstance(first, Ready)
        assert first.facts.names == ("alias", "sql")
        found.answers["/v1/models"] = (status, models | {"data": [card, adapter | {"id": "new"}]})
        assert await names(first.facts) == ("new",)
        unread: list[tuple[int, Any]] = [(200, "garbage"), (404, ""), (500, ""), (200, {"data": []})]
        for bad in unread:
            found.answers["/v1/models"] = bad
            assert await names(first.facts) == ("alias", "sql")


async def test_a_list_of_several_models_makes_no_model_the_first(path: Path) -> None:
    """A server that loads models on demand lists the latest first."""
    both = {"data": [{"id": "z", "owned_by": "library"}, {"id": "m", "owned_by": "library"}]}
    found = await seen(path, server(v1__models=(200, both)))
    assert isinstance(found, Ready)
    assert (found.facts.model, found.facts.names) == (None, ("m", "z"))
