"""What load balancers are told at `/readyz`: by nginx at each address, and by the daemon at the metrics listener."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_access_log import until_lines
from tests.system.test_no_router import StartApp, app
from tests.system.test_shared_address import chat, shared

__all__ = ["app"]


async def asked(url: str, **options: Any) -> tuple[int, str]:
    """The answer to one question, over a connection of its own."""
    async with aiohttp.ClientSession() as session, session.get(url, **options) as answer:
        return answer.status, (await answer.text()).strip()


async def said(gateway: Gateway, path: str = "/readyz", service: str = "chat") -> int:
    return (await asked(f"{gateway.url(service)}{path}"))[0]


async def until_said(gateway: Gateway, status: int, path: str = "/readyz", service: str = "chat") -> None:
    async with asyncio.timeout(60):
        while await said(gateway, path, service) != status:
            await asyncio.sleep(0.02)


async def test_readiness_is_told_to_anyone_and_leaves_no_trace(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """A load balancer has no key, may be on any address, and may ask often: nobody counts or logs that."""
    gateway = make_gateway()
    keys = tmp_path / "chat.keys"
    key = add_key(keys, "one")
    gateway.settings["services"][0]["frontend"] = {
        "auth": {"keys_file": str(keys)},
        "deny": ["127.0.0.0/8"],
        "limits": [{"per": "ip", "rps": 1}],
        "access_log": "all",
    }
    await gateway.start()
    await until_said(gateway, 200)
    for _ in range(5):
        assert await asked(f"{gateway.url()}/readyz") == (200, "ready")
    assert await said(gateway, "/readyz?service=chat") == 200
    assert await said(gateway, "/readyz?service=../chat") == 404
    assert await said(gateway, "/readyz/more") == 403
    assert (await asked(f"{gateway.url()}/v1/models", headers={"Authorization": f"Bearer {key}"}))[0] == 403
    async with aiohttp.ClientSession() as session:
        for method in ("HEAD", "OPTIONS", "POST"):
            async with session.request(method, f"{gateway.url()}/readyz", data=b"x") as answer:
                assert answer.status == 200
                assert answer.headers["Connection"] == "close"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])
    writer.write(b"OPTIONS /readyz HTTP/1.0\r\n\r\n")  # As HAProxy asks, if nobody says how.
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    lines = await until_lines(gateway, 2)
    assert [line["path"] for line in lines] == ["/readyz/more", "/v1/models"]


async def test_each_service_has_a_readiness_of_its_own(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """While one router does not start, that service is not ready; the other is, and so is the address of both."""
    gateway = shared(make_gateway, {"tiny": "chat", "other": "code"})
    program = gateway.directory / "smg"
    program.write_text(f'#!/bin/sh\nexec {Path(sys.executable).with_name("smg")} "$@"\n')
    program.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(program)}
    gateway.settings["services"][1]["frontend"] = {"ready_path": "/up/here"}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_said(gateway, 200)
    metrics = f"http://127.0.0.1:{gateway.metrics_port}/readyz"
    assert await asked(metrics) == (200, "ready")
    assert (await asked(f"{metrics}?service=nobody"))[0] == 404
    assert (await asked(f"{gateway.url('code')}/readyz"))[0] == 404
    assert await said(gateway, "/up/here", "code") == 200
    working = program.read_text()
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    os.kill(service_of(await gateway.status())["router"]["pid"], signal.SIGKILL)
    await until_said(gateway, 503)
    assert (await asked(f"{metrics}?service=chat"))[0] == 503
    assert (await asked(f"{metrics}?service=api"))[0] == 200
    assert (await asked(metrics))[0] == 503
    assert await said(gateway, "/up/here", "code") == 200
    assert await said(gateway, "/readyz", "api") == 200
    assert await said(gateway, "/readyz?service=chat", "api") == 503
    assert await said(gateway, "/readyz?service=code", "api") == 200
    assert await said(gateway, "/up/here?service=chat", "code") == 404
    assert {it["service"] for it in gateway.events("service.not_ready")} >= {"chat"}
    program.write_text(working)
    status = await gateway.until(lambda s: service_of(s)["router"]["pid"] is not None)
    os.kill(service_of(status)["router"]["pid"], signal.SIGKILL)
    await until_said(gateway, 200)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url('api')}/v1/chat/completions", json=chat("tiny")) as answer,
    ):
        assert answer.status == 200


async def test_a_daemon_that_is_away_or_comes_back_changes_no_readiness(gateway: Gateway, engine: StartEngine) -> None:
    """Its restart interrupts nobody, so no load balancer may be told to go elsewhere."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_said(gateway, 200)
    heard: set[int] = set()

    async def listen() -> None:
        while True:
            heard.add(await said(gateway))
            await asyncio.sleep(0.01)

    listening = asyncio.create_task(listen())
    await gateway.kill()
    assert await said(gateway) == 200
    await gateway.start()
    await gateway.terminate()
    await gateway.start()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert heard == {200}


async def test_a_gateway_that_begins_is_ready_when_it_has_looked(make_gateway: MakeGateway) -> None:
    """Requests that came before would only wait here, where another gateway could answer them."""
    gateway = make_gateway()
    program, may_begin = gateway.directory / "smg", gateway.directory / "may-begin"
    begins = f'while ! [ -e {may_begin} ]; do sleep 0.05; done; exec {Path(sys.executable).with_name("smg")} "$@"'
    program.write_text(f"#!/bin/sh\n{begins}\n")
    program.chmod(0o755)
    gateway.settings["services"][0]["router"] = {"command": str(program), "start_timeout_s": 300}
    await gateway.start(ready=False)
    heard: list[int] = []
    async with asyncio.timeout(60):
        while 200 not in heard:
            with suppress(aiohttp.ClientConnectionError):
                heard.append(await said(gateway))
            if heard:
                may_begin.touch()
            await asyncio.sleep(0.005)
    assert set(heard[:-1]) == {503}


async def test_an_application_keeps_all_its_paths(make_gateway: MakeGateway, app: StartApp) -> None:
    """With `engine: http` the path is the application's, unless the configuration names one for load balancers."""
    gateway = make_gateway()
    gateway.settings["services"][0] |= {"engine": "http", "router": {"type": "none"}}
    await gateway.start()
    web = await app(gateway.socket("r1"), "web")
    await gateway.until_states({"r1": "serving"})
    assert (await asked(f"{gateway.url()}/readyz"))[1] != "ready"
    gateway.settings["services"][0]["frontend"] = {"ready_path": "/gateway-ready"}
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    assert await asked(f"{gateway.url()}/gateway-ready") == (200, "ready")
    assert web is not None
