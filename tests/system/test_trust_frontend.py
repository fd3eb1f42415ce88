"""Whoever sends a request must not harm the gateway: bodies, headers, and what engines answer."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from gateway_sidecar.config import AuthSettings, FrontendSettings, LimitSettings
from gateway_sidecar.config.frontend_values import parse_auth_url
from gateway_sidecar.frontend.edit_keys import add_key
from gateway_sidecar.nginx.bodies import SMALL_BYTES, body_classes
from gateway_sidecar.nginx.client_headers import CREDENTIALS, FOR_AUTH, HIDDEN, PASSED
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.routers.smg.paths import HEADERS
from tests.certificates import certificate
from tests.smg import KEY_HEADER
from tests.system.conftest import MakeGateway
from tests.system.gateway import PortBlock, service_of
from tests.system.test_frontend_keys import Judge, bare_nginx, listening
from tests.users import DAEMON, OTHER, give

pytestmark = pytest.mark.own_users

MIB = 1024 * 1024
FORGED = {
    "X-Forwarded-For": "203.0.113.1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Uri": "/evil",
    "X-Forwarded-Method": "EVIL",
    "X-Forwarded-User": "evil",
    "X-Forwarded-Server": "evil",
    "Forwarded": "for=203.0.113.1;host=evil.example",
    "X-Real-IP": "203.0.113.1",
    "X-Client-IP": "203.0.113.1",
    "True-Client-IP": "203.0.113.1",
    "X-Original-URL": "/evil",
    "X-Original-URI": "/evil",
    "X-Original-Method": "EVIL",
    "X-Rewrite-URL": "/evil",
    "X-HTTP-Method-Override": "EVIL",
    "X-Method-Override": "EVIL",
    "X-Auth-Request-User": "evil",
    "X-Auth-Request-Redirect": "https://evil.example",
    "Remote-User": "evil",
}
"""By these another server would decide: they are a proxy's to say, and here nginx is the proxy."""

STEERING = {
    "X-Smg-Target-Worker": "1",
    "X-Smg-Routing-Tokens": "1,2,3",
    "X-Smg-Tenant-Id": "evil",
    "X-Smg-Priority": "evil",
    "X-Smg-Mcp": "enabled",
    "X-Smg-Routed-Worker-Id": "evil",
    "X-Smg-Cache-Trace": "evil",
    "X-Smg-Parser": "evil",
    "X-Smg-Whatever-Comes": "evil",
    "X-Tenant-Id": "evil",
    "X-Worker-Id": "evil",
    "X-Data-Parallel-Rank": "1",
    "X-Goog-Api-Key": "evil",
    "Cookie": "session=evil",
}
"""By these a router, or an engine, decides where a request goes, or whose it is."""

SENT = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream",
    "User-Agent": "honest/1",
    "Authorization": "Bearer a-key",
    "X-Smg-Routing-Key": "session-1",
    "X-Request-Id": "request-1",
    "Traceparent": "00-1-2-01",
    "Anthropic-Version": "2023-06-01",
}


class Router:
    """Says yes to everything, and remembers what it was told."""

    def __init__(self, **answer_headers: str) -> None:
        self.seen: list[tuple[str, dict[str, str], int]] = []
        self.headers = answer_headers
        self.holding: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.seen.append((request.path_qs, dict(request.headers), size))
        if self.holding is not None:
            await self.holding.wait()
        return web.json_response({}, headers=self.headers)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """The daemon's user's, so that nginx runs as him: pytest's own lies where nobody else can go."""
    with TemporaryDirectory(prefix="gw-", dir="/tmp") as made:
        give(Path(made), DAEMON, 0o750)
        yield Path(made)


