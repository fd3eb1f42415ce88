"""Bridges serve the router and nobody else, and nobody leads the router elsewhere: neither an engine nor a client."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key
from gateway_sidecar.nginx.bridge_server import OWNER_PATH
from gateway_sidecar.routers.smg.paths import PATHS
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartAs
from tests.system.gateway import Gateway, replica_of
from tests.users import DAEMON, ONE, OTHER, SELF, give, why_not

pytestmark = pytest.mark.own_users

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
REDIRECTS = (301, 302, 303, 307, 308)


async def answer_of(gateway: Gateway, path: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, str]:
    """What a client is told."""
    sent = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers["Content-Type"] = "application/json"
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url() + path, headers=headers, allow_redirects=False, data=sent) as response,
    ):
        return response.status, await response.text()


Sees = list[tuple[str, str]]


class Liar:
    """An engine that answers as told. `seen` is every request: method and path."""

    def __init__(self) -> None:
        self.seen: Sees = []
        self.says: Callable[[web.Request], web.StreamResponse | None] = lambda request: None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.seen.append((request.method, request.path))
        if (said := self.says(request)) is not None:
            return said
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "x"}]})
        if request.path == "/health":
            return web.json_response({})
        if request.method == "POST":
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "honest"}}
            chat = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
            return web.json_response(chat)
        return web.json_response({}, status=404)


@pytest_asyncio.fixture
async def liar() -> AsyncIterator[Callable[[Path], Awaitable[Liar]]]:
    """Starts engines that answer as told, behind a socket."""
    runners: list[web.AppRunner] = []

    async def start(path: Path) -> Liar:
        it = Liar()
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", it.answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.SockSite(runners[-1], OTHER.binds(path)).start()
        return it

    yield start
    for runner in runners:
        await runner.cleanup()


def redirect_to(target: str, status: int) -> Callable[[web.Request], web.StreamResponse | None]:
    """Answers requests for inference with a redirect."""

    def says(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status, headers={"Location": target}) if request.method == "POST" else None

    return says


@asynccontextmanager
async def listener(host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[str]]]:
    """A service of this machine that is nobody's business: its port, and the head of each request."""
    lines: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], lines


def key_of(gateway: Gateway) -> str:
    """What the router shows the bridges."""
    return str(json.loads((gateway.directory / "run" / "processes.json").read_text())["bridge_key"])


def bridge_of(status: dict[str, Any], replica: str) -> tuple[str, int]:
    """Where a replica's bridge listens."""
    host, _, port = replica_of(status, replica)["bridge"].rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("status", REDIRECTS)
async def test_an_engine_does_not_lead_the_router_elsewhere(
    gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]], status: int
) -> None:
    """Neither to another engine's control routes, nor to the daemon's own pages, whose answer a client would get."""
    async with listener() as (port, asked):
        evil = await liar(gateway.socket("evil"))
        await gateway.until_states({"evil": "serving"})
        for target in (f"http://127.0.0.1:{port}/update_weights", f"http://127.0.0.1:{gateway.metrics_port}/sd"):
            evil.says = redirect_to(target, status)
            _, text = await answer_of(gateway, "/v1/chat/completions", BODY)
            assert "targets" not in text
            assert "update_weights" not in text
        assert asked == []
        assert ("POST", "/v1/chat/completions") in evil.seen


async def test_an_engine_does_not_lead_its_registration_elsewhere(
    gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]]
) -> None:
    """What SMG asks when it is told of a worker is answered by the worker itself."""
    async with listener() as (port, asked):
        evil = await liar(gateway.socket("evil"))
        known = ("/v1/models", "/health")
        evil.says = lambda request: (
            None if request.path in known
            else web.Response(status=302, headers={"Location": f"http://127.0.0.1:{port}{request.path}"})
        )  # fmt: skip
        await gateway.until_states({"evil": "serving"})
        assert any(path == "/server_info" for _, path in evil.seen)
        assert asked == []


