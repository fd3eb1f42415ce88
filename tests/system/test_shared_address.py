"""One address for the models of several services: each request goes to the service of the model that it names."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from bench.wire import Connection
from examples.simulated import SimulatedEngine
from gateway_sidecar.frontend.edit_keys import add_key
from tests.certificates import certificate
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, service_of
from tests.system.test_access_log import until_lines
from tests.system.test_operation import metrics_of

MESSAGES = [{"role": "user", "content": "hello"}]


def shared(
    make_gateway: MakeGateway, models: dict[str, Any], *, services: tuple[str, ...] = ("chat", "code"), **more: Any
) -> Gateway:
    """A gateway with these services, and one address for these models."""
    gateway = make_gateway(services=services)
    first = min(gateway.ports.values())
    gateway.settings["router_ports"] = f"{first + 10}-{first + 25}"
    gateway.settings["bridges"]["ports"] = f"{first + 26}-{first + 59}"
    gateway.ports["api"] = first + 8
    gateway.settings["addresses"] = [{"name": "api", "listen": f"127.0.0.1:{first + 8}", "models": models, **more}]
    return gateway


async def ask(
    gateway: Gateway, body: Any, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, Any]]:
    """A POST to the shared address; the status and the answer. `body`: JSON, or bytes, or a form as they are."""
    sent = {"json": body} if isinstance(body, dict) else {"data": io.BytesIO(body) if isinstance(body, bytes) else body}
    url = f"{gateway.url('api')}{path}"
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers, **sent) as answer:
        return answer.status, await answer.json(content_type=None)


async def get(gateway: Gateway, path: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url('api')}{path}") as answer:
        return answer.status, await answer.json()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 2, **more}


async def serve(gateway: Gateway, engine: StartEngine, **models: str) -> dict[str, SimulatedEngine]:
    """Starts the daemon, and one engine for each service."""
    await gateway.start()
    engines = {}
    for service, model in models.items():
        engines[service] = await engine(gateway.socket("r1", service), model=model)
    await gateway.until(lambda s: not any(service_of(s, service)["missing"] for service in models))
    return engines


async def test_each_model_is_answered_by_its_service(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One address, one list, and an error that names what there is."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code"})
    engines = await serve(gateway, engine, chat="tiny", code="large")
    for model, service in (("tiny", "chat"), ("large", "code"), ("tiny", "chat")):
        before = engines[service].ledger.received
        status, answer = await ask(gateway, chat(model))
        assert (status, answer.get("model")) == (200, model), answer
        assert engines[service].ledger.received == before + 1
    status, answer = await get(gateway, "/v1/models")
    assert [it["id"] for it in answer["data"]] == ["large", "tiny"]
    assert "asleep" not in json.dumps(answer)
    assert (await get(gateway, "/v1/models/tiny"))[1]["id"] == "tiny"
    for status, answer in (await ask(gateway, chat("huge")), await get(gateway, "/v1/models/huge")):
        assert status == 404
        assert (answer["error"]["code"], answer["error"]["param"]) == ("model_not_found", "model")
        assert "'huge'" in answer["error"]["message"]
        assert "large, tiny" in answer["error"]["message"]


async def test_requests_wait_for_the_model_that_they_name(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One model has nobody: its requests wait, and the other's do not."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code"})
    gateway.settings["services"][1]["hold"] = {"asleep_s": 120}
    await serve(gateway, engine, chat="tiny")
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    waiting = [asyncio.create_task(ask(gateway, chat("large"))) for _ in range(5)]
    await gateway.until(lambda s: service_of(s, "code")["waiting"] == 5)
    assert (await ask(gateway, chat("tiny")))[0] == 200
    _, answer = await get(gateway, "/v1/models")
    assert {it["id"]: it.get("status") for it in answer["data"]} == {"large": "asleep", "tiny": None}
    here = await engine(gateway.socket("r1", "code"), model="large")
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 5
    assert here.ledger.received == 5
    assert "asleep" not in json.dumps((await get(gateway, "/v1/models"))[1])


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_what_needs_no_body_brings_none_that_is_held(
    make_gateway: MakeGateway, engine: StartEngine, method: str
) -> None:
    """Whether its service waits for a replica, or has another kind of router than the address's first one."""
    gateway = shared(
        make_gateway, {"tiny": "chat", "code": "code", "asleep": "more"}, services=("chat", "code", "more")
    )
    gateway.settings["services"][0]["router"] = {"type": "none"}
    engines = await serve(gateway, engine, chat="tiny", code="code")
    await gateway.until(lambda s: service_of(s, "more")["missing"] == "replica")

    async def piecemeal() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 10_000

    async with aiohttp.ClientSession() as session:
        for model in ("tiny", "code", "asleep"):
            url = f"{gateway.url('api')}/v1/responses/r1?model={model}"
            async with session.request(method, url, data=piecemeal()) as answer:
                assert (answer.status, model) == (413, model)
    assert [it.ledger.received for it in engines.values()] == [0, 0]


