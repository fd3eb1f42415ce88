"""Who may come in: keys in a file, or another server's word."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from openai import AsyncOpenAI, AuthenticationError

from gateway_sidecar.config import AuthSettings, FrontendSettings
from gateway_sidecar.frontend.edit_keys import add_key, revoke_key
from gateway_sidecar.frontend.served_files import place_keys
from gateway_sidecar.nginx.client_headers import FOR_AUTH, KEYS
from gateway_sidecar.nginx.config import Capacity, NginxConfig
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.nginx.server import busy_ports, find_nginx
from tests.smg import RULES, smg_address
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, PortBlock, Status, service_of
from tests.system.test_access_log import until_lines
from tests.system.test_shared_address import ask, chat, shared
from tests.users import SELF, User

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
PATIENT = {"timeout_s": 60.0}
"""For a server that is asked: it is one with the test, which a busy machine may let stand still for seconds."""


def guarded(gateway: Gateway, **more: Any) -> Path:
    """Gives the service a key file, which does not exist yet."""
    file = gateway.directory / "chat.keys"
    gateway.settings["services"][0]["frontend"] = {"auth": {"keys_file": str(file), **more}}
    return file


async def serving(gateway: Gateway, engine: StartEngine, **options: Any) -> Any:
    await gateway.start()
    here = await engine(gateway.socket("r1"), **options)
    await gateway.until_states({"r1": "serving"})
    return here


async def post(
    gateway: Gateway, key: str | None, at: str = "chat", **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url(at)}/v1/chat/completions", json=BODY, headers=headers) as response,
    ):
        return response.status, await response.json(), dict(response.headers)


async def until_status(gateway: Gateway, key: str, wanted: int, *, within_s: float = 60.0) -> float:
    """Seconds until a request with this key is answered so."""
    began = time.monotonic()
    while (await post(gateway, key))[0] != wanted:
        assert time.monotonic() - began < within_s, f"not {wanted}: {gateway.log()[-2000:]}"
    return time.monotonic() - began


async def test_only_holders_of_a_key_come_in(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """401 in OpenAI's form without one, with a wrong one, and with the right one in a wrong place."""
    gateway = make_gateway()
    file = guarded(gateway)
    key, other = add_key(file, "alice"), add_key(file, "bob")
    here = await serving(gateway, engine)
    for good in (key, other):
        assert (await post(gateway, good))[0] == 200
    for header in KEYS:
        assert (await post(gateway, None, **{header: key}))[0] == 200
        assert (await post(gateway, None, **{header: key, "Authorization": "Basic eA=="}))[0] == 200
        assert (await post(gateway, None, **{header: key[:-1]}))[0] == 401
    digest = hashlib.sha256(key.encode()).hexdigest()
    for bad in (None, "", "x", key[:-1], key + "x", key.upper(), digest, "../alice", "a b", "x" * 5000):
        status, body, headers = await post(gateway, bad)
        assert status == 401, bad
        assert body["error"]["code"] == "invalid_api_key"
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert headers["WWW-Authenticate"] == "Bearer"
    for scheme in (f"Basic {key}", key, f"Bearer{key}", f"Bearer {key} {key}"):
        assert (await post(gateway, None, Authorization=scheme))[0] == 401, scheme
    assert (await post(gateway, None, Authorization=f"bearer {key}"))[0] == 200
    async with AsyncOpenAI(base_url=f"{gateway.url()}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError):
            await client.models.list()
    assert here.ledger.received == 3 + 2 * len(KEYS), "no refused request reached the engine"


async def test_a_revoked_key_ends_at_once_and_its_streams_do_not(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Keys come and go without a reload; a stream that had begun runs to its end; kept connections stay."""
    gateway = make_gateway()
    file = guarded(gateway)
    keep, gone = add_key(file, "keep"), add_key(file, "gone")
    here = await serving(gateway, engine, token_interval_s=0.1)
    nginx = (await gateway.status())["nginx"]["pid"]
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 1000, started, key=gone))
    await started.wait()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])

    async def kept() -> bytes:
        writer.write(f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keep}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split()[1]))
        return head.split()[1]

    assert await kept() == b"200"
    revoke_key(file, "gone")
    await until_status(gateway, gone, 401)
    added = add_key(file, "late")
    await until_status(gateway, added, 200)
    assert not stream.done(), "the stream goes on"
    assert await kept() == b"200", "the client's connection is kept"
    writer.close()
    here.behave(token_interval_s=0.0)
    assert (await stream).split()[-1] == "999"
    status = await gateway.status()
    assert status["nginx"]["reloads"] == 0
    assert status["nginx"]["pid"] == nginx


async def test_the_daemon_may_be_dead(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """nginx alone knows who may come in; what changed meanwhile is taken in by the next daemon."""
    gateway = make_gateway()
    file = guarded(gateway)
    key, gone = add_key(file, "alice"), add_key(file, "gone")
    await serving(gateway, engine)
    await gateway.kill()
    assert (await post(gateway, key))[0] == 200
    assert (await post(gateway, "wrong"))[0] == 401
    revoke_key(file, "gone")
    await gateway.start()
    assert (await post(gateway, gone))[0] == 401
    assert (await post(gateway, key))[0] == 200


async def test_a_broken_file_changes_nothing_and_is_told(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Whatever becomes of the file, the keys stay as they were, and log, status and metrics say why."""
    gateway = make_gateway()
    file = guarded(gateway)
    key = add_key(file, "alice")
    await serving(gateway, engine)
    good = file.read_text()

    def problem(status: Status) -> str:
        return next((text for text in status["problems"] if "chat: frontend keys" in text), "")

    async def spoilt(text: str | None, words: str, mode: int = 0o600) -> None:
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
            file.chmod(mode)
        await gateway.until(lambda status: words in problem(status))
        assert (await post(gateway, key))[0] == 200
        assert (await post(gateway, "wrong"))[0] == 401

    await spoilt(good + "bob\n", "is not NAME:SHA256")
    await spoilt("", "is empty")
    await spoilt(None, "no such file")
    await spoilt(good, "others may read", mode=0o644)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as r:
        text = await r.text()
    assert 'gateway_sidecar_frontend_problem{part="keys",service="chat"} 1.0' in text
    assert 'gateway_sidecar_frontend_keys{service="chat"} 1.0' in text
    file.chmod(0o600)
    await gateway.until(lambda status: not problem(status))
    assert {row["part"] for row in gateway.events("frontend.refused")} == {"keys"}
    assert gateway.events("frontend.repaired")


async def test_a_key_ends_by_itself(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """nginx alone sees to it: the daemon may be dead when the time comes. Nobody's name has the time in it."""
    gateway = make_gateway()
    file = guarded(gateway)
    stays = add_key(file, "stays", expires="2100-01-01")
    over = add_key(file, "over", expires="2026-01-01")
    await serving(gateway, engine)
    assert [(await post(gateway, key))[0] for key in (stays, over)] == [200, 401]
    code, out, _ = await gateway.cli("key", "list", "--file", str(file), config=False)
    assert (code, out.splitlines()) == (
        0,
        [
            "key    state                               bounds  last used  note",
            "over   expired since 2026-01-01T00:00:00Z  -       -",
            "stays  active until 2100-01-01T00:00:00Z   -       -",
        ],
    )
    _, out, _ = await gateway.cli("check")
    assert f"2 keys in {file}, 1 of them expired" in out
    for within_s in (4, 16, 64, 256):  # On a busy machine a key may be over before anybody could use it.
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=within_s)
        ends = add_key(file, "ends", expires=end.isoformat(timespec="seconds"))
        while (worked := (await post(gateway, ends))[0] == 200) is False and datetime.datetime.now(datetime.UTC) < end:
            await asyncio.sleep(0.01)
        if worked:
            break
        revoke_key(file, "ends")
    assert worked
    await gateway.kill()
    await until_status(gateway, ends, 401, within_s=within_s + 60)
    assert datetime.datetime.now(datetime.UTC) >= end - datetime.timedelta(seconds=1)
    assert (await post(gateway, stays))[0] == 200


async def test_keys_behind_links_are_followed_as_soon(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A file that is a link into another directory, as orchestrators mount secrets, is watched where it really is."""
    gateway = make_gateway(rescan_interval_s=60.0)
    link = guarded(gateway)
    file = gateway.directory / "elsewhere" / "really.keys"
    file.parent.mkdir()
    link.symlink_to("elsewhere/really.keys")
    key = add_key(file, "alice")
    await serving(gateway, engine)
    await until_status(gateway, key, 200)
    revoke_key(file, "alice")
    await until_status(gateway, key, 401)
    other = gateway.directory / "next" / "really.keys"
    other.parent.mkdir()
    key = add_key(other, "alice")
    fresh = gateway.directory / "fresh"
    fresh.symlink_to("next/really.keys")
    fresh.replace(link)
    await until_status(gateway, key, 200)
    revoke_key(other, "alice")
    await until_status(gateway, key, 401)


async def test_a_key_is_nowhere_to_be_seen(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Not in a log, a status, a metric, a command line or any file of the daemon's."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"log_level": "debug"}
    file = guarded(gateway, name_header="X-Key-Name")
    key = add_key(file, "alice")
    here = await serving(gateway, engine)
    assert (await post(gateway, key, **{"X-Key-Name": "root"}))[0] == 200
    for header in ("X-Api-Key", "api-key"):  # Anthropic's clients, and Azure's.
        assert (await post(gateway, None, **{header: key}))[0] == 200
    assert (await post(gateway, "wrong-key-of-a-client"))[0] == 401
    assert here.ledger.received == 3
    status = json.dumps(await gateway.status())
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics") as r:
        metrics = await r.text()
    texts = {"status": status, "metrics": metrics}
    files = [path for path in gateway.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in (*files, *Path("/proc").glob("[0-9]*/cmdline")):
        with suppress(FileNotFoundError, ProcessLookupError):  # Replaced, or ended, just then.
            texts[str(path)] = path.read_text(errors="replace")
    for secret in (key, "wrong-key-of-a-client"):
        assert [where for where, text in texts.items() if secret in text] == []


@pytest.mark.parametrize("passed", [False, True])
async def test_what_goes_on_to_the_router(tmp_path: Path, passed: bool) -> None:
    """The key's name, which no client can choose, and the key only with `pass_authorization`."""
    places = FrontendPlaces(tmp_path)
    place_keys(places.keys("chat"), {hashlib.sha256(b"a-key-of-alice-1").hexdigest(): "alice expires=4102444800"})
    auth = AuthSettings(keys_file=tmp_path / "unused", name_header="X-Key-Name", pass_authorization=passed)
    seen: list[dict[str, str]] = []

    async def router(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response({})

    async with (
        listening(router) as behind,
        bare_nginx(tmp_path, places, behind, FrontendSettings(auth=auth)) as url,
        aiohttp.ClientSession() as session,
    ):
        keys = [{header: "a-key-of-alice-1"} for header in KEYS]
        for headers in ({"Authorization": "Bearer a-key-of-alice-1"}, *keys):
            async with session.get(f"{url}/v1/models", headers={**headers, "X-Key-Name": "root"}) as response:
                assert response.status == 200
            assert seen[-1]["X-Key-Name"] == "alice"
            assert {name: seen[-1].get(name) for name in headers} == (headers if passed else dict.fromkeys(headers))


@pytest.mark.own_users
@pytest.mark.parametrize(("asked", "passed"), [("websocket", True), ("WebSocket", True), ("h2c", False)])
async def test_no_protocol_but_websocket_is_passed_on(tmp_path: Path, asked: str, passed: bool) -> None:
    """In another one, such as HTTP/2, requests could be sent that nobody judges."""
    seen: list[dict[str, str]] = []

    async def router(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response({})

    headers = {"Upgrade": asked, "Connection": "Upgrade", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    async with (
        listening(router) as behind,
        bare_nginx(tmp_path, FrontendPlaces(tmp_path), behind, FrontendSettings()) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/v1/realtime", headers=headers) as response,
    ):
        assert response.status == 200
    assert ("Upgrade" in seen[0]) is passed
    assert ("upgrade" in seen[0].get("Connection", "")) is passed


async def test_an_answer_leads_a_request_nowhere(tmp_path: Path) -> None:
    """nginx takes no orders from a router, or from an engine behind it: else an answer could reach control routes."""
    seen: list[str] = []

    async def router(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(text="mine", headers={"X-Accel-Redirect": "/workers", "X-Accel-Limit-Rate": "1"})

    async with (
        listening(router) as behind,
        bare_nginx(tmp_path, FrontendPlaces(tmp_path), behind, FrontendSettings()) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/v1/models") as response,
    ):
        assert await response.text() == "mine"
        assert not [name for name in response.headers if name.lower().startswith("x-accel")]
    assert seen == ["/v1/models"]


async def test_public_paths_need_no_key(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """And nothing beside them."""
    gateway = make_gateway()
    add_key(guarded(gateway, public_paths=["/health"]), "alice")
    await serving(gateway, engine)
    async with aiohttp.ClientSession() as session:
        for path, wanted in {"/health": 200, "/v1/models": 401, "/health_generate": 401, "/healthx": 404}.items():
            async with session.get(f"{gateway.url()}{path}") as response:
                assert response.status == wanted, path


async def test_keys_are_asked_for_from_a_reload_on(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """nginx takes its Lua module in without a restart, and lets it go again."""
    gateway = make_gateway()
    await serving(gateway, engine)
    assert (await post(gateway, None))[0] == 200
    pid = (await gateway.status())["nginx"]["pid"]
    key = add_key(guarded(gateway), "alice")
    gateway.configure()
    assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: frontend\n")
    await until_status(gateway, "wrong", 401)
    assert (await post(gateway, key))[0] == 200
    gateway.settings["services"][0]["frontend"] = {}
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    await until_status(gateway, "wrong", 200)
    await until_gone(gateway.directory / "run" / "frontends" / "chat.keys")
    assert (await gateway.status())["nginx"]["pid"] == pid


async def test_a_frontend_that_cannot_be_changed_stays_as_it_is(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Keys are not taken away while nginx still asks for them, nor for another file that cannot be used."""
    gateway = make_gateway()
    file = guarded(gateway)
    key = add_key(file, "alice")
    await serving(gateway, engine)
    gateway.settings["services"][0]["frontend"]["auth"]["keys_file"] = str(gateway.directory / "not-there.keys")
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    await gateway.until(lambda s: any("not-there.keys" in text for text in s["problems"]))
    assert (await post(gateway, key))[0] == 200
    with socket.create_server(("127.0.0.1", gateway.ports["chat"] + 5)):
        gateway.settings["services"][0]["frontend"] = {"listen": [f"127.0.0.1:{gateway.ports['chat'] + 5}"]}
        gateway.configure()
        code, _, err = await gateway.cli("reload")
        assert code == 1
        assert "PROBLEM: not in force: chat: listen and frontend: cannot listen on" in err
        assert (await post(gateway, key))[0] == 200
        assert (await post(gateway, "wrong"))[0] == 401
    await until_status(gateway, "wrong", 200, within_s=60)
    await until_gone(gateway.directory / "run" / "frontends" / "chat.keys")


async def until_gone(path: Path) -> None:
    async with asyncio.timeout(60):
        while path.exists():
            await asyncio.sleep(0.05)


async def test_nobody_waits_without_a_key(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """While no replica serves, holders wait and others are refused at once."""
    gateway = make_gateway()
    key = add_key(guarded(gateway), "alice")
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")
    assert (await post(gateway, "wrong"))[0] == 401
    waiting = asyncio.create_task(post(gateway, key))
    await gateway.until(lambda s: service_of(s)["waiting"] == 1)
    await engine(gateway.socket("r1"))
    assert (await waiting)[0] == 200


async def test_keys_by_command(make_gateway: MakeGateway) -> None:
    """`key add` shows the key once and stores its hash; `revoke`, `list`; each mistake has one clear line."""
    gateway = make_gateway()
    file = gateway.directory / "made.keys"
    code, out, err = await gateway.cli("key", "add", "alice", "--file", str(file), config=False)
    assert (code, err) == (0, "")
    assert file.read_text().endswith(f"alice:{hashlib.sha256(out.strip().encode()).hexdigest()}\n")
    assert out.strip() not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    code, out, err = await gateway.cli("key", "list", "--file", str(file), config=False)
    assert (code, [line.split()[:3] for line in out.splitlines()[1:]]) == (0, [["alice", "active", "-"]])
    assert err.startswith("when keys were last used is not known: ")
    assert err.count("\n") == 1
    for arguments, words in {
        ("add", "alice"): "has a key 'alice' already",
        ("add", "a b"): "is not a key's name",
        ("add", "bob", "--expires", "soon"): "--expires: 'soon' is not a date",
        ("revoke", "bob"): "has no key 'bob'",
    }.items():
        code, _, err = await gateway.cli("key", *arguments, "--file", str(file), config=False)
        assert code == 1
        assert words in err
        assert err.count("\n") == 1
    assert (await gateway.cli("key", "revoke", "alice", "--file", str(file), config=False))[0] == 0
    code, out, _ = await gateway.cli("key", "list", "--file", str(file), config=False)
    assert (code, len(out.splitlines())) == (0, 1)


# -- another server's word


@pytest_asyncio.fixture
async def judge() -> AsyncIterator[Judge]:
    one = Judge()
    async with listening(one.answer) as port:
        one.port = port
        yield one


class Judge:
    """A server that nginx asks; `verdict` is its answer, None lets the question hang."""

    def __init__(self) -> None:
        self.port = 0
        self.verdict: int | None = 200
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        assert not await request.read(), "the body stays with nginx"
        if self.verdict is None:
            await asyncio.sleep(30)
        return web.Response(status=self.verdict or 200)


async def test_another_server_decides(make_gateway: MakeGateway, engine: StartEngine, judge: Judge) -> None:
    """It is told what is asked for; 401 and 403 are passed on in OpenAI's form; anything else lets nobody in."""
    gateway = make_gateway()
    url = f"http://127.0.0.1:{judge.port}/auth"
    auth: dict[str, Any] = {"url": url, "public_paths": ["/health"], **PATIENT}
    gateway.settings["services"][0]["frontend"] = {"auth": auth}
    here = await serving(gateway, engine)
    assert (await post(gateway, "k"))[0] == 200
    asked = judge.asked[-1]
    assert asked["X-Original-URI"] == "/v1/chat/completions"
    assert asked["X-Original-Method"] == "POST"
    assert asked["Authorization"] == "Bearer k"
    for verdict, status, code in (
        (401, 401, "invalid_api_key"),
        (403, 403, "forbidden"),
        (404, 503, "auth_unavailable"),
        (500, 503, "auth_unavailable"),
        (None, 503, "auth_unavailable"),
    ):
        judge.verdict = verdict
        if verdict is None:
            auth["timeout_s"] = 0.5
            gateway.configure()
            assert (await gateway.cli("reload"))[0] == 0
        got, body, headers = await post(gateway, "k")
        assert (got, body["error"]["code"]) == (status, code)
        assert ("Retry-After" in headers) is (status == 503)
    assert here.ledger.received == 1
    before = len(judge.asked)
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url()}/health") as response:
        assert response.status == 200
    assert len(judge.asked) == before
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url()}/.gateway-auth") as response:
        assert response.status == 404


async def test_another_server_that_is_gone_lets_nobody_in(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Fail closed; not even to wait."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"auth": {"url": "http://127.0.0.1:1/auth"}}
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")
    status, body, _ = await post(gateway, "k")
    assert (status, body["error"]["code"]) == (503, "auth_unavailable")
    assert service_of(await gateway.status())["waiting"] == 0


async def test_another_servers_word_counts_in_the_hold(
    make_gateway: MakeGateway, engine: StartEngine, judge: Judge
) -> None:
    """Who may come in waits and is answered; who may not does not wait."""
    gateway = make_gateway()
    url = f"http://127.0.0.1:{judge.port}/auth"
    gateway.settings["services"][0]["frontend"] = {"auth": {"url": url, **PATIENT}}
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")
    judge.verdict = 401
    assert (await post(gateway, "k"))[0] == 401
    judge.verdict = 200
    waiting = asyncio.create_task(post(gateway, "k"))
    await gateway.until(lambda s: service_of(s)["waiting"] == 1)
    judge.verdict = 403
    await engine(gateway.socket("r1"))
    assert (await waiting)[0] == 200


@pytest.mark.parametrize("router", [{}, {"type": "none"}], ids=["smg", "no router"])
async def test_another_servers_word_counts_in_the_hold_of_a_shared_address_too(
    make_gateway: MakeGateway, engine: StartEngine, judge: Judge, router: dict[str, str]
) -> None:
    """It is asked once about each request, and its question takes nothing away of what was found out before."""
    models = {"tiny": {"service": "chat", "model": "tiny"}, "large": "code"}
    auth = {"auth": {"url": f"http://127.0.0.1:{judge.port}/auth", **PATIENT}, "access_log": "all"}
    gateway = shared(make_gateway, models, frontend=auth)
    gateway.settings["services"][0]["router"] = router
    await gateway.start()
    for service in ("chat", "code"):
        await gateway.until(lambda s, service=service: service_of(s, service)["missing"] == "replica")  # type: ignore[misc]
    waiting = [asyncio.create_task(ask(gateway, chat(model))) for model in ("tiny", "large")]
    for service in ("chat", "code"):
        await gateway.until(lambda s, service=service: service_of(s, service)["waiting"] == 1)  # type: ignore[misc]
    judge.verdict = 403
    for service, model in (("chat", "tiny"), ("code", "large")):
        await engine(gateway.socket("r1", service), model=model)
    answers = await asyncio.gather(*waiting)
    assert [(status, answer.get("model")) for status, answer in answers] == [(200, "tiny"), (200, "large")]
    assert len(judge.asked) == 2
    lines = await until_lines(gateway, 2)
    assert sorted((it["service"], it["model"], it["status"]) for it in lines) == [
        ("chat", "tiny", 200), ("code", "large", 200),
    ]  # fmt: skip


# -- its answers, kept


class Decider:
    """A server that nginx asks: it knows some keys, may be silent or fail, and notes what it was asked."""

    def __init__(self) -> None:
        self.keys = {"right"}
        self.fails: int | None = None
        self.silent = False
        self.asked: list[dict[str, str]] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        if self.silent:
            await asyncio.sleep(30)
        if self.fails is not None:
            return web.Response(status=self.fails)
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return web.Response(status=204 if shown in self.keys else 403 if shown == "banned" else 401)


@asynccontextmanager
async def deciding(
    directory: Path, **settings: Any
) -> AsyncIterator[tuple[Decider, Callable[..., Awaitable[int]], web.AppRunner]]:
    """nginx before a decider and a router that says yes; `ask` sends a request and returns its status."""
    decider = Decider()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", decider.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    decider.port = int(runner.addresses[0][1])
    auth = AuthSettings.model_validate({"url": f"http://127.0.0.1:{decider.port}/auth", **PATIENT, **settings})
    frontend = FrontendSettings(auth=auth, trusted_proxies=("127.0.0.1",))

    async def router(_: web.Request) -> web.Response:
        return web.Response()

    async with (
        listening(router) as behind,
        bare_nginx(directory, FrontendPlaces(directory), behind, frontend, requests=200) as url,
        aiohttp.ClientSession() as session,
    ):

        async def ask(key: str = "right", *, method: str = "GET", path: str = "/v1/models", **headers: str) -> int:
            sent = {"Authorization": f"Bearer {key}"} | headers
            async with session.request(method, f"{url}{path}", headers=sent) as response:
                text = await response.text()
                if response.status >= 400:
                    assert "error" in json.loads(text)
                return response.status

        try:
            yield decider, ask, runner
        finally:
            await runner.cleanup()


async def until_asked(decider: Decider, ask: Callable[..., Awaitable[int]], key: str, status: int) -> None:
    """Asks on until the answer is another one."""
    async with asyncio.timeout(60):
        while await ask(key) != status:
            await asyncio.sleep(0.02)


async def test_answers_are_kept_for_a_while(tmp_path: Path) -> None:
    """A yes for `keep_s`, a no for a second at the most; then another word counts."""
    async with deciding(tmp_path, keep_s=3) as (decider, ask, _):
        began = time.monotonic()
        assert {await ask() for _ in range(20)} == {200}
        assert [await ask("wrong") for _ in range(5)] == [401] * 5
        assert [await ask("banned") for _ in range(5)] == [403] * 5
        if time.monotonic() - began < 1:
            assert len(decider.asked) == 3
        decider.keys = {"wrong"}
        await until_asked(decider, ask, "wrong", 200)
        assert time.monotonic() - began > 0.9
        await until_asked(decider, ask, "right", 401)
        assert time.monotonic() - began > 2.9, "kept as long as it was said"


async def test_without_keep_s_each_request_is_asked_about(tmp_path: Path) -> None:
    """The default: a revocation counts at once."""
    async with deciding(tmp_path) as (decider, ask, _):
        assert [await ask() for _ in range(5)] == [200] * 5
        assert len(decider.asked) == 5
        decider.keys = set()
        assert await ask() == 401
        decider.fails = 500
        assert await ask() == 503


@pytest.mark.own_users
async def test_all_that_the_server_is_told_of_belongs_to_an_answer(tmp_path: Path) -> None:
    """Nobody comes in by the answer to another request: of each header that the server gets there are two questions."""
    async with deciding(tmp_path, keep_s=3600) as (decider, ask, _):
        others: list[dict[str, Any]] = [
            {},
            {"method": "POST"},
            {"path": "/v1/models?x=1"},
            {"path": "/health"},
            {"Host": "other.example.com"},
            {"X-Forwarded-For": "192.0.2.1"},
            {"X-Forwarded-For": "192.0.2.2"},
            *({header: "x"} for header in FOR_AUTH if header != "Authorization"),
            # What two values say together is not what another two say.
            {"X-Api-Key": "x", "Api-Key": "y"},
            {"X-Api-Key": "y", "Api-Key": "x"},
        ]
        for more in others * 2:
            assert await ask(**more) == 200, more
        assert len(decider.asked) == len(others)
        for asked in decider.asked:
            del asked["X-Request-ID"]  # It is no part of an answer: each request has another.
        told = [tuple(sorted(it.items())) for it in decider.asked]
        assert len(set(told)) == len(told), "two questions that are the same to the server"
        covered = {"Host", "X-Original-URI", "X-Original-Method", "X-Real-IP", *FOR_AUTH}
        copies = {f"X-Forwarded-{it}" for it in ("For", "Host", "Proto", "Method", "Uri")}
        assert set().union(*decider.asked) == covered | copies, (
            "another header: ask about it above, and in frontends.lua"
        )
        for wrong in ("", "wrong", "right2", "righ", "Right"):
            assert await ask(wrong) == 401


@pytest.mark.parametrize("away", ["gone", "failing", "silent"])
async def test_a_server_that_is_away_locks_out_nobody_whom_it_let_in(tmp_path: Path, away: str) -> None:
    """For `stale_s`: others stay out, and what it refused last does too; who was let in does not wait each time."""
    async with deciding(tmp_path, stale_s=3600, timeout_s=0.5) as (decider, ask, runner):
        decider.keys = {"right", "revoked"}  # It is away as well while the machine is busy, and asked again then.
        for key, status in {"right": 200, "revoked": 200, "wrong": 401}.items():
            await until_asked(decider, ask, key, status)
        decider.keys = {"right"}
        await until_asked(decider, ask, "revoked", 401)
        if away == "gone":
            await runner.cleanup()
        decider.fails, decider.silent = (503, away == "silent")
        began, asked = time.monotonic(), len(decider.asked)
        assert [await ask() for _ in range(100)] == [200] * 100
        took_s = time.monotonic() - began
        assert len(decider.asked) - asked <= 2 + took_s, "asked again once a second"
        for key in ("wrong", "revoked", "never seen"):
            assert await ask(key) == 503
        assert await ask(path="/health") == 503, "this it was never asked"
        if away != "gone":
            decider.fails, decider.silent = None, False
            await until_asked(decider, ask, "wrong", 401)
            decider.keys = set()
            await until_asked(decider, ask, "right", 401)
            decider.fails = 500
            assert await ask() == 503, "a no ends what was"


async def test_what_was_let_in_is_not_let_in_for_ever(tmp_path: Path) -> None:
    """After `stale_s` nobody comes in while the server is away; an answer that makes no sense is no yes before that."""
    async with deciding(tmp_path, keep_s=0.1, stale_s=2) as (decider, ask, _):
        began = time.monotonic()
        assert await ask() == 200
        decider.fails = 500
        while await ask() != 200:  # On a busy machine the time may be over before anybody could ask.
            assert time.monotonic() - began > 1.9
            decider.fails, began = None, time.monotonic()
            assert await ask() == 200
            decider.fails = 500
        await until_asked(decider, ask, "right", 503)
        assert time.monotonic() - began > 1.9
        decider.fails = None
        assert await ask() == 200
        decider.fails = 404
        await until_asked(decider, ask, "right", 503)


def shared_memory(pid: int) -> bytes:
    """All that a process may have in common with others. Blocks."""
    found = b""
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, rights, *_ = line.split()
            if rights.endswith("s"):
                first, last = (int(it, 16) for it in addresses.split("-"))
                memory.seek(first)
                found += memory.read(last - first)
    return found


@pytest.mark.own_users
async def test_no_credential_is_kept_in_the_clear(make_gateway: MakeGateway, engine: StartEngine, judge: Judge) -> None:
    """Neither in shared memory nor in a file. Over a reload answers stay; of another server there are none yet."""
    gateway = make_gateway()
    secret, path = "sk-in-the-clear-0123456789", f"http://127.0.0.1:{judge.port}/auth"
    frontend: dict[str, Any] = {"auth": {"url": path, "keep_s": 3600, **PATIENT}}
    gateway.settings["services"][0]["frontend"] = frontend
    await serving(gateway, engine)
    for _ in range(3):
        assert (await post(gateway, secret))[0] == 200
    assert len(judge.asked) == 1
    nginx = (await gateway.status())["nginx"]["pid"]
    content = await asyncio.to_thread(shared_memory, nginx)
    assert secret.encode() not in content
    host = gateway.url().removeprefix("http://")
    values = {"Authorization": f"Bearer {secret}"}
    told = [path, "POST", "/v1/chat/completions", host, "http", "127.0.0.1", *(values.get(it, "") for it in FOR_AUTH)]
    assert hashlib.sha256("\n".join(told).encode()).digest() in content, "the hash is there"
    for file in (gateway.directory / "run").rglob("*"):
        if file.is_file():
            with suppress(FileNotFoundError):  # Replaced just then.
                assert secret.encode() not in file.read_bytes()
    frontend["max_body_mb"] = 1
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    assert (await post(gateway, secret))[0] == 200
    assert len(judge.asked) == 1
    frontend["auth"]["url"] += "/elsewhere"
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    judge.verdict = 403
    assert (await post(gateway, secret))[0] == 403


async def test_answers_are_kept_at_an_address_of_many_models_too(
    make_gateway: MakeGateway, engine: StartEngine, judge: Judge
) -> None:
    gateway = make_gateway()
    frontend = {"auth": {"url": f"http://127.0.0.1:{judge.port}/auth", "keep_s": 3600, **PATIENT}}
    port = gateway.ports["api"] = min(gateway.ports.values()) + 8
    address = {"name": "api", "listen": f"127.0.0.1:{port}", "models": {"tiny": "chat"}, "frontend": frontend}
    gateway.settings["addresses"] = [address]
    await serving(gateway, engine)
    for _ in range(3):
        assert (await post(gateway, "sk-any", "api"))[0] == 200
    assert len(judge.asked) == 1


async def test_a_flood_of_wrong_keys_takes_no_place_of_who_was_let_in(tmp_path: Path) -> None:
    """What is kept has a bound: answers leave, and nobody is let in or locked out by that."""
    async with deciding(tmp_path, keep_s=3600, stale_s=7200, timeout_s=60) as (decider, ask, _):
        assert await ask() == 200
        for first in range(0, 12_000, 40):
            answers = await asyncio.gather(*(ask(f"wrong-{it}") for it in range(first, first + 40)))
            assert set(answers) == {401}
        asked = len(decider.asked)
        assert asked == 12_001
        assert await ask() == 200
        assert len(decider.asked) == asked


class listening:  # noqa: N801 - used like a function
    """A small HTTP server on a port of its own."""

    def __init__(self, answer: Any) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def __aexit__(self, *_exc: object) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def bare_nginx(
    directory: Path,
    places: FrontendPlaces,
    router: int,
    frontend: FrontendSettings,
    requests: int = 16,
    workers: int = 1,
    **more: Any,
) -> AsyncIterator[str]:
    """The real nginx with the daemon's text for one service, led to a router of ours; the service's URL.

    It runs as the user whose the directory is.
    """
    owner = User(directory.stat().st_uid)
    ports = PortBlock()
    listen = f"127.0.0.1:{ports.first}"
    program = await find_nginx("nginx")
    address = smg_address("chat", listen, f"127.0.0.1:{router}", f"127.0.0.1:{router}", frontend)
    config = directory / "nginx.conf"
    with owner.here():
        (directory / "temp").mkdir()
    for name in ("frontends.lua", "bounds.lua", "tokens.lua", "models.lua"):
        if not (directory / name).exists():  # A test may have one with a clock of its own.
            (directory / name).write_text((resources.files("gateway_sidecar") / "share" / name).read_text())
    text = NginxConfig(
        host="127.0.0.1", grpc_host="127.0.0.2", first_port=ports.first + 1, last_port=ports.first + 1,
        bridge_key="k" * 32, bridge_rules=RULES, links=directory, directory=directory,
        temp=directory / "temp", gates=directory, hold_socket=directory / "none.sock", log=directory / "error.log",
        worker_processes=str(workers), capacity=Capacity.within(1024, 2, requests), services=[address],
        stream_module=program.stream_module, user=("root", "root") if owner.uid == 0 else None, frontends=places,
        lua_modules=program.lua_modules or (), **more,
    ).rendered().text  # fmt: skip
    config.write_text(text)
    as_owner = owner.enter if owner != SELF else []
    process = await asyncio.create_subprocess_exec(*as_owner, program.path, "-p", str(directory), "-c", str(config))
    try:
        async with asyncio.timeout(60):
            while not busy_ports([("127.0.0.1", ports.first)]):
                assert process.returncode is None
                await asyncio.sleep(0.01)
        assert Path(f"/proc/{process.pid}").stat().st_uid == owner.uid
        yield f"http://{listen}"
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        ports.release()