async def test_a_bridge_serves_the_router_and_passes_inference(
    gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]]
) -> None:
    """Without the router's key nothing but health is answered, and with it no control route."""
    one = await liar(gateway.socket("r1"))
    host, port = bridge_of(await gateway.until_states({"r1": "serving"}), "r1")
    key = key_of(gateway)

    def posted() -> list[str]:  # The router itself asks by GET, whenever it likes.
        return [path for method, path in one.seen if method == "POST"]

    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        for path in ("/v1/chat/completions", "/v1/models", "/update_weights_from_disk", "/v1/../pause", "/v1//models"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Request-Id-Gateway-Key": f"x{key}"}):
                async with session.post(path, json=BODY, headers=headers) as response:
                    assert response.status in (403, 404), path
        assert posted() == []
        async with session.get(OWNER_PATH) as response:
            assert (response.status, "router only" in await response.text()) == (403, True), "nobody else asks whose"
        for header in ({"Authorization": f"Bearer {key}"}, {"X-Request-Id-Gateway-Key": key}):
            for path in ("/update_weights_from_disk", "/pause_generation", "/flush_cache", "/server_info"):
                async with session.post(path, json=BODY, headers=header) as response:
                    assert response.status == 404, path
            assert posted() == []
            async with session.post("/v1/chat/completions", json=BODY, headers=header) as response:
                assert response.status == 200
            assert posted() == ["/v1/chat/completions"]
            one.seen.clear()


async def test_an_engine_gives_the_bridge_no_orders(gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]]) -> None:
    """What would lead whoever asks, or nginx itself, elsewhere is taken off; its answer is as it was."""
    one = await liar(gateway.socket("r1"))
    host, port = bridge_of(await gateway.until_states({"r1": "serving"}), "r1")
    orders = dict.fromkeys(("Location", "Refresh", "X-Accel-Redirect"), "/update_weights")
    one.says = lambda request: (
        web.Response(text="mine", headers={**orders, "X-Accel-Limit-Rate": "1"}) if request.method == "POST" else None
    )
    headers = {"Authorization": f"Bearer {key_of(gateway)}"}
    async with (
        aiohttp.ClientSession(f"http://{host}:{port}", headers=headers) as session,
        session.post("/v1/chat/completions", json=BODY) as response,
    ):
        assert (response.status, await response.text()) == (200, "mine")
        assert response.headers.keys().isdisjoint({"Location", "Refresh"})
    assert "/update_weights" not in [path for _, path in one.seen]


async def test_everything_that_smg_asks_an_engine_passes_its_bridge(
    gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]]
) -> None:
    """Held against the installed SMG: what it asked while it registered a worker was let through."""
    one = await liar(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    asked = {path for _, path in one.seen} - {"/health", "/v1/models"}
    assert {"/server_info", "/model_info"} <= asked <= {*PATHS.asked, "/is_sleeping"}
    log = (gateway.directory / "state" / "log" / "router-chat.log").read_text()
    assert "bridge passes inference only" not in log


async def test_the_key_of_the_bridges_reaches_no_engine_and_no_client_can_forge_it(
    gateway: Gateway, liar: Callable[[Path], Awaitable[Liar]]
) -> None:
    """Engines see the client's own Authorization, and nothing of ours."""
    one = await liar(gateway.socket("r1"))
    headers: list[dict[str, str]] = []
    one.says = lambda request: headers.append(dict(request.headers)) if request.method == "POST" else None
    await gateway.until_states({"r1": "serving"})
    key = key_of(gateway)
    assert (await answer_of(gateway, "/v1/chat/completions", BODY))[0] == 200
    assert (await answer_of(gateway, "/v1/chat/completions", BODY, Authorization="Bearer own"))[0] == 200
    status, _ = await answer_of(gateway, "/v1/chat/completions", BODY, **{"X-Request-Id-Gateway-Key": "forged"})
    assert status == 200
    assert [each.get("Authorization") for each in headers] == [None, "Bearer own", None]
    assert not any(key in value for each in headers for value in each.values())


_GRPC = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
try:
    s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + bytes([4, 0, 0, 0, 0, 0]))
    print(len(s.recv(9)))
except ConnectionError:
    print(0)
