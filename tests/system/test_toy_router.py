"""The running daemon with a kind of router that another package brings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.toy_router import install_toy


def with_toy(site: Path) -> Mapping[str, str]:
    """The environment in which the toy is installed."""
    install_toy(site)
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


async def test_a_service_changes_its_kind_of_router_while_the_daemon_is_away(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """The next daemon adopts the old router as what it is, and replaces it once the new one has every replica."""
    env = dict(with_toy(tmp_path))
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"type": "toy"}
    gateway.configure()
    await gateway.start(env=env)
    await engine(gateway.socket("r1"))
    old = service_of(await gateway.until_states({"r1": "serving"}))["router"]
    asking = asyncio.create_task(ask_on(gateway))
    await gateway.terminate()
    gateway.settings["services"][0]["router"] = {"type": "smg"}
    gateway.configure()
    await gateway.start(env=env)
    after = await gateway.until(lambda status: service_of(status)["router"]["pid"] not in (None, old["pid"]))
    assert service_of(after)["router"]["type"] == "smg"
    assert gateway.events("router.adopted")[-1]["pid"] == old["pid"]
    assert gateway.events("router.replaced")[-1]["old_pid"] == old["pid"]
    assert not gateway.events("router.not_adopted")
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert await ask(gateway, "tiny", stream=True)


async def ask_on(gateway: Gateway) -> None:
    """Asks again and again; raises if one request fails."""
    while True:
        assert await ask(gateway, "tiny", stream=False)


async def test_a_toy_serves(make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path) -> None:
    """It is checked, started, told of replicas, asked through the service address and the bridge, and ended."""
    env = dict(with_toy(tmp_path))
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"type": "toy"}
    gateway.configure()
    code, out, err = await gateway.cli("check", before=["env", *(f"{k}={v}" for k, v in env.items())])
    assert code == 0, out + err
    assert "chat: the toy is run by" in out
    await gateway.start(env=env)
    here = await engine(gateway.socket("r1"))
    there = await engine(gateway.socket("r2"))
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    router = service_of(status)["router"]
    assert (router["type"], router["state"]) == ("toy", "up")
    for stream in (True, True, False, False):
        assert await ask(gateway, "tiny", stream=stream)
    assert (len(here.ledger.requests), len(there.ledger.requests)) == (2, 2)
    async with aiohttp.ClientSession() as client, client.post(f"{gateway.url()}/workers", json={}) as answer:
        assert answer.status == 404, "clients do not control it"
    await there.stop()
    gateway.socket("r2").unlink(missing_ok=True)
    await gateway.until_states({"r1": "serving"})
    assert await ask(gateway, "tiny", stream=False)
