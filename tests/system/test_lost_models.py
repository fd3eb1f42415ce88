"""A service of several models loses the last replica of one: that model's requests wait, and the others' do not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key
from tests.stopping import stop
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_odd_engines import SHORT_HEALTH, until_names
from tests.system.test_shared_address import chat, get, shared


async def ask(gateway: Gateway, name: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """A chat at the service's own address, or at the shared one."""
    url = f"{gateway.url(name)}/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


def lost(status: Any) -> set[str]:
    return set(service_of(status)["unanswered"])


async def test_requests_wait_for_the_model_that_has_lost_its_last_replica(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """As they would in a service of that model alone; at the service's own address and at a shared one."""
    gateway = shared(make_gateway, {"tiny": "chat", "gpt-4o": {"service": "chat", "model": "large"}})
    gateway.settings["services"][0]["hold"] = {"asleep_s": 120}
    await gateway.start()
    await engine(gateway.socket("r1"), model="tiny")
    large = await engine(gateway.socket("r2"), model="large")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert (await ask(gateway, "chat", chat("large")))[0] == 200
    await large.stop()
    await gateway.until(lambda s: lost(s) == {"large"})
    bodies = [("chat", chat("large")), ("chat", chat("large", x="y" * 400_000)), ("api", chat("gpt-4o"))]
    waiting = [asyncio.create_task(ask(gateway, *each)) for each in bodies for _ in range(2)]
    await gateway.until(lambda s: service_of(s)["waiting"] == len(waiting))
    for name in ("chat", "api"):
        assert (await ask(gateway, name, chat("tiny")))[0] == 200
    status, answer = await ask(gateway, "chat", chat("none"))
    assert (status, answer["error"]["code"]) == (404, "model_not_found"), "a model that was never there does not wait"
    assert (await get(gateway, "/v1/models/gpt-4o"))[1]["status"] == "asleep"
    _, shown, _ = await gateway.cli("status")
    assert "UNANSWERED: model large: its last replica has left; its requests wait for another one" in shown
    assert "gpt-4o  chat as large (asleep)" in shown
    await gateway.kill()
    assert (await ask(gateway, "chat", chat("tiny")))[0] == 200, "without a daemon, too"
    await gateway.start()
    await gateway.until(lambda s: lost(s) == {"large"})
    assert (await ask(gateway, "chat", chat("tiny")))[0] == 200
    await gateway.until(lambda s: service_of(s)["waiting"] == len(waiting))
    again = await engine(gateway.socket("r3"), model="large")
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * len(waiting)
    assert again.ledger.received == len(waiting)
    assert lost(await gateway.status()) == set()
    assert "status" not in (await get(gateway, "/v1/models/gpt-4o"))[1]


@pytest.mark.parametrize("size", [40, 300_000, 1_000_000])
async def test_who_was_at_the_router_waits_for_its_model_too(
    make_gateway: MakeGateway, engine: StartEngine, size: int
) -> None:
    """Router and replica end together. A body that nginx has in a file says which model it is for as any other."""
    gateway = make_gateway(services=("chat",))
    gateway.settings["services"][0]["hold"] = {"asleep_s": 120}
    await gateway.start()
    await engine(gateway.socket("r1"), model="tiny")
    large = await engine(gateway.socket("r2"), model="large", token_interval_s=60.0)
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    asked = asyncio.create_task(ask(gateway, "chat", chat("large", user="x" * size)))
    await large.until(lambda seen: seen.in_flight == 1)
    router = int(service_of(status)["router"]["pid"])
    stop(router)  # Else it would answer that its replica has ended.
    await large.stop(grace_s=0)  # Soon: the daemon ends a router that is silent for 5 s.
    os.kill(router, signal.SIGKILL)
    await gateway.until(lambda s: lost(s) == {"large"} and service_of(s)["waiting"] == 1)
    await engine(gateway.socket("r3"), model="large")
    assert (await asked)[0] == 200


async def test_nobody_waits_for_ever_and_the_others_answer_meanwhile(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """The wait ends as where no replica serves at all; a canary without the model is left out, a fallback answers."""
    both = {"services": [{"service": "chat", "model": "large"}, {"service": "code", "model": "next"}]}
    models = {"both": both, "large": {"service": "chat", "fallback": {"service": "code", "model": "next"}}}
    gateway = shared(make_gateway, models)
    gateway.settings["services"][0]["hold"] = {"asleep_s": 0.2}
    await gateway.start()
    await engine(gateway.socket("r1"), model="tiny")
    large = await engine(gateway.socket("r2"), model="large")
    following = await engine(gateway.socket("r1", "code"), model="next")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    await gateway.until(lambda s: service_of(s, "code")["missing"] is None)
    await large.stop()
    await gateway.until(lambda s: lost(s) == {"large"})
    status, answer = await ask(gateway, "chat", chat("large"))
    assert (status, answer["error"]["code"]) == (503, "no_replica")
    assert answer["error"]["message"].startswith("No replica of service chat serves model large now, and the request")
    for model in ("large", *["both"] * 20):
        status, answer = await ask(gateway, "api", chat(model))
        assert (status, answer["model"]) == (200, "next")
    assert following.ledger.received == 21


async def test_what_an_engine_unloads_is_not_waited_for(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It serves on, and says that it has no such adapter any more: the router's 404 is right."""
    gateway = make_gateway()
    gateway.settings["services"][0]["health"] = SHORT_HEALTH
    await gateway.start()
    here = await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP, names="lora")
    await until_names(gateway, "tiny", "lora")
    assert (await ask(gateway, "chat", chat("lora")))[0] == 200
    here.behave(names="")
    await until_names(gateway, "tiny", within_s=60)
    await gateway.until_workers(lambda workers: len(workers) == 1)
    status, answer = await ask(gateway, "chat", chat("lora"))
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert lost(await gateway.status()) == set()


@asynccontextmanager
async def judge(key: str) -> AsyncIterator[str]:
    """A server that says who may ask."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=204 if request.headers.get("Authorization") == f"Bearer {key}" else 401)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/auth"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("by", ["keys", "another server"])
async def test_who_may_not_ask_does_not_wait_either(make_gateway: MakeGateway, engine: StartEngine, by: str) -> None:
    """Which models there are, and which were lost, is for those who may come in."""
    gateway = make_gateway(services=("chat",))
    file = gateway.directory / "chat.keys"
    key = add_key(file, "alice")
    async with judge(key) as url:
        auth = {"keys_file": str(file)} if by == "keys" else {"url": url, "timeout_s": 60}
        gateway.settings["services"][0]["frontend"] = {"auth": auth}
        await gateway.start()
        await engine(gateway.socket("r1"), model="tiny")
        large = await engine(gateway.socket("r2"), model="large")
        await gateway.until_states({"r1": "serving", "r2": "serving"})
        await large.stop()
        await gateway.until(lambda s: lost(s) == {"large"})
        for model in ("tiny", "large"):
            assert (await ask(gateway, "chat", chat(model), Authorization="Bearer no"))[0] == 401
        allowed = {"Authorization": f"Bearer {key}"}
        assert (await ask(gateway, "chat", chat("tiny"), **allowed))[0] == 200
        waiting = asyncio.create_task(ask(gateway, "chat", chat("large"), **allowed))
        await gateway.until(lambda s: service_of(s)["waiting"] == 1)
        await engine(gateway.socket("r2"), model="large")
        assert (await waiting)[0] == 200