"""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.VLLM_GRPC])
async def test_a_daemon_with_a_user_of_its_own_has_bridges_for_nobody_else(
    gateway: Gateway, start: StartAs, kind: EngineKind
) -> None:
    """As the unit has it: neither a member of the replicas' group nor the engine's owner gets past the router. SMG has
    no place for a key where it speaks gRPC, so nginx asks the kernel whose the connection is."""
    await start(ONE, gateway.socket("r1"), kind)
    host, port = bridge_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert "r1" in await ask(gateway, "tiny", stream=False)
    asks = (sys.executable, "-c", _GRPC if kind.is_grpc else _HTTP, host, str(port))
    for user in (ONE, OTHER, SELF):
        assert await user.says(*asks) == ("0" if kind.is_grpc else "403")
    if kind.is_grpc:
        assert await DAEMON.says(*asks) == "9"


_HTTP = """
import http.client, sys
asked = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
asked.request("POST", "/v1/chat/completions", "{}")
print(asked.getresponse().status)
"""


def mcp(url: str) -> dict[str, Any]:
    """A request whose tool is served at this address."""
    return {"model": "tiny", "input": "x", "tools": [{"type": "mcp", "server_label": "x", "server_url": url}]}


REFUSED_SERVERS = [
    "http://127.0.0.1:PORT/mcp",
    "http://127.1:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://[::1]:PORT/",
    "http://localhost:PORT/",
    "http://localhost.:PORT/",
    "http://a.localhost:PORT/",
    "http://gpu7:PORT/",
    "http://x@127.0.0.1:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "http://user@example.com/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http:///127.0.0.1:PORT/",
    "  http://127.0.0.1:PORT/sse",
    "http://10.0.0.1/",
    "https://169.254.169.254/latest",
    "http://127。0。0。1:PORT/",
    "http://%3127.0.0.1:PORT/",
    "http://127.0\t.0.1:PORT/",
]


@pytest.mark.parametrize("kind", [EngineKind.VLLM_GRPC, EngineKind.OPENAI_HTTP])
async def test_a_client_does_not_send_the_router_to_this_machine(
    gateway: Gateway, start: StartAs, kind: EngineKind
) -> None:
    """With a gRPC engine SMG itself connects to the MCP servers that a request names."""
    await start(ONE, gateway.socket("r1"), kind)
    await gateway.until_states({"r1": "serving"})
    async with listener() as (port, asked):
        for url in REFUSED_SERVERS:
            status, text = await answer_of(gateway, "/v1/responses", mcp(url.replace("PORT", str(port))))
            assert (status, "mcp_server_refused" in text) == (403, True), url
        escaped = (
            b'{"model":"tiny","input":"x","tools":[{"type":"mcp","server_label":"x","\\u0073erver_ur\\u006c":"%s"}]}'
        )
        for value in (f"http://127.0.0.1:{port}/", f"h\\u0074tp:\\/\\/127.0.0.\\u0031:{port}\\/"):
            status, _ = await answer_of(gateway, "/v1/responses", escaped % value.encode())
            assert status == 403, value
        swallowed = b'{"input":["b",":"," "],"server_url":"http://127.0.0.1:%d/","model":"tiny"}' % port
        assert (await answer_of(gateway, "/v1/responses", swallowed))[0] == 403
        large = {**mcp(f"http://127.0.0.1:{port}/"), "input": "x" * 3_000_000}
        assert (await answer_of(gateway, "/v1/responses", large))[0] == 403
        assert (await answer_of(gateway, "/v1/responses", b"", **{"Content-Encoding": "gzip"}))[0] == 403
        assert asked == []


async def test_what_waited_is_judged_as_well(make_gateway: MakeGateway, start: StartAs) -> None:
    """A request that comes while nobody serves has its body read only afterwards."""
    gateway = make_gateway()
    await gateway.start()
    async with listener() as (port, asked):
        waiting = asyncio.create_task(answer_of(gateway, "/v1/responses", mcp(f"http://127.0.0.1:{port}/")))
        honest = asyncio.create_task(answer_of(gateway, "/v1/chat/completions", BODY))
        await start(ONE, gateway.socket("r1"), EngineKind.VLLM_GRPC)
        await gateway.until_states({"r1": "serving"})
        assert (await waiting)[0] in (403, 404, 503)
        await honest
        assert asked == []


async def test_servers_that_are_named_may_be_asked(make_gateway: MakeGateway, start: StartAs) -> None:
    """`mcp_servers` lists hosts; what a request names beside them is refused, public or not."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"mcp_servers": ["127.0.0.1", "*.example.com"]}
    await gateway.start()
    await start(ONE, gateway.socket("r1"), EngineKind.VLLM_GRPC)
    await gateway.until_states({"r1": "serving"})
    async with listener() as (port, asked):
        assert (await answer_of(gateway, "/v1/responses", mcp(f"http://127.0.0.1:{port}/mcp")))[0] != 403
        assert asked
        assert key_of(gateway) not in "".join(asked)
        assert (await answer_of(gateway, "/v1/responses", mcp(f"http://127.0.0.1.:{port}/mcp")))[0] != 403
        assert (await answer_of(gateway, "/v1/responses", mcp("https://example.org/mcp")))[0] == 403
        assert (await answer_of(gateway, "/v1/responses", mcp("https://example.com/mcp")))[0] == 403
        assert (await answer_of(gateway, "/v1/responses", mcp("https://aexample.com/mcp")))[0] == 403