async def test_a_killed_nginx_leaves_no_bodies(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Those that were read for their model have a name in its directory."""
    gateway = shared(make_gateway, {"tiny": "chat"}, services=("chat",))
    slow = (await serve(gateway, engine, chat="tiny"))["chat"]
    slow.behave(token_interval_s=60.0)
    bodies = gateway.directory / "state" / "nginx-temp" / "client_body"
    asked = asyncio.create_task(ask(gateway, chat("tiny", user="x" * 400_000)))
    await slow.until(lambda seen: seen.in_flight == 1)
    assert len(list(bodies.iterdir())) == 1
    before = (await gateway.status())["nginx"]["pid"]
    os.kill(before, signal.SIGKILL)
    await gateway.until(lambda it: it["nginx"]["pid"] not in (None, before))
    assert list(bodies.iterdir()) == []
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


# -- with engines that show what reached them


class Recorder:
    """Any OpenAI server: it lists one model, and keeps the requests that reach it as they came."""

    def __init__(self, socket: Path, model: str) -> None:
        self._socket, self._model = socket, model
        self.asked: list[tuple[str, bytes]] = []
        self._talks = 0
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._healthy)
        app.router.add_route("*", "/{path:.*}", self._record)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> Recorder:
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()
        return self

    async def stop(self) -> None:
        async with asyncio.timeout(60):
            while self._talks:  # A WebSocket ends when nginx has passed its end on.
                await asyncio.sleep(0.01)
        await self._runner.cleanup()
        await asyncio.sleep(0)
        self._socket.unlink(missing_ok=True)

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._model, "object": "model"}]})

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _record(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._talk(request)
        self.asked.append((request.raw_path, await request.read()))
        return web.json_response({"from": self._model})

    async def _talk(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.raw_path, b""))
        self._talks += 1
        try:
            websocket = web.WebSocketResponse()
            await websocket.prepare(request)
            async for message in websocket:
                await websocket.send_str(f"{self._model}: {message.data}")
            return websocket
        finally:
            self._talks -= 1


Record = Callable[[Gateway, str, str], Awaitable[Recorder]]


@pytest_asyncio.fixture
async def record() -> AsyncIterator[Record]:
    """Starts an engine of a service that ends with the test."""
    started: list[Recorder] = []

    async def start(gateway: Gateway, service: str, model: str) -> Recorder:
        started.append(await Recorder(gateway.socket("r1", service), model).start())
        await gateway.until(lambda s: service_of(s, service)["missing"] is None)
        return started[-1]

    yield start
    for each in started:
        await each.stop()


def balanced(make_gateway: MakeGateway, models: dict[str, Any], **more: Any) -> Gateway:
    """The same without routers."""
    gateway = shared(make_gateway, models, **more)
    for service in gateway.settings["services"]:
        service["router"] = {"type": "none"}
        service["hold"] = {"asleep_s": 0.1}
    return gateway


async def test_what_is_sent_on_is_what_came_but_for_an_alias(make_gateway: MakeGateway, record: Record) -> None:
    """Byte for byte, in memory and in a file, whole and in chunks; of an alias the one word is another."""
    models = {"tiny": "chat", "gpt-4o": {"service": "chat", "model": "org/tiny-instruct"}, "large": "code"}
    gateway = balanced(make_gateway, models, default="code")
    await gateway.start()
    here, other = await record(gateway, "chat", "tiny"), await record(gateway, "code", "large")
    for padding in (10, 200_000, 1_200_000):
        for name, sent in (("tiny", "tiny"), ("gpt-4o", "org/tiny-instruct")):
            body = '{"model" : "large", "x": {"model": "none"}, "t": "%s", "mod\\u0065l": "%s" , "é": [1.5e3]}'
            text = (body % (r"\\\"}{" * (padding // 6), name)).encode()
            goes_on = text.replace(f'"{name}" ,'.encode(), f'"{sent}" ,'.encode())
            assert await ask(gateway, text) == (200, {"from": "tiny"})
            assert here.asked.pop() == ("/v1/chat/completions", goes_on)

            async def pieces(text: bytes = text) -> AsyncIterator[bytes]:
                yield text[:7]
                yield text[7:]

            assert await ask(gateway, pieces()) == (200, {"from": "tiny"})
            assert here.asked.pop()[1] == goes_on
    assert (await get(gateway, "/v1/responses/resp_1"))[1] == {"from": "large"}, "what names no model has its service"
    assert other.asked == [("/v1/responses/resp_1", b"")]
    assert (await get(gateway, "/v1/responses/resp_1?limit=3&model=gpt-4o&x=%20y"))[1] == {"from": "tiny"}
    assert here.asked.pop()[0] == "/v1/responses/resp_1?limit=3&model=org%2Ftiny-instruct&x=%20y"


async def test_forms_are_led_by_their_field(make_gateway: MakeGateway, record: Record) -> None:
    """Audio and images come as forms; the field may stand before the file or after it, and a file may hold anything."""
    models = {"whisper": "chat", "whisper-1": {"service": "code", "model": "org/whisper-large"}}
    gateway = balanced(make_gateway, models)
    await gateway.start()
    engines = {"whisper": await record(gateway, "chat", "whisper"), "whisper-1": await record(gateway, "code", "large")}
    for size in (100, 2_000_000):
        for model, engine in engines.items():
            for first in (True, False):
                head = b'--AbC\r\ncontent-disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n"
                audio = b'\r\n--AbX\r\nContent-Disposition: form-data; name="model"\r\n\r\nno\r\n' + b"\x00\xff" * size
                file = b'--AbC\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n'
                file += audio + b"\r\n"
                named = b'--AbC\r\nContent-Disposition: form-data; name="x\\"; filename="a;name=model"\r\n\r\nnope\r\n'
                body = (head + named + file if first else named + file + head) + b"--AbC--\r\n"
                kind = {"Content-Type": "multipart/form-data; boundary=AbC"}
                status, answer = await ask(gateway, body, "/v1/audio/transcriptions", **kind)
                assert status == 200, answer
                sent = body.replace(b"\r\n\r\nwhisper-1\r\n", b"\r\n\r\norg/whisper-large\r\n")
                assert engine.asked.pop() == ("/v1/audio/transcriptions", sent)
    good = b'--AbC\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--AbC--\r\n'
    for said in ('boundary="AbC"', "charset=x; BOUNDARY=AbC ; a=b"):
        kind["Content-Type"] = f"multipart/form-data; {said}"
        assert (await ask(gateway, good, "/v1/audio/transcriptions", **kind))[0] == 200, said
    for said in ("boundary=", "xboundary=AbC", "boundary=AbC; boundary=AbC", 'boundary="A\\bC"', 'x="; boundary=AbC'):
        kind["Content-Type"] = f"multipart/form-data; {said}"
        status, answer = await ask(gateway, good, "/v1/audio/transcriptions", **kind)
        assert (status, answer["error"]["code"]) == (400, "invalid_form"), said
    kind["Content-Type"] = "multipart/form-data; boundary=AbC"
    unended = b"--AbC\r\nContent-Disposition: form-data; name=model\r\n\r\nx"
    for body in (b"", b"--AbC--\r\n", b"--AbC\r\n", b"nothing", unended):
        status, answer = await ask(gateway, body, "/v1/audio/transcriptions", **kind)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), body


async def test_a_websocket_names_its_model_in_its_query(make_gateway: MakeGateway, record: Record) -> None:
    """It is led, renamed, refused and held like any other request."""
    models = {"large": "code", "gpt-4o-realtime": {"service": "chat", "model": "org/tiny"}}
    gateway = balanced(make_gateway, models)
    gateway.settings["services"][1]["hold"] = {"asleep_s": 60}
    await gateway.start()
    here = await record(gateway, "chat", "org/tiny")
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    url = f"{gateway.url('api')}/v1/realtime"

    async def talk(session: aiohttp.ClientSession, model: str) -> str:
        async with session.ws_connect(f"{url}?intent=talk&model={model}") as websocket:
            await websocket.send_str("hello")
            return await websocket.receive_str()

    async with aiohttp.ClientSession() as session:
        assert await talk(session, "gpt-4o-realtime") == "org/tiny: hello"
        assert here.asked == [("/v1/realtime?intent=talk&model=org%2Ftiny", b"")]
        for query, status in (("", 400), ("?model=none", 404), ("?model=large&model=large", 400)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url + query)
            assert refused.value.status == status
        waiting = asyncio.create_task(talk(session, "large"))
        await gateway.until(lambda s: service_of(s, "code")["waiting"] == 1)
        await record(gateway, "code", "large")
        assert await waiting == "large: hello"


BAD_BODIES = [
    (b"", 400, "missing_model"),
    (b"{}", 400, "missing_model"),
    (b'{"messages": [{"model": "tiny"}]}', 400, "missing_model"),
    (b'{"model": null}', 400, "invalid_model"),
    (b'{"model": ["tiny"]}', 400, "invalid_model"),
    (b'{"model": "tiny"', 400, "invalid_json"),
    (b'["model", "tiny"]', 400, "invalid_json"),
    (b'{"model": "tiny"} x', 400, "invalid_json"),
    (b"model=tiny", 400, "invalid_json"),
    (b"\xff\xfe{\x00", 400, "invalid_json"),
    (b'{"model": "' + b"m" * 10_000 + b'"}', 404, "model_not_found"),
    (b'{"model": "mod\xc3\xa8le \\u0000 \\"<b>"}', 404, "model_not_found"),
    (b'{"model": "\xff\xfe"}', 404, "model_not_found"),
    (b'{"model": "tiny", "x": "' + b"y" * (1 << 20) + b'"}', 413, "request_too_large"),
]


async def test_each_body_that_leads_nowhere_has_one_answer(make_gateway: MakeGateway, record: Record) -> None:
    """In OpenAI's form, as JSON that everybody can read, and short; also in chunks."""
    gateway = balanced(make_gateway, {"tiny": "chat"}, frontend={"max_body_mb": 1})
    await gateway.start()
    await record(gateway, "chat", "tiny")
    url = f"{gateway.url('api')}/v1/chat/completions"

    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        yield body

    async with aiohttp.ClientSession() as session:
        for body, status, code in BAD_BODIES:
            for data in (body, in_chunks(body)):
                async with session.post(url, data=io.BytesIO(data) if isinstance(data, bytes) else data) as answer:
                    raw = await answer.read()
                    assert (answer.status, json.loads(raw)["error"]["code"]) == (status, code), (body[:99], raw)
                    assert len(raw) < 600
        async with session.post(url, data=b"x", headers={"Content-Encoding": "gzip"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "unsupported_encoding")
        async with session.get(f"{gateway.url('api')}/v1/realtime?model=tiny&model=x") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_model")
        async with session.get(f"{gateway.url('api')}/v1/responses/resp_1?MODEL=tiny") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "missing_model")
        async with session.post(f"{gateway.url('api')}/v1/models", data=b"x") as answer:
            assert answer.status == 405
        async with session.get(f"{gateway.url('api')}/health") as answer:
            assert answer.status == 200


async def test_services_share_a_model_by_weight(make_gateway: MakeGateway, record: Record) -> None:
    """A canary gets its part; one without replicas is left out, and its part counts for it as diverted."""
    both = {"services": [{"service": "chat", "weight": 9}, {"service": "code", "weight": 1, "model": "next"}]}
    gateway = balanced(make_gateway, {"tiny": both})
    for service in gateway.settings["services"]:
        service["hold"] = {"asleep_s": 60}
    await gateway.start()
    stable, canary = await record(gateway, "chat", "tiny"), await record(gateway, "code", "next")

    async def ask_in_turn(count: int) -> None:
        async with Connection("127.0.0.1", gateway.ports["api"]) as connection:
            for _ in range(count):
                assert (await connection.ask("POST", "/v1/chat/completions", chat("tiny"))).status == 200

    await asyncio.gather(*(ask_in_turn(1000) for _ in range(10)))
    assert len(stable.asked) + len(canary.asked) == 10_000
    assert 984 <= len(canary.asked) <= 1016, "give or take four, in each worker process and moment"
    assert {body for _, body in canary.asked} == {json.dumps(chat("next")).encode()}
    await canary.stop()
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    for _ in range(100):
        assert await ask(gateway, chat("tiny")) == (200, {"from": "tiny"})
    diverted = ("gateway_sidecar_requests_total", frozenset({"service": "code", "outcome": "diverted"}.items()))
    async with asyncio.timeout(60):
        while not (number := (await metrics_of(gateway)).get(diverted, 0)):
            await asyncio.sleep(0.05)
    assert number < 50


def _desired(status: Status, service: str) -> int | None:
    """How many replicas are recommended, once that is known."""
    scaling = service_of(status, service)["scaling"]
    return scaling["roles"]["regular"]["desired"] if scaling and scaling["roles"] else None


async def test_a_fallback_answers_while_the_first_has_nobody(make_gateway: MakeGateway, record: Record) -> None:
    """At once, under the name that it knows; the first has its requests again with its first replica."""
    models = {"large": {"service": "code", "fallback": {"service": "chat", "model": "tiny"}}, "tiny": "chat"}
    gateway = balanced(make_gateway, models)
    gateway.settings["services"][1]["scaling"] = {"min": 0, "max": 1, "metric": "concurrency", "target": 1}
    await gateway.start()
    here = await record(gateway, "chat", "tiny")
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    assert await ask(gateway, chat("large")) == (200, {"from": "tiny"})
    assert json.loads(here.asked[-1][1]) == chat("tiny")
    assert "asleep" not in (await get(gateway, "/v1/models/large"))[1]
    await gateway.until(lambda s: _desired(s, "code") == 1)
    _, shown, _ = await gateway.cli("status")
    assert "large  code (asleep), else chat as tiny" in shown
    await record(gateway, "code", "large")
    assert await ask(gateway, chat("large")) == (200, {"from": "large"})
    await here.stop()
    await gateway.until(lambda s: service_of(s, "chat")["missing"] == "replica")
    status, answer = await ask(gateway, chat("tiny"))
    assert (status, answer["error"]["code"]) == (503, "no_replica")
    assert (await get(gateway, "/v1/models/tiny"))[1]["status"] == "asleep"


async def test_a_reload_changes_models_and_a_scale_event_reloads_nothing(
    make_gateway: MakeGateway, record: Record
) -> None:
    """A model that is added is there with the reload, and `check`, `plan` and `status` tell of the address."""
    gateway = balanced(make_gateway, {"tiny": "chat"})
    gateway.configure()
    code, shown, _ = await gateway.cli("plan")
    assert f"serve 1 model of chat at 127.0.0.1:{gateway.ports['api']}" in shown, shown
    await gateway.start()
    here = await record(gateway, "chat", "tiny")
    assert (await gateway.status())["nginx"]["reloads"] == 0
    assert (await ask(gateway, chat("new")))[0] == 404
    gateway.settings["addresses"][0]["models"]["new"] = {"service": "chat", "model": "tiny"}
    gateway.configure()
    code, shown, _ = await gateway.cli("check")
    assert f"api: 127.0.0.1:{gateway.ports['api']} leads to 2 models of chat" in shown, shown
    code, shown, problems = await gateway.cli("reload")
    assert code == 0, problems
    assert "api: models" in shown
    assert await ask(gateway, chat("new")) == (200, {"from": "tiny"})
    assert here.asked[-1][1] == json.dumps(chat("tiny")).encode()
    _, shown, _ = await gateway.cli("status")
    assert "address of 2 models" in shown
    assert "new    chat as tiny" in shown
    gateway.settings["addresses"] = []
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(gateway, chat("tiny"))


async def test_routers_of_several_kinds_behind_keys(
    make_gateway: MakeGateway, engine: StartEngine, record: Record
) -> None:
    """One address, keys of its own, an SMG and no router behind it; a path that one of the two does not have."""
    gateway = shared(make_gateway, {"tiny": "chat", "large": "code"})
    file = gateway.directory / "api.keys"
    key = add_key(file, "alice")
    gateway.settings["addresses"][0]["frontend"] = {
        "auth": {"keys_file": str(file)},
        "limits": [{"per": "key", "rps": 100, "burst": 100, "concurrent": 10}],
    }
    gateway.settings["services"][1] |= {"router": {"type": "none"}, "hold": {"asleep_s": 60}}
    gateway.settings["services"][1]["frontend"] = {"auth": {"keys_file": str(file)}}
    await gateway.start()
    tiny = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await gateway.until(lambda s: service_of(s, "code")["missing"] == "replica")
    assert (await ask(gateway, chat("tiny")))[0] == 401
    allowed = {"Authorization": f"Bearer {key}"}
    assert (await ask(gateway, chat("tiny"), **allowed))[0] == 200
    waiting = asyncio.create_task(ask(gateway, chat("large"), **allowed))
    await gateway.until(lambda s: service_of(s, "code")["waiting"] == 1)
    large = await record(gateway, "code", "large")
    assert await waiting == (200, {"from": "large"})
    status, answer = await ask(gateway, chat("large"), "/v1/interactions", **allowed)
    assert (status, answer["error"]["code"]) == (404, "unknown_url"), "only SMG has this path"
    assert [path for path, _ in large.asked] == ["/v1/chat/completions"]
    assert tiny.ledger.received == 1
    requests = {("chat", "ok"): 1.0, ("code", "ok"): 1.0}
    async with asyncio.timeout(60):
        while True:
            metrics = await metrics_of(gateway)
            labels = {of: frozenset({"service": of[0], "outcome": of[1]}.items()) for of in requests}
            if all(metrics.get(("gateway_sidecar_requests_total", it)) == 1 for it in labels.values()):
                break
            await asyncio.sleep(0.05)


async def test_over_http2_and_while_the_daemon_is_away(make_gateway: MakeGateway, record: Record) -> None:
    """Bodies of any kind over HTTP/2, aliases too; nginx does it alone, and the next daemon reloads nothing."""
    gateway = balanced(make_gateway, {"tiny": "chat", "gpt-4o": {"service": "chat", "model": "tiny"}})
    port = gateway.ports["chat"] + 7
    pem = certificate(gateway.directory / "tls", "localhost")
    gateway.settings["addresses"][0]["frontend"] = {
        "listen": [f"127.0.0.1:{port}"],
        "tls": {"certificate": str(pem), "key": str(pem.with_suffix(".key")), "http2": True},
    }
    await gateway.start()
    here = await record(gateway, "chat", "tiny")
    assert await gateway.terminate() == 0
    url = f"https://127.0.0.1:{port}/v1/chat/completions"
    async with httpx.AsyncClient(http2=True, http1=False, verify=False, timeout=30) as http:
        for size in (10, 1_000_000):
            text, sent = (json.dumps(chat(name, x="y" * size)).encode() for name in ("gpt-4o", "tiny"))

            async def in_pieces(text: bytes = text) -> AsyncIterator[bytes]:
                yield text[:5]
                yield text[5:]

            for content in (text, in_pieces()):
                answer = await http.post(url, content=content, headers={"Content-Type": "application/json"})
                assert (answer.http_version, answer.status_code) == ("HTTP/2", 200), answer.text
                assert here.asked.pop()[1] == sent
        models = (await http.get(f"https://127.0.0.1:{port}/v1/models")).json()
        assert [it["id"] for it in models["data"]] == ["gpt-4o", "tiny"]
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] is None)
    assert (await ask(gateway, chat("gpt-4o")))[0] == 200
    status = await gateway.status()
    assert (status["nginx"]["reloads"], status["problems"]) == (0, [])


