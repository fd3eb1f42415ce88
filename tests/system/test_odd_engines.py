"""Engines as they are: without a health page or a model list, below a prefix, behind TLS, asleep, with many names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.simulated import EngineKind
from tests.certificates import Authority
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of

SHORT_HEALTH = {"interval_s": 0.5, "timeout_s": 5.0, "failures": 2}


def certificate(directory: Path) -> Path:
    """A PEM file with a key and a certificate."""
    file = directory / "engine.pem"
    file.write_bytes(b"".join(path.read_bytes() for path in Authority(directory, "ca").sign("engine")))
    return file


ODD: dict[str, tuple[EngineKind, dict[str, Any], str]] = {
    "ollama": (EngineKind.OLLAMA_HTTP, {}, ""),
    "lmstudio": (EngineKind.LMSTUDIO_HTTP, {}, ""),
    "tei": (EngineKind.TEI_HTTP, {}, ""),
    "v3": (EngineKind.OPENAI_HTTP, {"prefix": "/v3"}, "health: {prefix: /v3}"),
    "openai": (EngineKind.VLLM_HTTP, {"prefix": "/openai/v1"}, "health: {prefix: /openai}"),
    "tls": (EngineKind.VLLM_HTTP, {"certificate": True}, "health: {tls: true}"),
    "grpc-tls": (EngineKind.SGLANG_GRPC, {"certificate": True}, "health: {tls: true}"),
}


@pytest.mark.parametrize("name", ODD)
async def test_servers_of_many_forms_serve(name: str, gateway: Gateway, engine: StartEngine, tmp_path: Path) -> None:
    """With the setting that their form needs, if any: clients and the router see the usual API."""
    kind, options, notes = ODD[name]
    if "certificate" in options:
        options = {"certificate": certificate(tmp_path)}
    if notes:
        gateway.socket("r1").with_suffix(".yaml").write_text(notes)
    await engine(gateway.socket("r1"), kind, **options)
    found = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert (found["model"], found["reason"]) == ("tiny", None)
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert "r1" in await ask(gateway, "tiny", stream=True)


async def test_an_engine_that_falls_asleep_gets_no_requests_until_it_is_woken(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """vLLM's `/health` says 200 while it sleeps; `/is_sleeping` counts. So do the words of a health page."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = SHORT_HEALTH
    await gateway.start()
    sleeper = await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP, dev_mode=True)
    other = await engine(gateway.socket("r2"), EngineKind.VLLM_HTTP)
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    sleeper.behave(asleep=True)
    status = await gateway.until_states({"r1": "loading", "r2": "serving"})
    assert "is_sleeping: true" in replica_of(status, "r1")["reason"]
    await gateway.until_workers(lambda workers: len(workers) == 1)
    assert {await ask(gateway, "tiny", stream=False) for _ in range(4)} == {await ask(gateway, "tiny", stream=False)}
    sleeper.behave(asleep=False)
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    other.behave(words="unhealthy: no memory left")
    status = await gateway.until_states({"r1": "serving", "r2": "dead"})
    assert "says 'unhealthy: no memory left'" in replica_of(status, "r2")["reason"]


async def until_names(gateway: Gateway, *names: str, within_s: float = 60.0) -> dict[str, Any]:
    """The replica's row once the router answers to these names, and to no others."""
    await gateway.until_states({"r1": "serving"})
    status = await gateway.until(lambda s: sorted(replica_of(s, "r1")["models"]) == sorted(names), within_s=within_s)
    return replica_of(status, "r1")


async def answered(gateway: Gateway, *names: str) -> list[str]:
    """The names under which a chat is answered."""
    found = []
    async with gateway.client() as session:
        for name in names:
            body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response:
                if response.status == 200 and (await response.json())["model"] == name:
                    found.append(name)
    return found


async def test_every_name_of_an_engine_is_answered_and_adapters_come_and_go(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Each name is a worker of its own behind the same bridge: one port, one drain. Others are told of it."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = SHORT_HEALTH
    await gateway.start()
    names = ("tiny", "alias", "org/sql lora:1")
    first = await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP, names=",".join(names[1:]))
    found = await until_names(gateway, *names)
    assert found["model"] == "tiny"
    await gateway.until(lambda s: replica_of(s, "r1")["reason"] is None)  # Told at its next look.
    assert await answered(gateway, *names, "other") == list(names)
    async with gateway.client() as session, session.get(f"{gateway.url()}/v1/models") as response:
        assert {it["id"] for it in (await response.json())["data"]} == set(names)
    status = await gateway.status()
    assert status["bridge_ports"]["leased"] == 1
    await gateway.kill()
    await gateway.start()
    assert (await until_names(gateway, *names))["worker_id"] == found["worker_id"]
    assert await answered(gateway, *names) == list(names)
    assert gateway.events("worker.orphan") == []
    first.behave(names="alias,new")
    await until_names(gateway, "tiny", "alias", "new", within_s=60)
    [event] = gateway.events("replica.names")
    assert (event["came"], event["went"]) == (["new"], ["org/sql lora:1"])
    assert await answered(gateway, "tiny", "alias", "new") == ["tiny", "alias", "new"]
    code, _, _ = await gateway.cli("drain", "chat", "r1")
    assert code == 0
    assert await gateway.workers() == []


@pytest.mark.parametrize("kind", [EngineKind.VLLM_GRPC, EngineKind.OPENAI_HTTP])
async def test_names_that_the_operator_lists_are_answered(
    kind: EngineKind, gateway: Gateway, engine: StartEngine
) -> None:
    """Over gRPC vLLM tells one of its names; and of those that a server lists the operator may want a few."""
    gateway.socket("r1").with_suffix(".yaml").write_text("model: [tiny, beta]\n")
    await engine(gateway.socket("r1"), kind, names="beta,gamma" if kind is EngineKind.OPENAI_HTTP else "")
    found = await until_names(gateway, "tiny", "beta")
    assert found["models"] == ["tiny", "beta"]
    async with gateway.client() as session:
        for name, expected in (("tiny", 200), ("beta", 200), ("gamma", 404)):
            body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response:
                assert response.status == expected, (name, await response.text())


async def test_a_server_that_loads_models_on_demand_answers_to_each(gateway: Gateway, engine: StartEngine) -> None:
    """None of those that it lists is its own, and one that comes first tomorrow makes no other engine of it."""
    await engine(gateway.socket("r1"), EngineKind.OLLAMA_HTTP, names="a:latest,z")
    await until_names(gateway, "a:latest", "tiny", "z")
    assert await answered(gateway, "a:latest", "tiny", "z") == ["a:latest", "tiny", "z"]
