"""Usage, the access log and the bounds of a key count the same tokens, each once, whatever the answer looks like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.conftest import MakeGateway
from tests.system.gateway import Gateway
from tests.system.test_access_log import until_lines
from tests.system.test_usage import sums, until_requests

CHAT = "/v1/chat/completions"
MOST = 1_000_000
EACH = 5  # tokens of each answer
OPENAI = {"prompt_tokens": 3, "completion_tokens": 2}
NEWER = {"input_tokens": 3, "output_tokens": 2}
PROMPT = {"prompt_tokens": 5, "total_tokens": 5}
DELTA = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
ANSWERS: Mapping[str, Any] = {
    CHAT: {"choices": [{"index": 0, "message": {"content": "a b"}}], "usage": OPENAI},
    "/v1/messages": {"content": [{"type": "text", "text": "a"}], "usage": NEWER},
    "/v1/responses": {"output": [{"content": [{"type": "output_text", "text": "a"}]}], "usage": NEWER},
    "/v1/embeddings": {"data": [{"index": 0, "embedding": [0.1]}], "usage": PROMPT},
    "/v1/rerank": {"results": [{"index": it, "document": {"text": "b"}} for it in range(9)], "usage": PROMPT},
    "/v1/audio/transcriptions": {"text": "what was said", "usage": NEWER},
}
STREAMS: Mapping[str, list[Any]] = {
    CHAT: [DELTA, DELTA],
    "/v1/messages": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    ],
    "/v1/responses": [
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.completed", "response": ANSWERS["/v1/responses"]},
    ],
}


async def answer(request: web.Request) -> web.StreamResponse:
    """As engines do. A stream comes in one piece."""
    body = await request.json() if request.content_type == "application/json" else {}
    if not body.get("stream"):
        return web.json_response(ANSWERS[request.path])
    events = STREAMS[request.path]
    if (body.get("stream_options") or {}).get("include_usage"):
        events = [*events, {"choices": [], "usage": OPENAI}]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return web.Response(text=text + "data: [DONE]\n\n", content_type="text/event-stream")


async def echo(request: web.Request) -> web.WebSocketResponse:
    """A WebSocket."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def start_engine(stack: AsyncExitStack, path: Path) -> None:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "a/tiny", "object": "model"}]})

    async def well(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=2**24)
    app.add_routes([web.get("/v1/models", models), web.get("/health", well), web.get("/v1/realtime", echo)])
    app.add_routes([web.post(path, answer) for path in ANSWERS])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.UnixSite(runner, str(path)).start()


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Path, and what is sent there."""
    bodies: list[tuple[str, dict[str, Any]]] = [(path, {}) for path in ANSWERS if "audio" not in path]
    bodies += [(path, {"stream": True}) for path in STREAMS]
    bodies += [(CHAT, {"stream": True, "stream_options": {"include_usage": True}})]
    bodies += [(CHAT, {"stream": True, "messages": "x" * 300_000})]
    sent: list[tuple[str, dict[str, Any]]] = [(path, {"json": {"model": "a/tiny", **body}}) for path, body in bodies]
    escaped = {"data": rb'{"model": "a\/tiny"}', "headers": {"Content-Type": "application/json"}}
    twice = {"data": b'{"model": "b", "model": "a/tiny"}', "headers": {"Content-Type": "application/json"}}
    sent += [(CHAT, escaped), (CHAT, twice)]
    for size in (9, 300_000):
        form = aiohttp.FormData({"model": "a/tiny"})
        form.add_field("file", b"x" * size, filename="a.wav", content_type="audio/wav")
        sent.append(("/v1/audio/transcriptions", {"data": form}))
    return sent


def counting(make_gateway: MakeGateway) -> tuple[Gateway, str]:
    """A service of its own address, and a shared one with a canary; the key of a client."""
    gateway = make_gateway(services=("chat", "code", "api"), access_log={"tokens": True})
    file = gateway.directory / "keys"
    key = add_key(file, "alice", tokens_per_day=str(MOST), concurrent="1", models="a/tiny")
    frontend = {"usage": {}, "access_log": "all", "auth": {"keys_file": str(file)}}
    services = gateway.settings["services"] = gateway.settings["services"][:2]
    for service in services:
        service["router"] = {"type": "none"}
    services[0]["frontend"] = frontend
    targets = [{"service": "chat", "weight": 60}, {"service": "code", "weight": 40}]
    listen, models = f"127.0.0.1:{gateway.ports['api']}", {"a/tiny": {"services": targets}}
    gateway.settings["addresses"] = [{"name": "api", "listen": listen, "models": models, "frontend": frontend}]
    return gateway, key


@pytest.mark.parametrize("address", ["chat", "api"])
async def test_all_that_count_tokens_count_the_same(make_gateway: MakeGateway, address: str) -> None:
    """At a service's own address and at a shared one; with one request at a time, none stays behind."""
    gateway, key = counting(make_gateway)
    await gateway.start()
    async with AsyncExitStack() as stack:
        for service in ("chat", "code"):
            await start_engine(stack, gateway.socket("r1", service))
            await gateway.until_states({"r1": "serving"}, service=service)
        client = await stack.enter_async_context(gateway.client(headers={"Authorization": f"Bearer {key}"}))
        sent = requests()
        for count, (path, options) in enumerate(sent):
            async with client.post(gateway.url(address) + path, **options) as got:
                text = await got.text()
                assert (path, got.status) == (path, 200), text
                assert (path, got.headers["x-ratelimit-remaining-tokens"]) == (path, str(MOST - EACH * count))
                asks = "stream_options" in options.get("json", {})
                assert ('"choices": []' in text) == asks
            await until_requests(gateway, count + 1)  # What an answer took counts when nginx is done with it.
        rows = await until_requests(gateway, len(sent))
        assert {(row["key"], row["model"]) for row in rows} == {("alice", "a/tiny")}
        assert sums(rows)["tokens_in"] + sums(rows)["tokens_out"] == EACH * len(sent)
        assert sums(rows)["unknown"] == 0
        for line in await until_lines(gateway, len(sent)):
            assert (line["path"], (line["tokens_in"] or 0) + (line["tokens_out"] or 0)) == (line["path"], EACH)
            assert (line["path"], line["model"]) == (line["path"], "a/tiny")
        async with client.ws_connect(gateway.url(address) + "/v1/realtime?model=a/tiny") as socket:
            await socket.send_str("x")
            assert (await socket.receive()).data == "x"
        rows = await until_requests(gateway, len(sent) + 1)
        assert {(row["key"], row["model"]) for row in rows} == {("alice", "a/tiny")}
        assert sums(rows)["unknown"] == 1, "what a WebSocket takes nobody says"
        async with asyncio.timeout(60), client.post(gateway.url(address) + CHAT, json={"model": "a/tiny"}) as got:
            assert got.status == 200
