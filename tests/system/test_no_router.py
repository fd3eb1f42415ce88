"""The running daemon with `router: {type: none}`: nginx balances by itself, and no router runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
from aiohttp import web

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of
from tests.system.test_frontend_keys import PATIENT, listening
from tests.system.web_app import WebApp

StartApp = Callable[[Path, str], Awaitable[WebApp]]


@pytest_asyncio.fixture
async def app() -> AsyncIterator[StartApp]:
    """Starts applications that end with the test."""
    apps: list[WebApp] = []

    async def start(socket: Path, name: str) -> WebApp:
        apps.append(await WebApp(socket, name).start())
        return apps[-1]

    yield start
    for each in apps:
        await each.stop()


def none_of(make_gateway: MakeGateway, *, engine: str = "http", **service: Any) -> Gateway:
    gateway = make_gateway()
    gateway.settings["services"][0] |= {"router": {"type": "none"}, "engine": engine, **service}
    gateway.configure()
    return gateway


async def get(gateway: Gateway, path: str = "/", **options: Any) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    method = options.pop("method", "GET")
    async with gateway.client() as client, client.request(method, gateway.url() + path, **options) as answer:
        return answer.status, await answer.json(content_type=None)


def nginx_workers(gateway: Gateway) -> list[int]:
    master = int((gateway.directory / "run/nginx/nginx.pid").read_text())
    return [int(it) for it in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


async def test_a_web_application_gets_every_path_header_and_websocket(make_gateway: MakeGateway, app: StartApp) -> None:
    """There is no router whose paths or headers would have to be guarded. nginx is never reloaded for it."""
    gateway = none_of(make_gateway, health={"path": "/healthz", "expect": "fine"})
    code, out, err = await gateway.cli("check")
    assert code == 0, out + err
    await gateway.start()
    here = await app(gateway.socket("r1"), "one")
    await app(gateway.socket("r2"), "two")
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert service_of(status)["router"] | {"reason": ""} == {
        "type": "none", "state": "up", "url": None, "pid": None, "restarts": 0, "metrics_url": None, "mesh": None,
        "reason": "",
    }  # fmt: skip
    assert not any(row["reason"] for row in service_of(status)["replicas"])
    names: Counter[str] = Counter()
    async with gateway.client() as client:
        for _ in range(40):
            async with client.get(f"{gateway.url()}/a%20b/c?d=1", headers={"Cookie": "mine=1"}) as answer:
                assert answer.status == 200
                assert answer.headers["Set-Cookie"] == "seen=yes"
                assert answer.headers["Location"] == "http://elsewhere.example/"
                shown = await answer.json()
                assert shown["cookie"] == "mine=1"
                assert not any("gateway-key" in name for name in shown["headers"]), "the bridges' key is nobody's"
                names[shown["name"]] += 1
        async with client.ws_connect(f"{gateway.url()}/socket") as socket:
            await socket.send_str("hello")
            assert (await socket.receive_str()).endswith(": hello")
    assert set(names) == {"one", "two"}
    assert "GET /a%20b/c?d=1" in here.asked
    assert (await gateway.status())["nginx"]["reloads"] == 0
    here.health = 500
    await gateway.until(lambda status: bool(service_of(status)["replicas"][0]["state"] != "serving"))


async def test_keys_and_limits_hold_and_no_application_sees_a_key(make_gateway: MakeGateway, app: StartApp) -> None:
    """The frontend is the same as before a router; what proves a client stays at the gateway."""
    gateway = none_of(make_gateway)
    file = gateway.directory / "keys"
    key = add_key(file, "alice")
    frontend = {"auth": {"keys_file": str(file), "name_header": "X-Who"}, "limits": [{"per": "key", "rps": 1 / 60}]}
    gateway.settings["services"][0]["frontend"] = frontend
    await gateway.start()
    await app(gateway.socket("r1"), "one")
    await gateway.until_states({"r1": "serving"})
    assert (await get(gateway))[0] == 401
    status, shown = await get(gateway, headers={"Authorization": f"Bearer {key}", "X-Who": "root", "X-Mine": "yes"})
    assert status == 200
    assert {"x-who", "x-mine"} <= set(shown["headers"])
    assert "authorization" not in shown["headers"]
    assert (await get(gateway, headers={"Authorization": f"Bearer {key}"}))[0] == 429


async def test_the_engine_with_the_fewest_requests_is_chosen(make_gateway: MakeGateway, app: StartApp) -> None:
    """Of two, the one that streams is not asked while the other is idle."""
    gateway = none_of(make_gateway)
    await gateway.start()
    apps = {name: await app(gateway.socket(name), name) for name in ("r1", "r2")}
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    async with gateway.client() as client, client.get(f"{gateway.url()}/stream") as stream:
        busy = (await stream.content.readline()).decode().strip()
        for _ in range(20):
            assert (await get(gateway))[1]["name"] != busy
        apps[busy].let_go.set()
        assert await stream.content.readline() == b"end\n"


async def test_a_drain_ends_with_the_last_request_and_socket(make_gateway: MakeGateway, app: StartApp) -> None:
    """Whatever passes: a stream, a WebSocket. Nothing new goes there meanwhile, and nothing is cut."""
    gateway = none_of(make_gateway)
    await gateway.start()
    here = await app(gateway.socket("r1"), "one")
    await gateway.until_states({"r1": "serving"})
    async with gateway.client() as client, client.ws_connect(f"{gateway.url()}/socket") as socket:
        await socket.send_str("a")
        await socket.receive_str()
        async with client.get(f"{gateway.url()}/stream") as stream:
            await stream.content.readline()
            await app(gateway.socket("r2"), "two")
            await gateway.until_states({"r1": "serving", "r2": "serving"})
            draining = asyncio.create_task(gateway.cli("drain", "chat", "r1", "--timeout", "60"))
            await gateway.until_states({"r1": "draining", "r2": "serving"})
            await gateway.until(lambda s: replica_of(s, "r1")["worker_id"] is None)
            for _ in range(10):
                assert (await get(gateway))[1]["name"] == "two"
            here.let_go.set()
            assert await stream.content.read() == b"end\n"
        await socket.send_str("b")
        assert await socket.receive_str() == "one: b"
        assert not draining.done()
    code, out, err = await draining
    assert code == 0, out + err


async def test_requests_wait_for_the_first_application_and_the_last_one_may_go(
    make_gateway: MakeGateway, app: StartApp
) -> None:
    """From zero, to zero, and from zero again, whatever the request's method is."""
    gateway = none_of(make_gateway)
    await gateway.start()
    for name in ("one", "two"):
        waiting = [asyncio.create_task(get(gateway, method=method, data=b"x")) for method in ("GET", "POST")]
        await gateway.until(lambda status: service_of(status)["waiting"] == 2)
        here = await app(gateway.socket("r1"), name)
        for answer in await asyncio.gather(*waiting):
            assert answer[0] == 200
            assert (answer[1]["name"], answer[1]["body"]) == (name, "x")
        await here.stop()
        await gateway.until(lambda status: service_of(status)["missing"] == "replica")


