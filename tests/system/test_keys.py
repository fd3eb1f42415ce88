"""Engines that ask for an API key: one for each, shown by the probe and by the router."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from examples.simulated import EngineKind
from gateway_sidecar.domain.model import Access, PeerAddress
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.key_proxy import Keyed, KeyedNginx
from gateway_sidecar.nginx.peer_proxy import PeerNginx, PeerPlaces
from gateway_sidecar.nginx.server import NginxProgram, find_nginx
from gateway_sidecar.nginx.small import SmallPlaces
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import start_ticks
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import RULES
from tests.system.clients import ask, stream_chat
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway, PortBlock, replica_of, until_gone


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
    await gateway.until_states({"r1": "serving"})
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
    await gateway.until_states({"r1": "serving"})
    pid = keyed_pid(gateway)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 80, started))
    await started.wait()
    one.behave(require_key="another")
    give_key(gateway, "r1", "another")
    async with asyncio.timeout(60):
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
    await gateway.until_states({"r1": "serving"})
    pid = keyed_pid(gateway)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    await gateway.kill()
    await gateway.start()
    await gateway.until_states({"r1": "serving"})
    assert (await stream).split()[-1] == "59"
    assert keyed_pid(gateway) == pid
    assert gateway.events("worker.orphan") == []
    os.kill(pid, signal.SIGKILL)
    await until_gone(pid)
    async with asyncio.timeout(60):
        while not await answers(gateway):
            await asyncio.sleep(0.05)
    pid = keyed_pid(gateway)
    await one.stop()
    await gateway.until_states({})
    async with asyncio.timeout(60):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)


async def test_a_key_that_is_taken_away_is_not_shown_any_more(gateway: Gateway, engine: StartEngine) -> None:
    """The bridge leads to the engine itself again."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), require_key="sekrit")
    await gateway.until_states({"r1": "serving"})
    pid = keyed_pid(gateway)
    one.behave(require_key=None)
    gateway.socket("r1").with_suffix(".yaml").unlink()
    async with asyncio.timeout(60):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.02)
    await gateway.until_states({"r1": "serving"})
    assert await answers(gateway)


async def test_a_key_that_nginx_refuses_is_not_said_to_be_shown(gateway: Gateway, engine: StartEngine) -> None:
    """A signal is not its effect: log and status say why, and it is tried again until the key is shown."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), require_key="sekrit", guard_all=True)
    await gateway.until_states({"r1": "serving"})
    pid = keyed_pid(gateway)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # It cannot even open its configuration.
    one.behave(require_key="another")
    give_key(gateway, "r1", "another")
    await gateway.until_logged("bridge.key_not_shown")
    status = await gateway.until(lambda s: "refuses its new key" in replica_of(s, "r1")["reason"])
    assert "Too many open files" in replica_of(status, "r1")["reason"], "nginx's own words"
    assert not await answers(gateway)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    async with asyncio.timeout(60):
        while not await answers(gateway):
            await asyncio.sleep(0.05)
    await gateway.until(lambda s: not replica_of(s, "r1")["reason"])
    assert keyed_pid(gateway) == pid


async def test_a_key_that_was_written_and_never_told_is_shown(gateway: Gateway, engine: StartEngine) -> None:
    """The daemon died between the two: the next one asks what is shown, and not the file."""
    give_key(gateway, "r1", "sekrit")
    one = await engine(gateway.socket("r1"), require_key="sekrit", guard_all=True)
    await gateway.until_states({"r1": "serving"})
    pid = keyed_pid(gateway)
    await gateway.kill()
    (file,) = (gateway.directory / "run" / "keyed").glob("*/nginx.conf")
    file.write_text(file.read_text().replace("sekrit", "another"))
    one.behave(require_key="another")
    give_key(gateway, "r1", "another")
    await gateway.start()
    async with asyncio.timeout(60):
        while not await answers(gateway):
            await asyncio.sleep(0.05)
    assert keyed_pid(gateway) == pid


async def nginx_of_this_machine() -> NginxProgram:
    return await find_nginx("nginx")


@pytest_asyncio.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """An engine that answers with the key that it is shown; its socket."""

    async def say(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Authorization"])

    app = web.Application()
    app.router.add_get("/", say)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    yield tmp_path / "engine.sock"
    await runner.cleanup()


async def test_once_a_key_is_led_to_no_connection_is_shown_another(tmp_path: Path, echo: Path) -> None:
    """nginx's old worker takes connections for a tenth of a second after the new one does."""
    log = ChildLog(tmp_path / "log")
    nginx = KeyedNginx(SmallPlaces(tmp_path, tmp_path, log, nginx_of_this_machine, Tasks("-", Metrics())), 1)

    async def shown() -> str:
        connector = aiohttp.UnixConnector(str(nginx.listens_at))
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://engine/") as response:
            return await response.text()

    try:
        for number in range(6):
            await nginx.lead(Keyed(echo, Access(api_key=f"key{number}"), grpc=False))
            assert {await shown() for _ in range(30)} == {f"Bearer key{number}"}
        other = tmp_path / "other.sock"
        other.symlink_to(echo)
        before = nginx.process
        await nginx.lead(Keyed(other, Access(api_key="other"), grpc=False))
        assert nginx.process is not before, "no engine is shown the key of another, not for a moment"
        assert await shown() == "Bearer other"
    finally:
        await nginx.stop()
        log.close()


async def test_somebody_elses_listener_is_not_taken_for_an_advertised_address(tmp_path: Path) -> None:
    """One who takes the address in the last moment does not make it up."""
    ports = PortBlock()
    started = tmp_path / "started"
    program = tmp_path / "nginx"
    program.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 60\n")
    program.chmod(0o755)

    async def find() -> NginxProgram:
        return NginxProgram(str(program), "1.0", None)

    log = ChildLog(tmp_path / "log")
    places = PeerPlaces(tmp_path, tmp_path, log, find, Tasks("-", Metrics()), lambda: "k" * 32, RULES, "")
    nginx = PeerNginx(places, PeerAddress("127.0.0.1", ports.first), 1, grpc=False)
    starting = asyncio.create_task(nginx.start())
    try:
        while not started.exists():
            await asyncio.sleep(0.01)
        with socket.create_server(("127.0.0.1", ports.first)), pytest.raises(NginxError, match="does not listen"):
            await starting
    finally:
        await nginx.stop()
        log.close()
        ports.release()
