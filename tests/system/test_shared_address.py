"""One address for the models of several services: each request goes to the service of the model that it names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from examples.simulated import SimulatedEngine
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of

MESSAGES = [{"role": "user", "content": "hello"}]


def shared(
    make_gateway: MakeGateway, models: dict[str, Any], *, services: tuple[str, ...] = ("chat", "code"), **more: Any
) -> Gateway:
    """A gateway with these services, and one address for these models."""
    gateway = make_gateway(services=services)
    first = min(gateway.ports.values())
    gateway.settings["router_ports"] = f"{first + 10}-{first + 25}"
    gateway.settings["bridges"]["ports"] = f"{first + 26}-{first + 59}"
    gateway.ports["api"] = first + 8
    gateway.settings["addresses"] = [{"name": "api", "listen": f"127.0.0.1:{first + 8}", "models": models, **more}]
    return gateway


async def ask(
    gateway: Gateway, body: Any, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, Any]]:
    """A POST to the shared address; the status and the answer. `body`: JSON, or bytes, or a form as they are."""
    sent = {"json": body} if isinstance(body, dict) else {"data": body}
    url = f"{gateway.url('api')}{path}"
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers, **sent) as answer:
        return answer.status, await answer.json(content_type=None)


async def get(gateway: Gateway, path: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url('api')}{path}") as answer:
        return answer.status, await answer.json()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 2, **more}


async def serve(gateway: Gateway, engine: StartEngine, **models: str) -> dict[str, SimulatedEngine]:
    """Starts the daemon, and one engine for each service."""
    await gateway.start()
    engines = {}
    for service, model in models.items():
        engines[service] = await engine(gateway.socket("r1", service), model=model)
    await gateway.until(lambda s: not any(service_of(s, service)["missing"] for service in models))
    return engines


async def test_each_model_is_answered_by_its_service(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One address, one list, and an error that names what there is."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code"})
    engines = await serve(gateway, engine, chat="tiny", code="large")
    for model, service in (("tiny", "chat"), ("large", "code"), ("tiny", "chat")):
        before = engines[service].ledger.received
        status, answer = await ask(gateway, chat(model))
        assert (status, answer.get("model")) == (200, model), answer
        assert engines[service].ledger.received == before + 1
    status, answer = await get(gateway, "/v1/models")
    assert [it["id"] for it in answer["data"]] == ["large", "tiny"]
    assert "asleep" not in json.dumps(answer)
    assert (await get(gateway, "/v1/models/tiny"))[1]["id"] == "tiny"
    for status, answer in (await ask(gateway, chat("huge")), await get(gateway, "/v1/models/huge")):
        assert status == 404
        assert (answer["error"]["code"], answer["error"]["param"]) == ("model_not_found", "model")
        assert "'huge'" in answer["error"]["message"]
        assert "large, tiny" in answer["error"]["message"]


async def test_requests_wait_for_the_model_that_they_name(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One model has nobody: its requests wait, and the other's do not."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code"})
    await serve(gateway, engine, chat="tiny")
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    waiting = [asyncio.create_task(ask(gateway, chat("large"))) for _ in range(5)]
    await gateway.until(lambda s: service_of(s, "code")["waiting"] == 5)
    assert (await ask(gateway, chat("tiny")))[0] == 200
    _, answer = await get(gateway, "/v1/models")
    assert {it["id"]: it.get("status") for it in answer["data"]} == {"large": "asleep", "tiny": None}
    here = await engine(gateway.socket("r1", "code"), model="large")
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 5
    assert here.ledger.received == 5
    assert "asleep" not in json.dumps((await get(gateway, "/v1/models"))[1])