async def test_what_an_application_had_is_sent_to_no_other(make_gateway: MakeGateway, app: StartApp) -> None:
    """Not a POST; a GET once more, as the operator allows. What nobody took is sent to the next, unseen."""
    gateway = none_of(make_gateway)
    await gateway.start()
    apps = [await app(gateway.socket(name), name) for name in ("r1", "r2")]
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert (await get(gateway, "/die", method="POST"))[0] == 502
    assert sum(it.asked.count("POST /die") for it in apps) == 1
    assert (await get(gateway, "/die"))[0] == 502
    assert sum(it.asked.count("GET /die") for it in apps) == 2
    # A socket that is away is refused, as a dead application's is, and nobody notices.
    gateway.socket("r1").rename(gateway.socket("r1").with_suffix(".away"))
    for _ in range(30):
        assert (await get(gateway, method="POST", data=b"x"))[1]["name"] == "r2"


async def test_what_fails_behind_another_servers_word_leaves_no_count_behind(
    make_gateway: MakeGateway, app: StartApp
) -> None:
    """That server is asked again before the request waits, and what nginx has in flight is known all the same."""
    gateway = none_of(make_gateway)

    async def let_in(_: web.Request) -> web.Response:
        return web.Response()

    async with listening(let_in) as port:
        gateway.settings["services"][0]["frontend"] = {"auth": {"url": f"http://127.0.0.1:{port}/auth", **PATIENT}}
        await gateway.start()
        here = await app(gateway.socket("r1"), "one")
        await gateway.until_states({"r1": "serving"})
        for _ in range(3):
            assert (await get(gateway, "/die", method="POST"))[0] == 502
        assert here.asked.count("POST /die") == 3
        code, out, err = await gateway.cli("drain", "chat", "r1", "--timeout", "60")
        assert code == 0, out + err


async def test_killed_workers_and_masters_of_nginx_leave_no_count_behind(
    make_gateway: MakeGateway, app: StartApp
) -> None:
    """A worker of nginx that is killed takes what it had in flight with it; the next nginx knows all engines."""
    gateway = none_of(make_gateway)
    await gateway.start()
    await app(gateway.socket("r1"), "one")
    await gateway.until_states({"r1": "serving"})
    for is_master in (False, True):
        async with gateway.client() as client:
            with suppress(OSError, asyncio.IncompleteReadError, Exception):
                async with client.get(f"{gateway.url()}/stream") as stream:
                    await stream.content.readline()
                    pids = nginx_workers(gateway)
                    if is_master:
                        os.kill(int((gateway.directory / "run/nginx/nginx.pid").read_text()), signal.SIGKILL)
                    for pid in pids:
                        os.kill(pid, signal.SIGKILL)
                    await stream.content.read()
        await answering(gateway)
    code, out, err = await gateway.cli("drain", "chat", "r1", "--timeout", "60")
    assert code == 0, out + err