@asynccontextmanager
async def frontend_at(
    directory: Path, frontend: FrontendSettings, router: Router, **more: Any
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """A frontend before the router; its URL and a client."""
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(listening(router.answer))
        url = await stack.enter_async_context(
            bare_nginx(directory, FrontendPlaces(directory), behind, frontend, **more)
        )
        yield url, await stack.enter_async_context(aiohttp.ClientSession())


# -- headers of requests


async def test_a_router_is_told_only_what_is_named(tmp_path: Path) -> None:
    """Nothing that steers, nothing that a proxy would have said; what honest clients send arrives as it was."""
    router = Router()
    settings = FrontendSettings(pass_headers=("X-Session-Id",))
    async with frontend_at(tmp_path, settings, router) as (url, client):
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("DELETE", "/v1/responses/r1")):
            headers = SENT | FORGED | STEERING | {"X-Session-Id": "s1"}
            async with client.request(method, f"{url}{path}", headers=headers) as response:
                assert response.status == 200
            told = router.seen[-1][1]
            ours = {"Host", "Connection", "X-Forwarded-For", "X-Forwarded-Proto", "Content-Length", KEY_HEADER}
            ours.add("X-Request-Id")
            known = {name.lower() for name in (*CREDENTIALS, *PASSED, *HEADERS.passed, *ours, "X-Session-Id")}
            assert {name for name in told if name.lower() not in known} == set()
            arrived = {name.lower(): value for name, value in told.items()}
            assert {name: arrived.get(name.lower()) for name in SENT} == SENT
            assert arrived["x-session-id"] == "s1"
            assert (told["X-Forwarded-For"], told["X-Forwarded-Proto"]) == ("127.0.0.1", "http")
            assert "evil" not in str(told)


async def test_who_a_client_is_a_trusted_proxy_alone_says(tmp_path: Path) -> None:
    """Of its list only what no client can have made up: what came before the proxies that are known."""
    router = Router()
    async with frontend_at(tmp_path, FrontendSettings(trusted_proxies=("127.0.0.1", "10.0.0.0/8")), router) as (
        url,
        client,
    ):
        for forwarded in ("198.51.100.9, 192.0.2.1", "198.51.100.9, 192.0.2.1, 10.0.0.7"):
            async with client.get(f"{url}/v1/models", headers={"X-Forwarded-For": forwarded}) as response:
                assert response.status == 200
            assert router.seen[-1][1]["X-Forwarded-For"] == "192.0.2.1"


async def test_another_server_may_answer_with_many_headers(tmp_path: Path) -> None:
    """Sessions and identities: some kilobytes. More than nginx's own 4 KiB shut everybody out."""

    async def judge(_: web.Request) -> web.Response:
        return web.Response(status=204, headers={f"X-Identity-{at}": "i" * 1000 for at in range(40)})

    async with listening(judge) as port:
        auth = AuthSettings(url=parse_auth_url(f"http://127.0.0.1:{port}/auth"), timeout_s=60)
        async with (
            frontend_at(tmp_path, FrontendSettings(auth=auth), Router()) as (url, client),
            client.get(f"{url}/v1/models") as response,
        ):
            assert response.status == 200


async def test_another_server_is_told_by_nginx_alone(tmp_path: Path) -> None:
    """`auth.url` hears what a client proves itself by, and of the request what nginx knows."""
    judge = Judge()
    async with listening(judge.answer) as port:
        auth = AuthSettings(url=parse_auth_url(f"http://127.0.0.1:{port}/auth"), timeout_s=60)
        async with frontend_at(tmp_path, FrontendSettings(auth=auth), Router()) as (url, client):
            headers = FORGED | STEERING | {"Authorization": "Bearer k", "X-Api-Key": "k2", "Cookie": "session=1"}
            async with client.post(f"{url}/v1/completions?x=1", data=b"{}", headers=headers) as response:
                assert response.status == 200
                name = response.headers["X-Request-Id"]
            host = url.removeprefix("http://")
    assert judge.asked == [
        {
            "Authorization": "Bearer k",
            "X-Api-Key": "k2",
            "Cookie": "session=1",
            "Host": host,
            "X-Request-ID": name,  # as aiohttp writes it
            "X-Original-URI": "/v1/completions?x=1",
            "X-Original-Method": "POST",
            "X-Real-IP": "127.0.0.1",
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": host,
            "X-Forwarded-Method": "POST",
            "X-Forwarded-Uri": "/v1/completions?x=1",
        }
    ]
    assert set(FOR_AUTH) >= {"Authorization", "Cookie"}


@pytest.mark.parametrize("per", ["header:X-Tenant", "ip"])
async def test_a_long_value_is_counted(tmp_path: Path, per: str) -> None:
    """nginx counts no value of more than 255 bytes: it would be no limit for whoever sends one."""
    router = Router()
    router.holding = asyncio.Event()
    limits = (LimitSettings(per=per, concurrent=2),)
    async with frontend_at(tmp_path, FrontendSettings(limits=limits), router) as (url, client):

        async def ask(value: str) -> int:
            async with client.get(f"{url}/v1/models", headers={"X-Tenant": value}) as response:
                return response.status

        for length in (1, 199, 200, 250, 256, 4000):
            tenant = chr(ord("a") + length % 26) * length
            under_way = [asyncio.create_task(ask(tenant)) for _ in range(2)]
            before = len(router.seen)
            async with asyncio.timeout(60):
                while len(router.seen) < before + 2:
                    await asyncio.sleep(0.01)
            assert await ask(tenant) == 429, length
            if length > 200:
                assert await ask(tenant + "x") == 429, "its end does not make it another's"
            router.holding.set()
            assert await asyncio.gather(*under_way) == [200, 200]
            router.holding.clear()


