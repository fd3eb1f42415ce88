"""A service without a replica that could answer: requests wait for one, and what only asks is answered."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import aiohttp
import pytest

from examples.simulated import EngineKind, Role
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_operation import metrics_of
from tests.system.test_waiting import BODY, broken_router, post, repair_router, use_own_router_script


async def until_missing(gateway: Gateway, missing: str | None) -> None:
    await gateway.until(lambda status: service_of(status)["missing"] == missing)


async def test_requests_wait_for_the_first_replica(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """To zero and back: nobody gets an error, and `/v1/models` goes on naming what was served."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 120}
    await gateway.start()
    here = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_missing(gateway, None)
    await here.stop(grace_s=0)
    await gateway.until_states({})
    await until_missing(gateway, "replica")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        waiting = [asyncio.create_task(post(session, gateway)) for _ in range(100)]
        leaving = asyncio.create_task(post(session, gateway))
        await gateway.until(lambda s: service_of(s)["waiting"] == 101)
        leaving.cancel()
        await gateway.until(lambda s: service_of(s)["waiting"] == 100)
        async with session.get(f"{gateway.url()}/v1/models") as response:
            (model,) = (await response.json())["data"]
        assert (model["id"], model["status"]) == ("tiny", "asleep")
        async with session.get(f"{gateway.url()}/health") as response:
            assert response.status == 200, "health is the router's to tell"
        _, shown, _ = await gateway.cli("status")
        assert "no replica of service chat serves; 100 requests wait" in shown
        back = await engine(gateway.socket("r2"), EngineKind.VLLM_GRPC)
        assert Counter(code for code, _ in await asyncio.gather(*waiting)) == {200: 100}
        assert back.ledger.received == 100
        async with session.get(f"{gateway.url()}/v1/models") as response:
            assert "asleep" not in await response.text()


async def test_models_are_still_named_after_a_restart_of_the_daemon(gateway: Gateway, engine: StartEngine) -> None:
    here = await engine(gateway.socket("r1"), model="large")
    await gateway.until_states({"r1": "serving"})
    await here.stop(grace_s=0)
    await until_missing(gateway, "replica")
    assert await gateway.terminate() == 0
    await gateway.start()
    await until_missing(gateway, "replica")
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url()}/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["large"]


@pytest.mark.parametrize(("there", "missing"), [("prefill", "decode"), ("decode", "prefill")])
async def test_half_a_pair_says_what_is_missing(
    make_gateway: MakeGateway, engine: StartEngine, there: str, missing: str
) -> None:
    """In the 503, in `status` and in the metrics."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 0}
    await gateway.start()
    await engine(gateway.socket("p1"), role=Role(there), bootstrap_port=8998)
    await gateway.until_states({"p1": "serving"})
    await until_missing(gateway, missing)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=BODY) as response,
    ):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        error = (await response.json())["error"]
    assert error["code"] == f"waiting_for_{missing}"
    assert f"waiting for {missing}" in error["message"]
    metrics = await metrics_of(gateway)
    told = frozenset({("service", "chat"), ("missing", missing)})
    assert metrics["gateway_sidecar_service_missing", told] == 1
    await engine(gateway.socket("d1"), role=Role(missing), bootstrap_port=8998)
    await until_missing(gateway, None)


async def test_killed_router_does_not_hide_that_nobody_serves(gateway: Gateway) -> None:
    """Without a replica a new router has nobody to wait for; requests wait for a replica then."""
    await until_missing(gateway, "replica")
    pid = service_of(await gateway.status())["router"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await gateway.until(lambda s: service_of(s)["router"]["pid"] not in (None, pid) and s["ready"])
    await until_missing(gateway, "replica")


async def test_who_only_asks_waits_for_a_router_and_for_no_replica(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A health check that came while the router was away is answered when it is back, replicas or none."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"timeout_s": 120, "asleep_s": 120}
    use_own_router_script(gateway)
    await gateway.start()
    here = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await here.stop(grace_s=0)
    await until_missing(gateway, "replica")
    broken_router(gateway)
    os.kill(service_of(await gateway.status())["router"]["pid"], signal.SIGKILL)
    await until_missing(gateway, "router")

    async def get(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
        async with session.get(f"{gateway.url()}{path}", timeout=aiohttp.ClientTimeout(total=60)) as response:
            return response.status, await response.text()

    async with aiohttp.ClientSession() as session:
        asked = asyncio.gather(get(session, "/health"), get(session, "/v1/models"))
        await gateway.until(lambda s: service_of(s)["waiting"] == 2)
        repair_router(gateway)
        (health, _), (models, text) = await asked
    assert (health, models) == (200, 200)
    assert '"asleep"' in text
    assert service_of(await gateway.status())["missing"] == "replica"
