"""The service address: stable, and in nobody's way."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import aiohttp

from examples.simulated import EngineKind
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of


async def test_stream_is_not_buffered(gateway: Gateway, engine: StartEngine) -> None:
    """Each token is passed on when it comes."""
    here = await engine(gateway.socket("r1"), token_interval_s=3.0)
    await gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 8, started))
    await started.wait()
    assert here.ledger.in_flight == 1, "the tokens came together"
    here.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "7"


async def test_large_body_goes_through_whole(gateway: Gateway, engine: StartEngine) -> None:
    """Bodies are not limited; what does not fit into memory waits in a file."""
    big = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    content = "x" * (20 * 1024 * 1024)
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{gateway.url()}/v1/chat/completions",
            data=io.BytesIO(json.dumps(body).encode()),
            headers={"Content-Type": "application/json"},
        ) as response,
    ):
        assert response.status == 200, await response.text()
    assert big.ledger.requests[-1].body["messages"][0]["content"] == content


async def test_client_that_leaves_is_felt_by_the_engine(gateway: Gateway, engine: StartEngine) -> None:
    """An aborted request frees the engine, over HTTP and over gRPC."""
    for name, kind in (("h", EngineKind.SGLANG_HTTP), ("g", EngineKind.VLLM_GRPC)):
        busy = await engine(gateway.socket(name), kind, model=name, token_interval_s=0.05)
        await gateway.until_state(name, "serving")
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 10_000, "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response,
        ):
            await response.content.readline()
        await busy.until(lambda seen: seen.aborted == 1)


async def test_websocket_upgrade_reaches_the_router(gateway: Gateway, engine: StartEngine) -> None:
    """An upgrade is passed on: the router itself answers it."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])
    writer.write(
        b"GET /v1/realtime?model=none HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    status = (await reader.readline()).decode()
    writer.close()
    config = (gateway.directory / "run" / "nginx" / "nginx.conf").read_text()
    assert "proxy_set_header Upgrade $gateway_upgrade;" in config
    assert " 502 " not in status
    assert " 503 " not in status


async def test_connection_to_the_router_is_kept(gateway: Gateway, engine: StartEngine) -> None:
    """HTTP/1.1 with keep-alive towards the router: no connection per request."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    router_port = int(service_of(await gateway.status())["router"]["url"].rsplit(":", 1)[1])
    for _ in range(20):
        await ask(gateway, "tiny", stream=False)
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    closed = [row for row in rows if row[2].endswith(f":{router_port:04X}") and row[3] == "06"]
    assert len(closed) < 10, "a connection to the router is left in TIME_WAIT for each request"


async def test_two_services_do_not_touch_each_other(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One service's broken router and bad sockets never delay another."""
    gateway = make_gateway(services=("chat", "code"))
    broken = gateway.directory / "smg"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    gateway.settings["services"][1]["router"] = {"command": str(broken)}
    gateway.settings["services"][1]["probe"] = {"timeout_s": 60}
    await gateway.start(ready=False)
    for i in range(30):
        await engine(gateway.socket(f"hung{i}", "code"), hang=True)
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    assert service_of(status, "code")["router"]["state"] != "up"
    assert "r1" in await ask(gateway, "tiny", stream=False)


async def test_services_have_their_own_models_and_addresses(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Each service has its own router, and only its own replicas behind it."""
    gateway = make_gateway(services=("chat", "code"))
    await gateway.start()
    await engine(gateway.socket("a", "chat"), model="one")
    await engine(gateway.socket("b", "code"), model="two")
    await gateway.until_states({"a": "serving"}, service="chat")
    await gateway.until_states({"b": "serving"}, service="code")
    assert "a" in await ask(gateway, "one", stream=False, service="chat")
    assert "b" in await ask(gateway, "two", stream=False, service="code")