# -- headers of answers


TELLTALE = {
    "Set-Cookie": "session=evil; Domain=example.com",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Clear-Site-Data": '"*"',
    "Public-Key-Handles": "pin",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Private-Network": "true",
    "Refresh": "0; url=https://evil.example",
    "Alt-Svc": 'h2="evil.example:443"',
    "Report-To": "{}",
    "NEL": "{}",
    "Content-Security-Policy-Report-Only": "report-uri https://evil.example",
    "Service-Worker-Allowed": "/",
    "Link": "<https://evil.example>; rel=preload",
    "WWW-Authenticate": "Basic realm=evil",
    "X-Smg-Routed-Worker-Id": "http://127.0.0.1:24001",
    "X-Smg-Cache-Trace": "engine",
    "X-Powered-By": "engine/1",
    "Server": "engine/1",
    "X-Accel-Redirect": "/workers",
    "X-Accel-Expires": "1",
    "Location": "http://127.0.0.1:24001/x",
}


async def test_an_answer_brings_nothing_that_is_not_for_clients(tmp_path: Path) -> None:
    """Not what a browser keeps for the whole name, and no address of the inside; plain headers come through."""
    router = Router(**TELLTALE, **{"X-Plain": "1", "X-Request-Id": "r1"})
    async with frontend_at(tmp_path, FrontendSettings(), router) as (url, client):
        async with client.get(f"{url}/v1/models", allow_redirects=False) as response:
            assert response.status == 200
            assert not {name for name in response.headers if name.title() in map(str.title, TELLTALE)} - {"Server"}
            assert response.headers["Server"] == "nginx"
            assert response.headers["X-Plain"] == "1"
            assert response.headers.getall("X-Request-Id") == [router.seen[-1][1]["X-Request-ID"]]
        for location, passes in {
            "/v1/realtime/calls/c1": True,
            "//evil.example/": False,
            "/\\evil.example/": False,
            "/\t/evil.example": False,
            "https://evil.example/": False,
            "evil": False,
        }.items():
            router.headers = {"Location": location}
            async with client.get(f"{url}/v1/models", allow_redirects=False) as response:
                assert response.headers.get("Location") == (location if passes else None)
    assert {name.lower() for name in TELLTALE} - {
        name.lower() for name in (*HIDDEN, *HEADERS.hidden, HEADERS.worker)
    } == {*("server", "x-accel-redirect", "x-accel-expires")}, "nginx leaves these out by itself"