async def test_a_prompt_may_speak_of_servers(gateway: Gateway, start: StartAs) -> None:
    """Only a key of the request counts: text that looks like one is text."""
    await start(ONE, gateway.socket("r1"), EngineKind.OPENAI_HTTP)
    await gateway.until_states({"r1": "serving"})
    for text in ('{"server_url": "http://127.0.0.1/"}', "\\", '\\"server_url":"http://127.0.0.1', "\u00e9\u4e2d\x07"):
        body = {"model": "tiny", "input": text, "metadata": {"server_urls": "http://127.0.0.1"}}
        status, _ = await answer_of(gateway, "/v1/responses", body)
        assert status != 403, text


@pytest.mark.parametrize("public", [False, True])
async def test_one_key_does_not_see_what_another_stored(
    make_gateway: MakeGateway, start: StartAs, *, public: bool
) -> None:
    """The router is told whose each request is, and no client says so itself."""
    gateway = make_gateway()
    keys = gateway.directory / "chat.keys"
    auth: dict[str, Any] = {"keys_file": str(keys), "pass_authorization": public}
    gateway.settings["services"][0]["frontend"] = {"auth": auth}
    alice, bob = add_key(keys, "alice"), add_key(keys, "bob")
    give(keys, DAEMON, 0o600)
    await gateway.start()
    await start(ONE, gateway.socket("r1"), EngineKind.OPENAI_HTTP)
    await gateway.until_states({"r1": "serving"})
    async with aiohttp.ClientSession(gateway.url()) as session:

        async def do(method: str, path: str, key: str, **headers: str) -> tuple[int, dict[str, Any]]:
            headers["Authorization"] = f"Bearer {key}"
            async with session.request(method, path, json={"metadata": {}}, headers=headers) as response:
                return response.status, await response.json()

        status, made = await do("POST", "/v1/conversations", alice)
        assert status == 200
        path = f"/v1/conversations/{made['id']}"
        for tenant in ("alice", "key:alice", ""):
            for method in ("GET", "DELETE"):
                assert (await do(method, path, bob, **{"X-Smg-Tenant-Id": tenant}))[0] == 404
        assert (await do("GET", path, alice))[0] == 200


async def test_notes_do_not_send_the_router_to_a_service_of_this_machine(gateway: Gateway, start: StartAs) -> None:
    """`direct: true` would have SMG ask whatever listens there, past every bridge."""
    async with listener() as (port, asked):
        with ONE.here():
            gateway.socket("r1").with_suffix(".yaml").write_text(f"advertise: 127.0.0.1:{port}\ndirect: true\n")
        await start(ONE, gateway.socket("r1"))
        status = await gateway.until(lambda s: "is not sent there" in str(reason_of(s, "r1")))
        assert replica_of(status, "r1")["state"] != "serving"
        assert await gateway.workers() == []
        assert asked == []


def reason_of(status: dict[str, Any], replica: str) -> str | None:
    """Why it does not serve, if it is listed yet."""
    return next((row["reason"] for row in status["services"][0]["replicas"] if row["id"] == replica), None)