async def test_the_access_log_names_the_service_that_a_request_went_to(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """And the model as the client called it; one that nobody has went to no service."""
    models = {"tiny": "chat", "alias": {"service": "code", "model": "large"}}
    gateway = shared(make_gateway, models, frontend={"access_log": "all"})
    await serve(gateway, engine, chat="tiny", code="large")
    for model, status in (("tiny", 200), ("alias", 200), ("none", 404)):
        assert (await ask(gateway, chat(model)))[0] == status
    lines = await until_lines(gateway, 3)
    assert [it["address"] for it in lines] == ["api"] * 3
    said = [(it["service"], it["model"], it["replica"], it["status"]) for it in lines]
    assert said == [("chat", "tiny", "r1", 200), ("code", "alias", "r1", 200), ("", "none", "", 404)]


@pytest.mark.parametrize("router", [{}, {"type": "none"}], ids=["smg", "no router"])
async def test_a_body_that_is_no_http_is_refused_here_and_asks_nobody(
    make_gateway: MakeGateway, engine: StartEngine, router: dict[str, str]
) -> None:
    """Its head has been judged, and let in, by then. At a service's own address, too."""
    gateway = shared(make_gateway, {"tiny": "chat"}, services=("chat",))
    gateway.settings["services"][0]["router"] = router
    here = (await serve(gateway, engine, chat="tiny"))["chat"]
    head = "POST /v1/chat/completions HTTP/1.1|Host: x|Connection: close|Transfer-Encoding: chunked||"
    for name in ("chat", "api"):
        for chunk in (b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n0\r\n\r\n", b"1\r\n{}\r\n0\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports[name])
            writer.write(head.replace("|", "\r\n").encode() + chunk)
            async with asyncio.timeout(60):
                answer = (await reader.read()).decode()
            writer.close()
            assert answer.startswith("HTTP/1.1 400 "), answer
            assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "bad_request", answer
    assert here.ledger.received == 0
    assert not [path for path in here.ledger.calls if "refused" in path]