async def engine_that_tells(socket: Path, **headers: str) -> web.AppRunner:
    """An engine that puts these headers into every answer, streamed ones and errors as well."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path in ("/v1/models", "/server_info", "/get_server_info", "/model_info", "/get_model_info"):
            models = {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "sglang"}]}
            about = {"model_path": "tiny", "disaggregation_mode": "null", "dp_size": 1}
            return web.json_response(models | about, headers=headers)
        if request.path != "/v1/chat/completions":
            return web.json_response({}, headers=headers)
        asked = json.loads(body)
        if asked["messages"][0]["content"] == "fail":
            return web.json_response({"error": {"message": "no"}}, status=400, headers=headers)
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            return web.json_response({"id": "1", "object": "chat.completion", "created": 1, "model": "tiny",
                                      "choices": [choice]}, headers=headers)  # fmt: skip
        stream = web.StreamResponse(headers=headers | {"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b'data: {"id":"1","choices":[]}\n\ndata: [DONE]\n\n')
        return stream

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, OTHER.binds(socket)).start()
    return runner


async def test_no_engine_and_no_router_tells_clients_of_the_inside(make_gateway: MakeGateway) -> None:
    """Through the real router: answers, streams, errors, and a request that waited for it."""
    gateway = make_gateway()
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")

    async def ask(client: aiohttp.ClientSession, text: str, **more: Any) -> tuple[int, dict[str, str]]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}
        origin = {"Origin": "https://evil.example"}
        async with client.post(f"{gateway.url()}/v1/chat/completions", json=body, headers=origin) as response:
            await response.read()
            return response.status, dict(response.headers)

    told = {name: value for name, value in TELLTALE.items() if not name.startswith("X-Accel")}
    async with aiohttp.ClientSession() as client:
        waiting = asyncio.create_task(ask(client, "x"))
        await gateway.until(lambda s: service_of(s)["waiting"] == 1)
        runner = await engine_that_tells(gateway.socket("r1"), **told)
        try:
            await gateway.until_states({"r1": "serving"})
            answers = [await waiting]
            for text, more in (("x", {}), ("x", {"stream": True}), ("fail", {})):
                answers.append(await ask(client, text, **more))
            async with client.options(f"{gateway.url()}/v1/models", headers={"Origin": "https://evil"}) as response:
                answers.append((200, dict(response.headers)))
        finally:
            await runner.cleanup()
    assert [status for status, _ in answers] == [200, 200, 200, 400, 200]
    hidden = {name.lower() for name in (*HIDDEN, *HEADERS.hidden, HEADERS.worker)}
    for _, headers in answers:
        assert [name for name in headers if name.lower() in hidden] == []
        assert "127.0.0.1" not in str(headers)


# -- bodies


def held_by(directory: Path) -> int:
    """Bytes that nginx holds in files of bodies: they have no name any more, but it has them open."""
    below = f"{directory}/temp/"
    held = 0
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(below):
                held += link.stat().st_size
        except OSError:
            continue
    return held


async def sends(port: int, head: str, count: int, piece: bytes = b"x" * 65536) -> tuple[bytes, asyncio.StreamWriter]:
    """Sends a head and so many bytes of body as far as it is let; what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.replace("|", "\r\n").encode() + b"\r\n\r\n")
    answer = asyncio.create_task(reader.read(4096))
    try:
        for _ in range(count // len(piece)):
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 5)
            if answer.done():
                break
    except (ConnectionError, TimeoutError):
        pass
    return await asyncio.wait_for(answer, 60), writer


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize("by", ["keys", "url"])
async def test_without_a_key_nothing_is_held(tmp_path: Path, by: str) -> None:
    """Not a byte of a body lands on the disk before its sender is known, and hardly one of who needs not be known."""
    router, judge = Router(), Judge()
    judge.verdict = 401
    size = 32 * MIB
    async with listening(judge.answer) as asked:
        settings: dict[str, Any] = {"public_paths": ("/health", "/v1/tokenize")}
        if by == "keys":
            add_key(tmp_path / "keys", "alice")
            settings["keys_file"] = tmp_path / "keys"
        else:
            settings |= {"url": parse_auth_url(f"http://127.0.0.1:{asked}/auth"), "timeout_s": 60}
        async with frontend_at(tmp_path, FrontendSettings(auth=AuthSettings(**settings)), router) as (url, client):
            writers = []
            for request, length, wanted in (
                ("POST /v1/chat/completions", f"Content-Length: {size}", 401),
                ("POST /v1/chat/completions", CHUNKED, 401),
                ("GET /v1/models", CHUNKED, 401),
                ("POST /v1/tokenize", f"Content-Length: {size}", 413),
                ("POST /v1/tokenize", f"Content-Length: {SMALL_BYTES + 1}", 413),
                ("POST /v1/tokenize", CHUNKED, 413),
                ("GET /health", f"Content-Length: {size}", 413),
                ("GET /health", CHUNKED, 413),
            ):
                piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if length == CHUNKED else b"x" * 65536
                head = f"{request} HTTP/1.1|Host: x|{length}"
                answer, writer = await sends(port_of(url), head, size, piece)
                writers.append(writer)
                assert answer.split()[1:2] == [str(wanted).encode()], (head, answer)
            assert held_by(tmp_path) == 0
            assert router.seen == []
            for writer in writers:
                writer.close()
            async with client.post(f"{url}/v1/tokenize", data=b"x" * SMALL_BYTES) as response:
                assert response.status == 200
            assert router.seen[-1][2] == SMALL_BYTES


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_what_needs_no_body_may_bring_none_that_is_held(tmp_path: Path, method: str) -> None:
    """With a length or in chunks, and while requests have to wait: it fits into memory, or is refused."""
    router = Router()
    gate = tmp_path / "chat"
    async with frontend_at(tmp_path, FrontendSettings(), router) as (url, client):
        for is_closed in (True, False):
            gate.touch() if is_closed else gate.unlink()
            for length in ("Content-Length: 10000", f"Content-Length: {MIB}", CHUNKED):
                piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if length == CHUNKED else b"x" * 10000
                answer, writer = await sends(
                    port_of(url), f"{method} /v1/responses/r1 HTTP/1.1|Host: x|{length}", MIB, piece
                )
                writer.close()
                assert answer.split()[1:2] == [b"413"], (is_closed, length, answer)
        assert (held_by(tmp_path), router.seen) == (0, [])
        async with client.request(method, f"{url}/v1/responses/r1", data=b"x" * SMALL_BYTES) as response:
            assert response.status == 200
        async with client.request(method, f"{url}/v1/responses/r1") as response:
            assert response.status == 200


