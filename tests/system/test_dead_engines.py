"""Engines that say they are well and do no work: their requests are the evidence, and their own counters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from examples.simulated import EngineKind, SimulatedEngine
from gateway_sidecar.supervision.loops import cancelled
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of


async def two_engines(
    make_gateway: MakeGateway, engine: StartEngine, kind: EngineKind, **health: float
) -> tuple[Gateway, SimulatedEngine]:
    """A gateway with the replicas r1 and r2, which get the same requests in turn, and r1's engine."""
    gateway = make_gateway()
    gateway.settings["services"][0] |= {"health": health, "router": {"policy": "round_robin"}}
    await gateway.start()
    first = await engine(gateway.socket("r1"), kind)
    await engine(gateway.socket("r2"), kind)
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    return gateway, first


@asynccontextmanager
async def asked(gateway: Gateway, clients: int = 4) -> AsyncIterator[list[str]]:
    """Clients that ask on and on, and what they were answered; who is not answered gives up after 30 s."""
    answers: list[str] = []

    async def ask_on(*, stream: bool) -> None:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(30):
                    answers.append(await ask(gateway, "tiny", stream=stream))
            await asyncio.sleep(0.02)

    asking = [asyncio.create_task(ask_on(stream=bool(number % 2))) for number in range(clients)]
    try:
        yield answers
    finally:
        await cancelled(*asking)


@pytest.mark.parametrize("kind", [EngineKind.VLLM_HTTP, EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC])
async def test_engine_whose_core_hangs_is_dead_though_it_says_it_is_well_and_back_when_it_works(
    make_gateway: MakeGateway, engine: StartEngine, kind: EngineKind
) -> None:
    """Requests wait, others are answered, and its own counters stand still: that proves it."""
    gateway, hanging = await two_engines(make_gateway, engine, kind, hung_after_s=4)
    before = replica_of(await gateway.status(), "r1")
    async with asked(gateway):
        hanging.behave(hung_core=True)
        status = await gateway.until_states({"r1": "dead", "r2": "serving"})
        assert "counters stand still" in replica_of(status, "r1")["reason"]
        hanging.behave(hung_core=False)
        after = replica_of(await gateway.until_states({"r1": "serving", "r2": "serving"}, within_s=120), "r1")
        assert after["bridge"] == before["bridge"]


async def test_engine_that_works_slowly_is_not_dead(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Busy is not dead: no byte comes for longer than the bound, and its counters move.

    The bound is long enough for a machine on which all engines stand still together for some seconds.
    """
    gateway, busy = await two_engines(make_gateway, engine, EngineKind.VLLM_HTTP, hung_after_s=8)
    async with asked(gateway) as answers:
        await gateway.until(lambda _: len(answers) > 20)
        busy.behave(token_interval_s=0.4)
        asking = [asyncio.create_task(ask(gateway, "tiny", stream=False, tokens=30)) for _ in range(4)]
        assert any("r1" in answer for answer in await asyncio.gather(*asking))
        assert gateway.events("replica.ejected") == []


@pytest.mark.parametrize("kind", [EngineKind.VLLM_HTTP, EngineKind.VLLM_GRPC])
async def test_engine_whose_core_died_is_dead_with_the_first_request_that_fails(
    make_gateway: MakeGateway, engine: StartEngine, kind: EngineKind
) -> None:
    """One failed request, which the router tried elsewhere, and its own word: no question about its health is due."""
    gateway, dying = await two_engines(make_gateway, engine, kind, interval_s=3600)
    async with asked(gateway):
        dying.behave(dead_core=True)
        await gateway.until_states({"r1": "dead", "r2": "serving"})
        dying.behave(dead_core=False)
        await gateway.until_states({"r1": "serving", "r2": "serving"})


async def test_engine_that_fails_whatever_it_is_asked_is_dead(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Its health is fine, no request to it succeeds, and others answer the same requests."""
    gateway, failing = await two_engines(make_gateway, engine, EngineKind.VLLM_HTTP)
    async with asked(gateway):
        failing.behave(fail_rate=1.0)
        status = await gateway.until_states({"r1": "dead", "r2": "serving"})
        assert "in a row failed" in replica_of(status, "r1")["reason"]
