"""Engines with several data-parallel ranks: SMG lists each as a worker of its own where it is told to know of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp

from examples.simulated import EngineKind
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of

RANKS = {"a": 4, "b": 2, "c": 2, "d": 1}
KINDS = {
    "a": EngineKind.SGLANG_HTTP,
    "b": EngineKind.SGLANG_GRPC,
    "c": EngineKind.VLLM_GRPC,
    "d": EngineKind.SGLANG_HTTP,
}
SERVING = dict.fromkeys(RANKS, "serving")


def aware(make_gateway: MakeGateway) -> Gateway:
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"args": ["--dp-aware"]}
    return gateway


def ranks_of(workers: list[dict[str, Any]]) -> Counter[str]:
    """Ready rows by the URL without its rank."""
    return Counter(row["url"].partition("@")[0] for row in workers if row["status"] == "ready")


async def start_all(gateway: Gateway, engine: StartEngine) -> dict[str, Any]:
    return {n: await engine(gateway.socket(n), KINDS[n], dp_size=RANKS[n], model=f"model-{n}") for n in RANKS}


async def remove_rank(gateway: Gateway, worker_id: str) -> None:
    headers = {"Authorization": f"Bearer {await gateway.router_key()}"}
    url = service_of(await gateway.status())["router"]["url"]
    async with aiohttp.ClientSession(headers=headers) as session, session.delete(f"{url}/workers/{worker_id}") as said:
        assert said.status == 202


async def test_every_rank_is_a_worker_and_all_of_them_are_one_replica(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Registered once, none of them taken for an orphan, each used; a restart of the daemon changes nothing."""
    gateway = aware(make_gateway)
    await gateway.start()
    engines = await start_all(gateway, engine)
    await gateway.until_states(SERVING)
    workers = await gateway.workers()
    assert sorted(ranks_of(workers).values()) == sorted(RANKS.values())
    before = {row["url"]: row["id"] for row in workers}
    for _ in range(12):
        await stream_chat(gateway, 2, model="model-a")
    used = {seen.body["data_parallel_rank"] for seen in engines["a"].ledger.requests}
    assert used <= {0, 1, 2, 3}
    assert len(used) > 1
    await gateway.kill()
    await gateway.start()
    await gateway.until_states(SERVING)
    await asyncio.sleep(2 * 2.0)  # two rescans: that nothing happens can only be waited for
    assert {row["url"]: row["id"] for row in await gateway.workers()} == before
    assert gateway.events("worker.orphan") == []
    assert gateway.events("worker.operation_failed") == []


async def test_a_drain_removes_every_rank_and_a_resume_brings_them_back(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """By the daemon that registered them, and by one that found them there."""
    gateway = aware(make_gateway)
    await gateway.start()
    await start_all(gateway, engine)
    await gateway.until_states(SERVING)
    for restarted in (False, True):
        if restarted:
            await gateway.terminate()
            await gateway.start()
            await gateway.until_states(SERVING)
        bridge = replica_of(await gateway.status(), "a")["bridge"]
        code, _, err = await gateway.cli("drain", "chat", "a")
        assert (code, err) == (0, "no replica would serve model model-a without a: it is the model's only replica\n")
        assert not [row for row in await gateway.workers() if bridge in row["url"]]
        await gateway.cli("resume", "chat", "a")
        await gateway.until_states(SERVING)
        assert ranks_of(await gateway.workers())[f"http://{bridge}"] == 4
    assert gateway.events("worker.operation_failed") == []


async def test_a_replica_that_goes_takes_all_its_ranks_along(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """None of them is left to be asked."""
    gateway = aware(make_gateway)
    await gateway.start()
    engines = await start_all(gateway, engine)
    await gateway.until_states(SERVING)
    for name in ("a", "b"):
        await engines[name].stop()
    await gateway.until_states({"c": "serving", "d": "serving"})
    assert sorted(ranks_of(await gateway.workers()).values()) == [1, 2]


async def test_a_rank_that_is_lost_is_put_right(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The engine is registered anew, since SMG adds no single rank."""
    gateway = aware(make_gateway)
    await gateway.start()
    await engine(gateway.socket("a"), dp_size=4)
    await gateway.until_states({"a": "serving"})
    workers = await gateway.workers()
    await remove_rank(gateway, next(row["id"] for row in workers if row["url"].endswith("@2")))
    old = {row["id"] for row in workers}
    await gateway.until_workers(
        lambda rows: list(ranks_of(rows).values()) == [4] and not old & {row["id"] for row in rows}, within_s=60
    )
    await gateway.until_states({"a": "serving"})


async def test_without_being_told_the_router_knows_one_worker(gateway: Gateway, engine: StartEngine) -> None:
    """The engine shares its requests out by itself."""
    await start_all(gateway, engine)
    await gateway.until_states(SERVING)
    assert sorted(ranks_of(await gateway.workers()).values()) == [1, 1, 1, 1]
