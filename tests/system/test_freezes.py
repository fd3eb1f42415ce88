"""A short piece of freezes, the same each time; `make freezes` is the long one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import aiohttp
import pytest

from examples.simulated import EngineKind, Role
from tests.chaos.check import story, summary
from tests.chaos.events import (
    DAEMON,
    EVERYTHING,
    NGINX,
    Event,
    Freeze,
    Round,
    Schedule,
    Starve,
    Stopped,
    engines_in,
    router_of,
)
from tests.chaos.freezes import check_freezes, engines
from tests.chaos.schedule import CHAT, PAIRS
from tests.chaos.stage import Stage
from tests.stopping import stop
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import replica_of, service_of

SEED = 1
FROZEN_S = 6.0  # Twice what SMG gives a silent prefill engine.
MESSAGES = [{"role": "user", "content": "x"}]
PAUSED = Freeze(at=0.3, parts=(Stopped(who=EVERYTHING, for_s=4.5),))
ROUTERS_AND_DAEMON = tuple(
    Freeze(
        at=0.3,
        parts=(
            Stopped(who=router_of(CHAT), for_s=6.0),
            Stopped(who=router_of(PAIRS), for_s=6.0),
            Stopped(who=DAEMON, after_s=after_s, for_s=4.5),
        ),
    )
    for after_s in (0.5, 1.2)
)
"""The routers are silent for six seconds, of three that they may be; the daemon could hear that for one and a half."""
SOME = Freeze(
    at=0.3,
    parts=(
        Stopped(who=DAEMON, for_s=3.0),
        Stopped(who=NGINX, after_s=0.5, for_s=2.0),
        Stopped(who=engines_in(1), for_s=3.5),
    ),
)
STARVED = Starve(at=0.3, load=20, for_s=4.0)


@pytest.mark.timeout(240)
async def test_freezes_and_starvation_cost_nobody_their_life() -> None:
    """Nobody is killed, or taken out, for a silence that the daemon slept through; no request fails for it."""
    events: tuple[Event, ...] = (PAUSED, *ROUTERS_AND_DAEMON, SOME, STARVED)
    schedule = Schedule(SEED, engines(SEED), tuple(Round(0.0, (event,)) for event in events))
    stage = Stage(schedule, clients=6, muster_every=0)
    history = await stage.play()
    violations = check_freezes(history)
    assert not violations, "\n\n".join(story(history, one) for one in violations[:3])
    assert len(history.requests) > 50, summary(history)
    assert not any(one.lost for one in history.frozen)
    shutil.rmtree(stage.gateway.directory)


async def test_a_frozen_router_keeps_its_pair(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """SMG counts its own stall as a prefill engine's silence: that costs requests in flight, and no worker."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 60}  # So that the daemon does not end it.
    await gateway.start()
    pair = [
        await engine(gateway.socket(name), EngineKind.VLLM_GRPC, role=role, slow_s=1.5)
        for name, role in (("p1", Role.PREFILL), ("d1", Role.DECODE))
    ]
    before = await gateway.until_states({"p1": "serving", "d1": "serving"})
    pid = service_of(before)["router"]["pid"]
    async with aiohttp.ClientSession() as session:

        async def chat() -> tuple[int, str]:
            url, body = f"{gateway.url()}/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
            async with session.post(url, json=body) as answer:
                return answer.status, "" if answer.status == 200 else (await answer.json())["error"]["code"]

        in_flight = [asyncio.create_task(chat()) for _ in range(25)]
        await gateway.until_workers(lambda workers: any(worker["load"] for worker in workers))
        stop(pid)
        await asyncio.sleep(FROZEN_S)
        os.kill(pid, signal.SIGCONT)
        assert set(await asyncio.gather(*in_flight)) <= {(200, ""), (504, "prefill_worker_silent")}
        for one in pair:
            one.behave(slow_s=0.0)  # A busy machine must not be what is silent for 3 s.
        assert {await chat() for _ in range(5)} == {(200, "")}
    assert all(worker["status"] == "ready" for worker in await gateway.workers())
    after = await gateway.status()
    for name in ("p1", "d1"):
        assert replica_of(after, name)["worker_id"] == replica_of(before, name)["worker_id"]
    assert gateway.events("replica.ejected") == []
