"""Usage by key and model on the real nginx and SMG: as the engines count it, whatever ends when."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, StreamEnded

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, with_children
from tests.system.test_frontend_tls import NAME, public

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": 'one "usage" two'}], "max_tokens": 4}
ASKS = {"stream": True, "stream_options": {"include_usage": True}}
_LONGEST_S = 60


def counting(make_gateway: MakeGateway, usage: Mapping[str, Any] | None = None, **more: Any) -> Gateway:
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"usage": usage or {}, **more}
    return gateway


async def usage_of(gateway: Gateway, **query: str) -> list[dict[str, Any]]:
    async with gateway.session.get("http://daemon/v1/usage", params=query) as answer:
        assert answer.status == 200, await answer.text()
        rows: list[dict[str, Any]] = (await answer.json())["rows"]
        return rows


def sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    fields = ("requests", "refused", "failed", "aborted", "streams", "tokens_in", "tokens_out", "unknown")
    return {name: sum(row[name] for row in rows) for name in fields}


async def until_requests(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The rows, once nginx has counted so many requests."""
    async with asyncio.timeout(_LONGEST_S):
        while sums(rows := await usage_of(gateway))["requests"] < count:
            await asyncio.sleep(0.05)
    assert sums(rows)["requests"] == count
    return rows


async def post(
    gateway: Gateway, body: Mapping[str, Any], path: str = CHAT, service: str = "chat", **headers: str
) -> tuple[int, str]:
    url = gateway.url(service) + path
    async with gateway.client() as client, client.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def leave(gateway: Gateway, body: Mapping[str, Any]) -> None:
    """Reads the beginning of a stream and goes."""
    async with (
        gateway.client() as client,
        client.post(gateway.url() + CHAT, json={**body, "stream": True, "max_tokens": 1000}) as answer,
    ):
        await answer.content.readline()
        answer.close()


def events_of(text: str) -> list[Any]:
    """What each event of a stream says."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", [EngineKind.VLLM_HTTP, EngineKind.SGLANG_GRPC])
@pytest.mark.parametrize("router", ["smg", "none"])
async def test_tokens_are_those_that_the_engine_counts(
    make_gateway: MakeGateway, engine: StartEngine, kind: EngineKind, router: str
) -> None:
    """Whole answers, streams whose clients ask and do not ask, and those that clients leave."""
    if kind.is_grpc and router == "none":
        pytest.skip("without a router there are engines over HTTP only")
    gateway = counting(make_gateway)
    gateway.settings["services"][0]["router"] = {"type": router}
    await gateway.start()
    one = await engine(gateway.socket("r1"), kind=kind, token_interval_s=0.001)
    await gateway.until_states({"r1": "serving"}, within_s=_LONGEST_S)
    bodies = [BODY, {**BODY, "stream": True}, {**BODY, **ASKS}, {**BODY, "max_tokens": 9, "stream": True}]
    for status, _ in await asyncio.gather(*(post(gateway, body) for body in bodies * 8)):
        assert status == 200
    one.behave(token_interval_s=0.1)  # No stream ends before its client is known to have left.
    await asyncio.gather(*(leave(gateway, BODY) for _ in range(6)))
    await one.until(lambda seen: seen.completed == 32 and seen.aborted == 6, within_s=_LONGEST_S)
    (row,) = await until_requests(gateway, 38)
    assert (row["service"], row["key"], row["model"]) == ("chat", "", "tiny")
    assert (row["aborted"], row["unknown"], row["streams"]) == (6, 6, 30)
    assert (row["tokens_in"], row["tokens_out"]) == (one.ledger.tokens_in, one.ledger.tokens_out)
    assert row["tokens_out"] == 8 * (4 + 4 + 4 + 9)


async def test_a_client_gets_the_stream_that_it_asked_for(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """What nginx asks for beyond that does not reach it; the engine gets the client's other options as they were."""
    gateway = counting(make_gateway)
    gateway.settings["services"][0]["router"] = {"type": "none"}
    await gateway.start()
    one = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    for options, wanted in {
        '"stream": true': {"include_usage": True},
        '"stream":true, "stream_options": null': {"include_usage": True},
        '"stream_options": {}, "str\\u0065am": true': {"include_usage": True},
        '"stream": true, "stream_options": {"x": [1, "}"], "include_usage": false}': {
            "x": [1, "}"], "include_usage": True,
        },
        '"stream": true, "stream_options": {"continuous_usage_stats": true}': {
            "include_usage": True, "continuous_usage_stats": False,
        },
    }.items():  # fmt: skip
        text = json.dumps(BODY)[:-1] + f", {options}}}"
        async with gateway.client() as client, client.post(gateway.url() + CHAT, data=text) as answer:
            events = events_of(await answer.text())
        assert [len(event["choices"]) for event in events] == [1] * 5
        assert not any("usage" in event for event in events)
        assert one.ledger.requests[-1].body == {**BODY, "stream": True, "stream_options": wanted}
    _, text = await post(gateway, {**BODY, **ASKS})
    assert events_of(text)[-1]["usage"]["completion_tokens"] == 4
    _, text = await post(gateway, {"model": "tiny", "prompt": "a b", "stream": True, "max_tokens": 2}, TEXT)
    assert [len(event["choices"]) for event in events_of(text)] == [1] * 3
    rows = await until_requests(gateway, 7)
    assert (sums(rows)["tokens_out"], sums(rows)["unknown"]) == (one.ledger.tokens_out, 0)


