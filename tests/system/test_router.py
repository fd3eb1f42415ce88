"""The router: started, guarded, put right, started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from examples.simulated import EngineKind, Lie
from gateway_sidecar.control.routers.process import _PORTS_PATIENCE_S
from tests.stopping import stop
from tests.system.clients import ask, pipe, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of
from tests.users import DAEMON, OTHER, why_not


def router_of(status: dict[str, Any], service: str = "chat") -> dict[str, Any]:
    router: dict[str, Any] = service_of(status, service)["router"]
    return router


async def as_admin(gateway: Gateway, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request to SMG's own API with the daemon's key."""
    url = router_of(await gateway.status())["url"] + path
    headers = {"Authorization": f"Bearer {await gateway.router_key()}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url, json=body) as response,
    ):
        return response.status, await response.json()


_WORKERS = """
import http.client, sys
asked = http.client.HTTPConnection(sys.argv[1], timeout=20)
asked.request("GET", "/workers", headers={"Authorization": f"Bearer {' '.join(sys.argv[2:]) or 'x'}"})
print(asked.getresponse().status)
"""


@pytest.mark.own_users
async def test_router_is_private_and_its_key_secret(gateway: Gateway) -> None:
    """Loopback only, a key that only the daemon's user can read: not in `ps`, not in the log, not in status."""
    status = await gateway.status()
    router = router_of(status)
    key = await gateway.router_key()
    assert len(key) >= 32
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{router['url']}/workers") as response:
            assert response.status == 401
        async with session.get(router["metrics_url"]) as response:
            assert response.status == 200
            assert "smg_" in await response.text()
    assert key not in Path(f"/proc/{router['pid']}/cmdline").read_text()
    assert key not in str(status) + gateway.log()
    record = gateway.directory / "run" / "processes.json"
    assert record.stat().st_mode & 0o077 == 0
    if why_not() is None:
        assert await DAEMON.does("cat", record)
        # SMG has the key in its environment, or in its memory.
        for closed in (record, *(Path(f"/proc/{router['pid']}") / name for name in ("environ", "mem", "fd/0"))):
            assert not await OTHER.does("head", "-c1", closed), closed
        where = router["url"].partition("://")[2]
        assert await OTHER.says(sys.executable, "-c", _WORKERS, where) == "401"
        assert await OTHER.says(sys.executable, "-c", _WORKERS, where, key) == "200"
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line}
    for url in (router["url"], router["metrics_url"]):
        port = int(url.split(":")[2].split("/")[0])
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening


@pytest.mark.own_users
async def test_key_is_never_on_the_command_line_while_starting(make_gateway: MakeGateway) -> None:
    """Not even in the moment before the router renames itself."""
    gateway = make_gateway()
    await gateway.start(ready=False)
    seen: set[str] = set()
    while not gateway.events("router.started"):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_text()
                except OSError:
                    continue
                if str(gateway.ports["chat"] + 10) in line:
                    seen.add(line)
        await asyncio.sleep(0.001)
    await gateway.until(lambda status: bool(status["ready"]))
    assert seen, "the router's command line was never seen"
    key = await gateway.router_key()
    assert not any(key in line or "--control-plane-api-keys" in line for line in seen)


