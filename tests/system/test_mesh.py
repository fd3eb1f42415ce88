"""Real gateways on machines of their own, whose SMGs are in a mesh: one prefix tree, and no worker of anybody else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway_sidecar.domain.mesh import mark_of
from gateway_sidecar.routers.smg.mesh import OWNER, owner_of
from tests.namespaces import why_not
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.machines import LATE_S, Fleet, ask, on_machines, prompts, until_mesh, who_answers

WHY_NOT = why_not()
_TOLD_S = 8.0
"""SMG tells what is new once a second. A router that cannot place it asks for the whole tree, and again after 5 s."""
_ROUNDS = 3
"""A busy machine may miss one."""
_RECONCILED_S = 35.0
"""SMG takes up what it lacks of others' workers every 30 s."""
_FORGOTTEN_S = 65.0
"""A router that is gone is forgotten by the others, with its workers, within a minute."""

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest_asyncio.fixture
async def fleet(make_gateway: MakeGateway) -> AsyncIterator[Fleet]:
    """Two gateways that run."""
    with on_machines(make_gateway, 2, {"type": "smg", "mesh": True}) as made:
        await asyncio.gather(*(gateway.start() for gateway in made.gateways))
        yield made


async def until_nobody_elses(gateway: Gateway, *replicas: str) -> None:
    """SMG has a worker for each of these, ready, that was registered at it, and no other worker."""
    marks = sorted(mark_of("chat", replica) for replica in replicas)
    owner = owner_of(await gateway.router_key())

    def is_so(workers: list[dict[str, Any]]) -> bool:
        mine = [it for it in workers if it["status"] == "ready" and it["labels"].get(OWNER) == owner]
        return len(mine) == len(workers) and sorted(it["url"][-6:] for it in mine) == marks

    await gateway.until_workers(is_so, within_s=LATE_S)


async def test_a_prompt_meets_the_same_replica_through_every_gateway(fleet: Fleet, engine: StartEngine) -> None:
    """The prefix cache that was filled through one gateway is found through another one. A drain at one of them ends
    requests at all, for good, whatever their routers tell each other meanwhile.
    """
    one, two = fleet.gateways
    engines = {}
    for replica in ("r1", "r2"):
        engines[replica] = await engine(one.socket(replica))
        await fleet.put(replica, one.socket(replica))
    await fleet.until_serving("r1", "r2")
    await fleet.until_in_mesh()
    for gateway in fleet.gateways:
        await until_nobody_elses(gateway, "r1", "r2")
    for seed in range(_ROUNDS):
        first = [await who_answers(one, engines, prompt) for prompt in prompts(seed)]
        assert set(first) == {"r1", "r2"}
        await asyncio.sleep(_TOLD_S)  # There is no event for a tree that has been told.
        second = [await who_answers(two, engines, prompt) for prompt in prompts(seed)]
        if first == second:
            break
    assert first == second

    url = "http://daemon/v1/services/chat/replicas/r1/drain?timeout_s=60"
    async with two.session.post(url) as answer:
        assert (await answer.json())["drained"], await answer.text()
    stopped = engines["r1"].ledger.received
    end = time.monotonic() + _RECONCILED_S
    while time.monotonic() < end:
        assert await ask(one, f"{time.monotonic()}") == 200
        assert await ask(two, f"{time.monotonic()}") == 200
        await asyncio.sleep(0.1)
    assert engines["r1"].ledger.received == stopped
    for gateway in fleet.gateways:
        await until_nobody_elses(gateway, "r2")