async def test_a_long_body_is_asked_about_too(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One that nginx keeps on disk: nobody escapes the count by a long prompt."""
    gateway = counting(make_gateway)
    await gateway.start()
    one = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    long = {"messages": [{"role": "user", "content": "word " * 100_000}], "model": "tiny", "max_tokens": 3}
    status, text = await post(gateway, {**long, "stream": True})
    assert status == 200
    assert [len(event["choices"]) for event in events_of(text)] == [1] * 4
    assert (await post(gateway, long))[0] == 200
    (row,) = await until_requests(gateway, 2)
    assert (row["model"], row["tokens_in"], row["unknown"]) == ("tiny", 200_000, 0)
    assert row["tokens_in"] == one.ledger.tokens_in


async def test_without_asking_requests_go_on_as_they_came(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A stream that does not say its tokens counts as unknown, and not as zero."""
    gateway = counting(make_gateway, {"ask": False})
    gateway.settings["services"][0]["router"] = {"type": "none"}
    await gateway.start()
    one = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await post(gateway, {**BODY, "stream": True})
    assert "stream_options" not in one.ledger.requests[-1].body
    await post(gateway, {**BODY, **ASKS})
    rows = await until_requests(gateway, 2)
    assert (sums(rows)["unknown"], sums(rows)["tokens_out"]) == (1, 4)


async def test_each_key_and_model_is_told_apart(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """What was refused counts for the key that is known; a name that nobody answers to is no model."""
    gateway = make_gateway()
    file = gateway.directory / "keys"
    keys = {name: add_key(file, name) for name in ("alice", "bob")}
    gateway.settings["services"][0]["frontend"] = {
        "usage": {},
        "auth": {"keys_file": str(file)},
        "limits": [{"per": "key", "path": TEXT, "rps": 1 / 60}],
    }
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    assert (await post(gateway, BODY, **alice))[0] == 200
    assert (await post(gateway, {**BODY, "max_tokens": 9}, **bob))[0] == 200
    assert (await post(gateway, {**BODY, "model": "none"}, **bob))[0] == 404
    assert (await post(gateway, BODY, Authorization="Bearer wrong"))[0] == 401
    text = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    assert [(await post(gateway, text, TEXT, **alice))[0] for _ in range(2)] == [200, 429]
    async with gateway.client() as client, client.get(gateway.url() + "/v1/models", headers=alice) as answer:
        assert answer.status == 200  # It asks no engine for work.
    rows = {(row["key"], row["model"]): row for row in await until_requests(gateway, 6)}
    assert {it: (row["requests"], row["refused"], row["tokens_out"]) for it, row in rows.items()} == {
        ("alice", "tiny"): (2, 0, 5),
        ("alice", ""): (1, 1, 0),
        ("bob", "tiny"): (1, 0, 9),
        ("bob", ""): (1, 1, 0),
        ("", ""): (1, 1, 0),
    }
    assert {row["key"] for row in await usage_of(gateway, key="bob", since="7d")} == {"bob"}
    async with gateway.client() as client, client.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as answer:
        page = await answer.text()
    labels = 'direction="out",key="bob",model="tiny",service="chat"'
    assert f"gateway_sidecar_usage_tokens_total{{{labels}}} 9.0" in page


async def test_a_shared_address_counts_by_its_services(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """With its own keys, and under the names that it gives models; a request that finds no service is the address's."""
    gateway = make_gateway(services=("chat", "small", "api"))
    gateway.settings["services"] = [it for it in gateway.settings["services"] if it["name"] != "api"]
    models = {"big": {"service": "chat", "model": "tiny"}, "tiny": "small"}
    listen = f"127.0.0.1:{gateway.ports['api']}"
    gateway.settings["addresses"] = [{"name": "api", "listen": listen, "models": models, "frontend": {"usage": {}}}]
    await gateway.start()
    for service in ("chat", "small"):
        await engine(gateway.socket("r1", service))
        await gateway.until_states({"r1": "serving"}, service=service)
    for body in (BODY, {**BODY, "model": "big", "stream": True}, {**BODY, "model": "none", "stream": True}):
        _, text = await post(gateway, body, service="api")
        assert '"choices":[],' not in text
    assert (await post(gateway, BODY))[0] == 200  # By the service's own address: it counts nothing.
    rows = {(row["frontend"], row["service"], row["model"]): row for row in await until_requests(gateway, 3)}
    assert {it: (row["requests"], row["refused"], row["tokens_out"], row["streams"]) for it, row in rows.items()} == {
        ("api", "small", "tiny"): (1, 0, 4, 0),
        ("api", "chat", "big"): (1, 0, 4, 1),
        ("api", "api", ""): (1, 1, 0, 0),
    }


async def test_a_stream_that_waits_is_asked_about_once(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A request that waits for a replica passes nginx twice, and its client still did not ask."""
    gateway = counting(make_gateway)
    gateway.settings["services"][0]["hold"] = {"asleep_s": 60}
    await gateway.start()
    waiting = asyncio.create_task(post(gateway, {**BODY, "stream": True}))
    async with gateway.client() as client, asyncio.timeout(_LONGEST_S):
        metrics = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
        while 'waiting_requests{service="chat"} 1' not in await (await client.get(metrics)).text():
            await asyncio.sleep(0.05)
    await engine(gateway.socket("r1"))
    status, text = await waiting
    assert status == 200
    assert not any("usage" in event for event in events_of(text))
    rows = await until_requests(gateway, 1)
    assert (sums(rows)["tokens_out"], sums(rows)["unknown"]) == (4, 0)


async def test_what_an_engine_breaks_off_is_unknown(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It dies in mid-stream: nobody knows how many tokens that took."""
    gateway = counting(make_gateway)
    await gateway.start()
    one = await engine(gateway.socket("r1"), token_interval_s=0.01)
    await gateway.until_states({"r1": "serving"})
    url = gateway.url() + CHAT
    async with (
        gateway.client() as client,
        client.post(url, json={**BODY, "stream": True, "max_tokens": 5000}) as answer,
    ):
        await answer.content.readline()
        await one.kill()
        with suppress(aiohttp.ClientError):
            await answer.text()
    rows = await until_requests(gateway, 1)
    assert (sums(rows)["tokens_out"], sums(rows)["unknown"], sums(rows)["streams"]) == (0, 1, 1)


class OtherApis:
    """An engine that streams Anthropic's messages and OpenAI's responses as vLLM's server does, of a model `other`."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.app = web.Application()
        self.app.router.add_get("/v1/models", self._models)
        self.app.router.add_get("/health", self._models)
        self.app.router.add_post("/v1/messages", self._messages)
        self.app.router.add_post("/v1/responses", self._responses)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "other", "object": "model", "owned_by": "me"}]})

    async def _messages(self, request: web.Request) -> web.Response:
        started = {"id": "m", "role": "assistant", "content": [], "usage": {"input_tokens": 11, "output_tokens": 0}}
        return await self._stream(
            request,
            {"type": "message_start", "message": started},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'a "usage"'}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        )

    async def _responses(self, request: web.Request) -> web.Response:
        usage = {"input_tokens": 13, "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 1}}
        return await self._stream(
            request,
            {"type": "response.created", "response": {"id": "r", "status": "in_progress", "usage": None}},
            {"type": "response.output_text.delta", "delta": "a"},
            {"type": "response.completed", "response": {"id": "r", "status": "completed", "usage": usage}},
        )

    async def _stream(self, request: web.Request, *events: dict[str, Any]) -> web.Response:
        self.bodies.append(await request.json())
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=text, content_type="text/event-stream")


async def test_streams_of_other_apis_say_their_usage_by_themselves(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Through SMG: of a gRPC engine SMG writes them, of an HTTP engine it passes them on. nginx asks for nothing and
    leaves nothing out.
    """
    gateway = counting(make_gateway)
    await gateway.start()
    one, two = await engine(gateway.socket("r1"), kind=EngineKind.SGLANG_GRPC), OtherApis()
    runner = web.AppRunner(two.app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(gateway.socket("r2"))).start()
        await gateway.until_states({"r1": "serving", "r2": "serving"}, within_s=_LONGEST_S)
        asks: dict[str, dict[str, Any]] = {
            "/v1/messages": {"messages": BODY["messages"], "max_tokens": 4},
            "/v1/responses": {"input": "a", "max_output_tokens": 4},
        }
        for model in ("tiny", "other"):
            for path, words in asks.items():
                status, text = await post(gateway, {"model": model, "stream": True, **words}, path)
                assert status == 200, text
                assert '"usage":' in text
    finally:
        await runner.cleanup()
    assert [{"stream_options"} & body.keys() for body in two.bodies] == [set(), set()]
    rows = {row["model"]: row for row in await until_requests(gateway, 4)}
    assert {it: (row["streams"], row["unknown"], row["tokens_in"], row["tokens_out"]) for it, row in rows.items()} == {
        "tiny": (2, 0, one.ledger.tokens_in, one.ledger.tokens_out),
        "other": (2, 0, 24, 11),
    }
    assert one.ledger.tokens_out == 8


async def test_a_stream_that_an_http2_client_resets_is_unknown(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """In mid-stream, by RST_STREAM: it is no stream of no tokens. The connection's next request is answered, and
    counts by itself.
    """
    gateway = make_gateway()
    port = public(gateway, usage={})
    gateway.settings["services"][0]["frontend"]["tls"]["http2"] = True
    await gateway.start()
    one = await engine(gateway.socket("r1"), token_interval_s=0.01)
    await gateway.until_states({"r1": "serving"})
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
    client = H2Connection()
    client.initiate_connection()

    def ask(stream: int, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = {
            ":method": "POST",
            ":path": CHAT,
            ":scheme": "https",
            ":authority": NAME,
            "content-length": str(len(data)),
            "content-type": "application/json",
        }
        client.send_headers(stream, list(head.items()))
        client.send_data(stream, data, end_stream=True)
        writer.write(client.data_to_send())

    async def until(kind: type[Event], stream: int) -> None:
        async with asyncio.timeout(_LONGEST_S):
            while True:
                events = client.receive_data(await reader.read(65536))
                writer.write(client.data_to_send())
                if any(isinstance(it, kind) and getattr(it, "stream_id", 0) == stream for it in events):
                    return

    ask(1, {**BODY, "stream": True, "max_tokens": 5000})
    await until(DataReceived, 1)
    client.reset_stream(1, ErrorCodes.CANCEL)
    ask(3, BODY)
    await until(StreamEnded, 3)
    writer.close()
    await one.until(lambda seen: seen.aborted == 1, within_s=_LONGEST_S)
    (row,) = await until_requests(gateway, 2)
    assert (row["streams"], row["aborted"], row["unknown"], row["tokens_out"]) == (1, 1, 1, 4)


def sleeps(pid: int) -> bool:
    """Whether a process has nothing to do."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def test_nothing_is_lost_whatever_is_killed(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The daemon, nginx with all its workers, and a reload under load: each answered request counts once."""
    gateway = counting(make_gateway)
    await gateway.start()
    one = await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    answered = 0

    async def ask(count: int) -> None:
        nonlocal answered
        for number in range(count):
            status, _ = await post(gateway, {**BODY, "stream": number % 2 == 0})
            assert status == 200
            answered += 1

    await ask(10)
    await gateway.kill()
    await ask(10)
    await gateway.start()
    gateway.settings["services"][0]["frontend"]["max_body_mb"] = 7
    gateway.configure()
    _, (code, _, error) = await asyncio.gather(ask(40), gateway.cli("reload"))
    assert code == 0, error
    await until_requests(gateway, answered)
    await gateway.kill()
    await ask(5)
    nginx = json.loads((gateway.directory / "run/processes.json").read_text())["nginx"]["pid"]
    async with asyncio.timeout(_LONGEST_S):
        while not all(map(sleeps, with_children(nginx))):  # It counts a request after it has answered it.
            await asyncio.sleep(0.01)
    for pid in list(with_children(nginx)):
        os.kill(pid, signal.SIGKILL)
    await gateway.start()
    await gateway.until_states({"r1": "serving"}, within_s=_LONGEST_S)
    await ask(5)
    rows = await until_requests(gateway, answered)
    assert (sums(rows)["tokens_out"], sums(rows)["unknown"]) == (4 * answered, 0)
    assert sums(rows)["tokens_out"] == one.ledger.tokens_out
    assert await gateway.terminate() == 0
    await gateway.start()
    assert await until_requests(gateway, answered) == rows


async def test_a_damaged_file_stops_nothing(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It is put aside and told, and counting goes on with what nginx still has."""
    gateway = counting(make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, BODY))[0] == 200
    await until_requests(gateway, 1)
    await gateway.kill()
    for file in (gateway.directory / "state").glob("usage.db*"):
        file.write_bytes(b"no database " * 1000)
    await gateway.start()
    await until_requests(gateway, 1)
    status = await gateway.until(lambda status: any("usage: usage was damaged" in it for it in status["problems"]))
    assert "usage.db.damaged-" in str(status["problems"])
    assert gateway.events("usage.not_kept")


async def test_the_command_shows_it_as_a_table_json_and_csv(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The same numbers in each, and a time that is none says how to write one."""
    gateway = counting(make_gateway)
    await gateway.start()
    code, out, _ = await gateway.cli("usage")
    assert (code, out.startswith("nothing was counted from")) == (0, True)
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, BODY))[0] == 200
    (row,) = await until_requests(gateway, 1)
    code, out, _ = await gateway.cli("usage", "--since", "7d")
    assert code == 0
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["chat", "-", "tiny", "1", "0", "0", "0", "0", "3", "4", "0"],
        ["all", "1", "0", "0", "0", "0", "3", "4", "0"],
    ]
    code, out, _ = await gateway.cli("usage", "--json", "--model", "tiny")
    assert json.loads(out)["rows"] == [row]
    code, out, _ = await gateway.cli("usage", "--csv", "--service", "chat", "--key", "")
    assert [dict(it) for it in csv.DictReader(io.StringIO(out))] == [{name: str(it) for name, it in row.items()}]
    code, _, error = await gateway.cli("usage", "--since", "yesterday")
    assert code == 1
    assert error == "gateway-sidecar: since: 'yesterday' is no time; use 24h, 7d, 4w, 2026-11-01 or 2026-11-01T12:00Z\n"
    code, _, error = await gateway.cli("usage", "--since", "1h", "--until", "2026-01-01")
    assert (code, error) == (
        1,
        "gateway-sidecar: until: '2026-01-01' is not after since, '1h'; use a later until, or an earlier since\n",
    )
