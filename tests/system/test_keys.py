"""Engines that ask for an API key: one for each, shown by the probe and by the router."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from examples.simulated import EngineKind
from gateway_sidecar.supervision.process import start_ticks
from tests.system.clients import ask, stream_chat
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway


def give_key(gateway: Gateway, replica: str, key: str) -> None:
    """Writes `<replica>.yaml` and the key beside the socket."""
    path = gateway.socket(replica).with_suffix(".key")
    path.write_text(key)
    path.chmod(0o600)
    gateway.socket(replica).with_suffix(".yaml").write_text(f"api_key_file: {path.name}\n")


@pytest.mark.parametrize("guard_all", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        EngineKind.SGLANG_HTTP,
        EngineKind.VLLM_HTTP,
        EngineKind.TRTLLM_HTTP,
        EngineKind.OPENAI_HTTP,
        EngineKind.SGLANG_GRPC,
        EngineKind.VLLM_GRPC,
    ],
)
async def test_an_engine_with_a_key_is_served(
    gateway: Gateway, engine: StartEngine, kind: EngineKind, guard_all: bool
) -> None:
    """Identified, judged healthy again and again, registered and asked: all with its own key."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), kind, require_key="sekrit", guard_all=guard_all)
    await gateway.until_states({"r1": "serving"}, within_s=30)
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert "r1" in await ask(gateway, "tiny", stream=True)
    assert one.ledger.failed == 0


def keyed_pid(gateway: Gateway) -> int:
    (pid_file,) = (gateway.directory / "run" / "keyed").glob("*/nginx.pid")
    return int(pid_file.read_text())


async def test_a_key_that_is_changed_is_shown_at_once_and_cuts_nobody_off(
    gateway: Gateway, engine: StartEngine
) -> None:
    """A stream that began with the old key goes on; the key is not in `status`, nor in the log."""
    give_key(gateway, "r1", 'se$kr"it')
    one = await engine(gateway.socket("r1"), require_key='se$kr"it', guard_all=True, token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"}, within_s=30)
    pid = keyed_pid(gateway)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 80, started))
    await started.wait()
    one.behave(require_key="another")
    give_key(gateway, "r1", "another")
    async with asyncio.timeout(30):
        while not await answers(gateway):
            await asyncio.sleep(0.05)
    assert (await stream).split()[-1] == "79"
    assert keyed_pid(gateway) == pid
    assert "another" not in gateway.log() + str(await gateway.status())


async def answers(gateway: Gateway) -> bool:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    async with gateway.client() as client, client.post(f"{gateway.url()}/v1/chat/completions", json=chat) as answer:
        return answer.status == 200


async def test_a_killed_daemon_leaves_what_shows_the_key(gateway: Gateway, engine: StartEngine) -> None:
    """The next one takes it up, and ends it when the replica is gone."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), require_key="sekrit", token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"}, within_s=30)
    pid = keyed_pid(gateway)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    await gateway.kill()
    await gateway.start()
    await gateway.until_states({"r1": "serving"}, within_s=30)
    assert (await stream).split()[-1] == "59"
    assert keyed_pid(gateway) == pid
    assert gateway.events("worker.stray") == []
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not await answers(gateway):
            await asyncio.sleep(0.05)
    pid = keyed_pid(gateway)
    await one.stop()
    await gateway.until_states({}, within_s=30)
    async with asyncio.timeout(30):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)


async def test_a_key_that_is_taken_away_is_not_shown_any_more(gateway: Gateway, engine: StartEngine) -> None:
    """The bridge leads to the engine itself again."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), require_key="sekrit")
    await gateway.until_states({"r1": "serving"}, within_s=30)
    pid = keyed_pid(gateway)
    one.behave(require_key=None)
    gateway.socket("r1").with_suffix(".yaml").unlink()
    async with asyncio.timeout(30):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)
    await gateway.until_states({"r1": "serving"}, within_s=30)
    assert await answers(gateway)