async def test_a_body_of_no_said_length_over_http2(tmp_path: Path) -> None:
    """HTTP/2 needs neither Content-Length nor chunks: the same bounds hold."""
    pem = certificate(tmp_path / "tls", "localhost")
    places = FrontendPlaces(tmp_path)
    places.pem("chat").write_text(pem.read_text() + pem.with_suffix(".key").read_text())
    router = Router()
    tls = {"certificate": pem, "key": pem.with_suffix(".key"), "http2": True}
    context = ssl.create_default_context(cafile=str(pem))
    ports = PortBlock()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(listening(router.answer))
        listen = f"127.0.0.1:{ports.first}"
        settings = FrontendSettings.model_validate({"tls": tls, "max_body_mb": 1, "listen": [listen]})
        await stack.enter_async_context(bare_nginx(tmp_path, places, behind, settings))
        client = await stack.enter_async_context(httpx.AsyncClient(http2=True, http1=False, verify=context))

        async def body(size: int) -> AsyncIterator[bytes]:
            for _ in range(size // 1000):
                yield b"x" * 1000

        secure = f"https://localhost:{ports.first}"
        for method, size, wanted in (
            ("GET", 0, 200),
            ("GET", 9_000, 200),
            ("GET", 200_000, 413),
            ("POST", 200_000, 200),
            ("POST", 2_000_000, 413),
        ):
            answer = await client.request(method, f"{secure}/v1/responses/r1", content=body(size))
            assert (answer.http_version, answer.status_code) == ("HTTP/2", wanted), (method, size)
    ports.release()


async def test_bodies_together_are_bounded(tmp_path: Path) -> None:
    """What is held of all requests together stays below the bound; who is beyond comes again; small ones pass. A body
    whose length nobody has said counts as the largest there may be.
    """
    router = Router()
    router.holding = asyncio.Event()
    settings = FrontendSettings(max_body_mb=4)
    async with frontend_at(tmp_path, settings, router, requests=200, held_mb=64) as (url, client):

        async def chunks(size: int) -> AsyncIterator[bytes]:
            yield b"x" * size

        async def post(size: int, *, is_said: bool = True) -> int:
            data = io.BytesIO(b"x" * size) if is_said else chunks(size)
            async with client.post(f"{url}/v1/completions", data=data) as response:
                if response.status == 429:
                    assert response.headers["Retry-After"] == "1"
                return response.status

        large = [asyncio.create_task(post(4 * MIB, is_said=bool(number % 2))) for number in range(20)]
        middling = [asyncio.create_task(post(900_000)) for _ in range(60)]
        async with asyncio.timeout(60):
            while len(router.seen) < 8 + 33 or sum(task.done() for task in (*large, *middling)) < 12 + 27:
                await asyncio.sleep(0.05)
        assert held_by(tmp_path) <= 64 * MIB
        assert held_by(tmp_path) > 48 * MIB
        small = asyncio.create_task(post(50_000))
        before = len(router.seen)
        async with asyncio.timeout(60):
            while len(router.seen) == before:
                await asyncio.sleep(0.01)
        router.holding.set()
        statuses = [sorted(await asyncio.gather(*tasks)) for tasks in (large, middling, [small])]
        assert statuses == [[200] * 8 + [429] * 12, [200] * 33 + [429] * 27, [200]]
        assert await post(4 * MIB) == 200, "they are let go"
    assert [(one.digits, one.most) for one in body_classes(64, 4)] == [(6, 33), (7, 8)]


async def test_a_slow_upload_goes_on(tmp_path: Path) -> None:
    """Only a pause ends one, not its length."""
    router = Router()
    async with frontend_at(tmp_path, FrontendSettings(), router) as (url, client):

        async def slowly() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 1000
                await asyncio.sleep(0.05)

        async with client.post(f"{url}/v1/completions", data=slowly()) as response:
            assert response.status == 200
    assert router.seen[-1][2] == 20_000
    assert "client_body_timeout 60s;" in (tmp_path / "nginx.conf").read_text()