async def test_a_url_that_means_another_replica_leads_nowhere(fleet: Fleet, engine: StartEngine) -> None:
    """What another gateway's router tells cannot reach an engine that its URL does not mean: the bridge says 503, upon
    which SMG asks another worker.
    """
    one, _ = fleet.gateways
    seen = await engine(one.socket("r1"))
    await fleet.put("r1", one.socket("r1"))
    await fleet.until_serving("r1")
    bridge = f"http://{service_of(await one.status())['replicas'][0]['bridge']}"
    key = json.loads((one.directory / "run" / "processes.json").read_text())["bridge_key"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    before = seen.ledger.received
    async with one.client(headers={"Authorization": f"Bearer {key}"}) as session:
        for path, expected in ((f"/=~{mark_of('chat', 'r1')}", 200), (f"/=~{mark_of('chat', 'r2')}", 503)):
            async with session.post(f"{bridge}{path}/v1/chat/completions", json=body) as answer:
                assert (path, answer.status) == (path, expected)
    assert seen.ledger.received == before + 1


async def test_a_gateway_goes_on_when_its_peers_or_the_store_are_gone(fleet: Fleet, engine: StartEngine) -> None:
    """Each gateway has every worker itself: those of a router that is gone leave only that router's peers' minds. A
    router that ended is back in the mesh by itself.
    """
    one, two = fleet.gateways
    for replica in ("r1", "r2"):
        await engine(one.socket(replica))
        await fleet.put(replica, one.socket(replica))
    await fleet.until_serving("r1", "r2")
    await fleet.until_in_mesh()

    os.kill(service_of(await one.status())["router"]["pid"], signal.SIGKILL)
    await one.until(lambda it: service_of(it)["router"]["restarts"] == 1, within_s=LATE_S)
    await fleet.until_in_mesh()
    await until_nobody_elses(one, "r1", "r2")

    fleet.etcd.kill()
    await one.until(lambda it: it["store"]["state"] == "away", within_s=LATE_S)
    for gateway in fleet.gateways:
        assert await ask(gateway) == 200
    await one.kill()
    for pid in one.left_running():
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + _FORGOTTEN_S
    while time.monotonic() < end:
        assert await ask(two) == 200
        await asyncio.sleep(0.25)
    await until_nobody_elses(two, "r1", "r2")


async def test_a_mesh_that_fell_apart_is_whole_again_and_a_daemon_that_is_started_again_keeps_its_place(
    fleet: Fleet, engine: StartEngine
) -> None:
    """SMG gives up a router that it cannot reach for a minute, for good: a router is replaced by one that joins again.
    An adopted router stays in the mesh as it is.
    """
    one, two = fleet.gateways
    await engine(one.socket("r1"))
    await fleet.put("r1", one.socket("r1"))
    await fleet.until_serving("r1")
    await fleet.until_in_mesh()

    before = [service_of(await gateway.status())["router"]["pid"] for gateway in fleet.gateways]
    await one.terminate()
    await one.start()
    await fleet.until_in_mesh()
    assert [service_of(await gateway.status())["router"]["pid"] for gateway in fleet.gateways] == before

    cut = ((one, "192.0.2.12/32"), (two, "192.0.2.11/32"))
    for gateway, there in cut:
        assert gateway.namespace is not None
        gateway.namespace.ip("route", "add", "blackhole", there)
    await until_mesh(one, "not connected to gw-2")
    end = time.monotonic() + _FORGOTTEN_S
    while time.monotonic() < end:
        for gateway in fleet.gateways:
            assert await ask(gateway) == 200
        await asyncio.sleep(0.25)
    for gateway, there in cut:
        assert gateway.namespace is not None
        gateway.namespace.ip("route", "del", "blackhole", there)
    await fleet.until_in_mesh()
    after = [service_of(await gateway.status())["router"]["pid"] for gateway in fleet.gateways]
    assert (after[0], after[1] == before[1]) == (before[0], False), "the one whose name comes later has joined again"
    for gateway in fleet.gateways:
        await until_nobody_elses(gateway, "r1")


async def test_a_mesh_is_switched_off_and_on_by_a_reload(fleet: Fleet, engine: StartEngine) -> None:
    """As any other setting of the router: it is replaced, and no request fails."""
    one, two = fleet.gateways
    await engine(one.socket("r1"))
    await fleet.put("r1", one.socket("r1"))
    await fleet.until_serving("r1")
    await fleet.until_in_mesh()
    done = asyncio.Event()

    async def keep_asking() -> list[int]:
        answers = []
        while not done.is_set():
            answers.append(await ask(two))
        return answers

    asking = asyncio.create_task(keep_asking())
    service = two.settings["services"][0]
    for mesh, words in ((False, None), (True, "with gw-1")):
        two.configure(services=[{**service, "router": {"type": "smg", "mesh": mesh}}])
        code, _, error = await two.cli("reload")
        assert code == 0, error
        await until_mesh(two, words)
    done.set()
    assert set(await asking) == {200}
    await fleet.until_in_mesh()