async def test_proxy_of_the_environment_is_not_asked_for_workers(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """The daemon's environment names one, and the router's own settings do: nobody listens there."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"env": {"HTTP_PROXY": "http://127.0.0.1:9"}}
    await gateway.start(env={"ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": ".corp.example"})
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert await ask(gateway, "tiny", stream=False)


async def test_killed_router_is_started_again_with_every_worker(gateway: Gateway, engine: StartEngine) -> None:
    """If the router exits it is started again and every worker is registered again."""
    for i in range(8):
        await engine(gateway.socket(f"r{i}"), EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP)
    wanted = {f"r{i}": "serving" for i in range(8)}
    before = router_of(await gateway.until_states(wanted))
    os.kill(before["pid"], signal.SIGKILL)
    status = await gateway.until(lambda s: router_of(s)["restarts"] == 1 and states_of(s) == wanted)
    assert router_of(status)["pid"] != before["pid"]
    assert len(await gateway.workers()) == 8
    assert await ask(gateway, "tiny", stream=True)
    [event] = gateway.events("router.exited")
    assert event["exit_code"] == -signal.SIGKILL
    assert event["pid"] == before["pid"]


async def test_hung_router_is_replaced(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The router's life is judged by its API, not by its pid."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 2}
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = router_of(await gateway.until_states({"r1": "serving"}))
    stop(before["pid"])
    status = await gateway.until(
        lambda s: (
            router_of(s)["state"] == "up" and router_of(s)["pid"] != before["pid"] and states_of(s) == {"r1": "serving"}
        ),
        within_s=60,
    )
    assert router_of(status)["restarts"] == 1
    assert await ask(gateway, "tiny", stream=False)


async def test_router_that_cannot_start_says_why_and_recovers(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A crash loop backs off, shows the router's own last words, and ends when the cause goes."""
    gateway = make_gateway()
    broken = gateway.directory / "smg"
    broken.write_text("#!/bin/sh\necho 'no GPU licence found' >&2\nexit 3\n")
    broken.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(broken)}
    await gateway.start(ready=False)
    await engine(gateway.socket("r1"))
    status = await gateway.until(
        lambda s: (
            len(gateway.events("router.exited")) >= 3
            and "waiting for the router" in (replica_of(s, "r1")["reason"] or "")
        )
    )
    assert "exit code 3" in router_of(status)["reason"]
    delays = [event["restart_in_s"] for event in gateway.events("router.exited")]
    assert delays == sorted(delays)
    assert delays[-1] > delays[0]
    assert gateway.events("router.exited")[0]["last_lines"] == ["no GPU licence found"]
    real = Path(sys.executable).parent / "smg"
    broken.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    await gateway.until_states({"r1": "serving"})


async def test_taken_port_is_walked_around(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A private port that somebody else took is left to them."""
    gateway = make_gateway()
    taken = gateway.ports["chat"] + 10
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", taken)
    async with server:
        await gateway.start()
        await engine(gateway.socket("r1"))
        status = await gateway.until_states({"r1": "serving"})
        assert router_of(status)["url"] != f"http://127.0.0.1:{taken}"
        assert await ask(gateway, "tiny", stream=False)


async def test_lost_workers_come_back_and_orphans_go(gateway: Gateway, engine: StartEngine) -> None:
    """What the router loses or invents is put right within a rescan or so."""
    await engine(gateway.socket("r1"))
    stranger = await engine(gateway.directory / "elsewhere.sock")
    before = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert (await as_admin(gateway, "DELETE", f"/workers/{before['worker_id']}"))[0] == 202
    status = await gateway.until(
        lambda s: (
            replica_of(s, "r1")["worker_id"] not in (None, before["worker_id"]) and states_of(s) == {"r1": "serving"}
        )
    )
    # A worker that nobody's socket stands behind: here an address of the range that leads nowhere of ours.
    forward = await asyncio.start_server(
        lambda r, w: asyncio.ensure_future(pipe(r, w, stranger.spec.socket)), "127.0.0.1", 0
    )
    async with forward:
        port = forward.sockets[0].getsockname()[1]
        code, answer = await as_admin(gateway, "POST", "/workers", {"url": f"http://127.0.0.1:{port}"})
        assert code == 202, answer
        await gateway.until_logged("worker.orphan")  # It may be there for a moment only.
        await gateway.until_workers(
            lambda workers: [w["id"] for w in workers] == [replica_of(status, "r1")["worker_id"]]
        )
    assert gateway.events("worker.orphan")[0]["worker_url"] == f"http://127.0.0.1:{port}"


async def test_wrongly_registered_worker_is_corrected(gateway: Gateway, engine: StartEngine) -> None:
    """A worker that the router has under other properties than the engine's is replaced."""
    await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP)
    row = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    await as_admin(gateway, "DELETE", f"/workers/{row['worker_id']}")
    body = {
        "url": f"http://{row['bridge']}",
        "worker_type": "decode",
        "connection_mode": "http",
        "runtime_type": "sglang",
    }
    end = time.monotonic() + 5
    while (await as_admin(gateway, "POST", "/workers", body))[0] == 409 and time.monotonic() < end:
        await asyncio.sleep(0.01)
    await gateway.until_workers(
        lambda workers: (
            [(w["worker_type"], w["runtime_type"], w["status"]) for w in workers] == [("regular", "vllm", "ready")]
        )
    )
    await gateway.until_states({"r1": "serving"})