async def answering(gateway: Gateway) -> None:
    """Returns when the service address answers."""
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError, aiohttp.ClientError):  # One that was killed may take a connection before it ends.
                if (await get(gateway))[0] == 200:
                    return


async def test_the_next_daemon_takes_up_what_nginx_balances(make_gateway: MakeGateway, app: StartApp) -> None:
    """Requests are answered without a daemon; the next one keeps each engine's port, and counts what was in flight."""
    gateway = none_of(make_gateway)
    await gateway.start()
    here = await app(gateway.socket("r1"), "one")
    before = service_of(await gateway.until_states({"r1": "serving"}))["replicas"][0]
    async with gateway.client() as client, client.get(f"{gateway.url()}/stream") as stream:
        await stream.content.readline()
        await gateway.kill()
        assert (await get(gateway))[0] == 200
        await gateway.start()
        after = service_of(await gateway.until_states({"r1": "serving"}))["replicas"][0]
        assert after["bridge"] == before["bridge"]
        assert (await gateway.status())["nginx"]["reloads"] == 0
        code, _, _ = await gateway.cli("drain", "chat", "r1", "--timeout", "0.5")
        assert code != 0, "a stream is in flight"
        here.let_go.set()
        await stream.content.read()
    code, out, err = await gateway.cli("drain", "chat", "r1", "--timeout", "60")
    assert code == 0, out + err


async def test_engines_stream_and_only_inference_passes(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """An OpenAI engine behind nginx alone: chats whole and streamed, its control routes closed."""
    gateway = none_of(make_gateway, engine="auto")
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert await ask(gateway, "tiny", stream=True)
    assert await ask(gateway, "tiny", stream=False)
    assert (await get(gateway, "/v1/models"))[1]["data"][0]["id"] == "tiny"
    assert (await get(gateway, "/flush_cache", method="POST"))[0] == 404


async def test_what_nginx_cannot_balance_is_said_with_the_cure(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """An engine that speaks gRPC is not registered; models that only one engine has are told."""
    gateway = none_of(make_gateway, engine="auto")
    await gateway.start()
    await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"), kind=EngineKind.VLLM_GRPC)
    status = await gateway.until_states({"r1": "serving", "r2": "registering"})
    status = await gateway.until(lambda status: "gRPC" in (service_of(status)["replicas"][1]["reason"] or ""))
    assert "use a router for gRPC, such as smg" in service_of(status)["replicas"][1]["reason"]
    await engine(gateway.socket("r3"), model="other")
    status = await gateway.until(lambda status: len(service_of(status)["unanswered"]) == 2)
    assert service_of(status)["unanswered"]["other"].startswith("1 of 2 replicas have it")


async def test_a_service_comes_to_have_no_router_and_gets_one_again(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """By reloads, with requests under way, none of which fails; and while the daemon is away."""
    gateway = make_gateway()
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    asking = [asyncio.create_task(_ask_on(gateway)) for _ in range(3)]
    for kind in ("none", "smg", "none"):
        gateway.settings["services"][0]["router"] = {"type": kind}
        gateway.configure()
        assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: router\n")
        assert service_of(await gateway.status())["router"]["type"] == kind
        assert not any(task.done() for task in asking), [task.exception() for task in asking if task.done()]
    for kind in ("smg", "none"):
        await gateway.terminate()
        gateway.settings["services"][0]["router"] = {"type": kind}
        await gateway.start()
        await gateway.until(partial(_serves_with, kind))
        assert await ask(gateway, "tiny", stream=True)
    for task in asking:
        task.cancel()
    for ended in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), ended


def _serves_with(kind: str, status: Status) -> bool:
    service = service_of(status)
    return (service["router"]["type"], service["replicas"][0]["state"]) == (kind, "serving")


async def _ask_on(gateway: Gateway) -> None:
    while True:
        await stream_chat(gateway, 5)


async def test_a_large_request_of_a_key_with_models_waits_like_any_other(
    make_gateway: MakeGateway, app: StartApp
) -> None:
    """Its model is read before it waits: then nginx has not read the body by itself yet."""
    gateway = none_of(make_gateway)
    file = gateway.directory / "keys"
    headers = {"Authorization": f"Bearer {add_key(file, 'alice', models='tiny')}"}
    gateway.settings["services"][0]["frontend"] = {"auth": {"keys_file": str(file)}}
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")
    async with aiohttp.ClientSession(headers=headers) as session:

        async def post(model: str) -> tuple[int, Any]:
            body = {"model": model, "user": "x" * 400_000}
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer:
                return answer.status, await answer.json()

        waiting = asyncio.create_task(post("tiny"))
        await gateway.until(lambda s: service_of(s)["waiting"] == 1)
        assert (await post("other"))[0] == 404
        await app(gateway.socket("r1"), "one")
        status, answer = await waiting
    assert (status, len(answer["body"])) == (200, len(json.dumps({"model": "tiny", "user": "x" * 400_000})))
