"""Routers that somebody else runs learn of a service's replicas from files; here a real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from examples.simulated import EngineKind
from tests.envoy import ENVOY, WHY_NOT, Envoy
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, PortBlock, replica_of

KEY = "a-key-of-the-bridges-0123456789"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def with_files(gateway: Gateway, *formats: str, read_within_s: float = 1.0) -> dict[str, Path]:
    """Has it write one file for each format; where they are."""
    (gateway.directory / "files").mkdir(mode=0o755)
    key = gateway.directory / "bridges.key"
    key.write_text(KEY)
    key.chmod(0o600)
    gateway.settings["bridges"]["key_file"] = str(key)
    files = {name: gateway.directory / "files" / f"{name}.json" for name in formats}
    gateway.settings["services"][0]["endpoints"] = [
        {"path": str(path), "format": name, "read_within_s": read_within_s} for name, path in files.items()
    ]
    gateway.configure()
    return files


@pytest_asyncio.fixture
async def envoy(tmp_path: Path) -> AsyncIterator[Envoy]:
    """One that can be started, and is ended with the test."""
    if not ENVOY.exists():
        pytest.skip(WHY_NOT)
    ports = PortBlock()
    made = Envoy(tmp_path, ports.first, ports.first + 1)
    yield made
    await made.stop()
    ports.release()


async def test_an_envoy_of_somebody_else_follows_the_file(
    make_gateway: MakeGateway, engine: StartEngine, envoy: Envoy
) -> None:
    """Under load: a replica comes, drains while it streams, and is safe to stop when that has ended. None fails."""
    gateway = make_gateway()
    file = with_files(gateway, "envoy")["envoy"]
    await gateway.start()
    here = await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP, token_interval_s=0.1)
    port = {"r1": replica_of(await gateway.until_states({"r1": "serving"}), "r1")["bridge"]}
    await envoy.start(file, "chat", KEY)
    await envoy.until_knows({port_of(port["r1"]): "HEALTHY"})
    begun = asyncio.Event()
    streaming = asyncio.create_task(stream(envoy, 1000, begun))  # On the only one that there is.
    while not begun.is_set():
        assert not streaming.done(), "a client failed"
        await asyncio.sleep(0.01)
    stop, outcomes = asyncio.Event(), set[int]()
    load = [asyncio.create_task(ask_on(envoy, stop, outcomes)) for _ in range(3)]
    there = await engine(gateway.socket("r2"), EngineKind.VLLM_HTTP)
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    port["r2"] = replica_of(status, "r2")["bridge"]
    await envoy.until_knows({port_of(each): "HEALTHY" for each in port.values()})
    draining = asyncio.create_task(gateway.cli("drain", "chat", "r1", "--timeout", "60"))
    await envoy.until_knows({port_of(port["r2"]): "HEALTHY"})
    assert not draining.done()
    here.behave(token_interval_s=0.0)
    code, out, err = await draining
    assert code == 0, out + err
    before = there.ledger.received
    while there.ledger.received < before + 20:
        assert not any(client.done() for client in load), f"a client failed: {load}"
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*load)
    assert (await streaming).count("choices") >= 1000
    assert outcomes == {200}


async def test_files_say_the_same_to_all_and_are_emptied_when_the_service_goes(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """The bridges serve who shows the key of `bridges.key_file`, and nobody else; the next daemon changes nothing."""
    gateway = make_gateway(services=("chat", "code"))
    files = with_files(gateway, "json", "llm-d", "production-stack")
    assert (await gateway.cli("check"))[0] == 0
    await gateway.start()
    await engine(gateway.socket("r1"))
    url = "http://" + replica_of(await gateway.until_states({"r1": "serving"}), "r1")["bridge"]
    await until_says(files["production-stack"], url)
    assert json.loads(files["production-stack"].read_text())["static_models"] == "tiny"
    assert [row["url"] for row in json.loads(files["json"].read_text())["endpoints"]] == [url]
    [row] = json.loads(files["llm-d"].read_text())["endpoints"]
    assert url == f"http://{row['address']}:{row['port']}"
    for key, status in ((KEY, 200), ("another", 403)):
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
            session.post(f"{url}/v1/chat/completions", json=BODY) as answer,
        ):
            assert answer.status == status
    inodes = [file.stat().st_ino for file in files.values()]
    assert await gateway.terminate() == 0
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    assert [file.stat().st_ino for file in files.values()] == inodes
    del gateway.settings["services"][0]
    gateway.configure()
    assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: removed\n")
    assert not any(url in file.read_text() for file in files.values())


async def test_check_names_a_file_that_could_not_be_written(make_gateway: MakeGateway) -> None:
    """No directory, or a key that is none: one clear line for each."""
    gateway = make_gateway()
    with_files(gateway, "json")
    (gateway.directory / "bridges.key").write_text("short")
    gateway.settings["services"][0]["endpoints"][0]["path"] = "/no/such/directory/chat.json"
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code == 1
    assert "FAIL  chat: endpoints: there is no directory /no/such/directory; make it" in out
    assert "FAIL  bridges.key_file: " in out


def port_of(bridge: str) -> int:
    return int(bridge.rpartition(":")[2])


async def until_says(file: Path, text: str) -> None:
    async with asyncio.timeout(60):
        while not file.exists() or text not in file.read_text():
            await asyncio.sleep(0.02)


async def ask_on(envoy: Envoy, stop: asyncio.Event, outcomes: set[int]) -> None:
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            async with session.post(f"{envoy.url}/v1/chat/completions", json=BODY) as answer:
                await answer.read()
                outcomes.add(answer.status)


async def stream(envoy: Envoy, tokens: int, begun: asyncio.Event) -> str:
    body = {**BODY, "max_tokens": tokens, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{envoy.url}/v1/chat/completions", json=body) as answer,
    ):
        await answer.content.readline()
        begun.set()
        return await answer.text()