async def test_router_log_is_bounded_and_passed_on(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The router writes to a file that it can go on writing when the daemon is gone; its lines become events."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"log_level": "info"}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    while not any("Workflow completed" in str(event.get("text")) for event in gateway.events("router.said")):
        await asyncio.sleep(0.05)
    pid = router_of(await gateway.status())["pid"]
    for fd in (1, 2):
        target = Path(f"/proc/{pid}/fd/{fd}").readlink()
        assert target == gateway.directory / "state" / "log" / "router-chat.log"
    await gateway.kill()
    assert await stream_chat(gateway, 5)


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC])
async def test_engine_that_dies_while_it_is_being_registered(
    gateway: Gateway, engine: StartEngine, kind: EngineKind
) -> None:
    """A pending worker whose engine is gone is no zombie: it is out, and stays out."""
    for _ in range(3):
        dying = await engine(gateway.socket("r1"), kind)
        await gateway.until_state("r1", "registering", "serving")
        await dying.kill()
        gateway.socket("r1").unlink()
        await gateway.until_states({})
        await gateway.until_workers(lambda workers: workers == [])
    await engine(gateway.socket("r1"), kind)
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_an_engine_that_was_ill_just_as_the_router_asked_is_registered_again(
    gateway: Gateway, engine: StartEngine
) -> None:
    """SMG lists it without its model, and never asks for its tokenizer again: no request would reach it."""
    await engine(gateway.socket("r1"))
    router = router_of(await gateway.until_states({"r1": "serving"}))["pid"]
    stop(router)
    try:
        ill = await engine(gateway.socket("r2"), EngineKind.VLLM_GRPC)
        await gateway.until_state("r2", "registering")
        ill.behave(lie=Lie.EMPTY)
    finally:
        os.kill(router, signal.SIGCONT)
    await gateway.until_workers(lambda workers: len(workers) == 2)
    ill.behave(lie=None)
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    reasons = [event["reason"] for event in gateway.events("worker.operation_failed")]
    assert set(reasons) == {"the router did not make it ready within 5 s"}


async def test_engine_that_failed_again_and_again_is_not_shut_out(gateway: Gateway, engine: StartEngine) -> None:
    """SMG's circuit breaker would shut a worker out after ten failures. The daemon judges engines, and here is no other
    replica that shows that the requests are not to blame."""
    for name, kind in (("h", EngineKind.SGLANG_HTTP), ("g", EngineKind.VLLM_GRPC)):
        here = await engine(gateway.socket(name), kind, model=name, fail_rate=1.0)
        await gateway.until_state(name, "serving")
        while here.ledger.received < 12:
            with suppress(AssertionError):
                await stream_chat(gateway, 2, model=name)
        here.behave(fail_rate=0.0)
        await stream_chat(gateway, 2, model=name)


async def test_router_comes_back_on_its_ports_though_they_are_free_only_a_moment_later(
    gateway: Gateway, engine: StartEngine
) -> None:
    """On other ports nginx would have to be reloaded, and those that wait would ask the old ones."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    before = await gateway.status()
    router = service_of(before)["router"]
    assert gateway.process is not None
    stop(gateway.process.pid)
    try:
        os.kill(router["pid"], signal.SIGKILL)
        taken = await bound(int(router["url"].rsplit(":", 1)[1]))
    finally:
        went_on_at = time.monotonic()
        gateway.process.send_signal(signal.SIGCONT)
    with taken:
        await gateway.until(lambda s: service_of(s)["router"]["state"] == "starting")
    taken_for_s = time.monotonic() - went_on_at
    after = await gateway.until(lambda s: service_of(s)["router"]["state"] == "up" and s["ready"])
    if taken_for_s < _PORTS_PATIENCE_S:  # A busy machine may take longer, and then the ports are others.
        assert service_of(after)["router"]["url"] == router["url"]
        assert after["nginx"]["reloads"] == before["nginx"]["reloads"]


async def bound(port: int) -> socket.socket:
    """A socket that listens on a port, as soon as nobody else does."""
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            await asyncio.sleep(0.005)
