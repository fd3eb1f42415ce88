"""The access log on the real nginx and SMG: what a line says, that nothing breaks one, and that it stays bounded."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, take_away
from tests.system.test_disk import Disk, disk  # noqa: F401 - a fixture

FIELDS = [
    "time",
    "unix_s",
    "id",
    "service",
    "address",
    "client",
    "key",
    "method",
    "path",
    "model",
    "status",
    "complete",
    "waited_s",
    "first_byte_s",
    "first_token_s",
    "duration_s",
    "bytes_in",
    "bytes_out",
    "tokens_in",
    "tokens_out",
    "replica",
    "retries",
]
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": 'a secret, and "model": "another"'}], "max_tokens": 4}
_LONGEST_S = 60


class Engine:
    """A server of OpenAI's API that remembers the headers of each request, and streams until it is let go on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen: list[dict[str, str]] = []
        self.answer: dict[str, Any] = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._well)
        app.router.add_post(CHAT, self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "me"}]})

    async def _well(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _chat(self, request: web.Request) -> web.Response:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        if (await request.json()).get("stream"):
            choice = {"index": 0, "delta": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            said = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
            text = f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n"
            return web.Response(text=text, content_type="text/event-stream")
        headers = {"X-Request-Id": "an engine's own", "X-Gateway-Bridge": "forged", "X-Gateway-Waited": "9"}
        return web.json_response({"object": "chat.completion", "choices": [], **self.answer}, headers=headers)


StartRecorder = Callable[[Path], Awaitable[Engine]]


@pytest_asyncio.fixture
async def recorder() -> AsyncIterator[StartRecorder]:
    """Starts engines that remember headers; they end with the test."""
    started: list[Engine] = []

    async def start(path: Path) -> Engine:
        started.append(Engine(path))
        await started[-1].start()
        return started[-1]

    yield start
    for each in started:
        await each.stop()


def log_of(gateway: Gateway) -> Path:
    return gateway.directory / "state/log/access.log"


def lines_of(*files: Path) -> list[dict[str, Any]]:
    """What the lines say, and that each is one: strict UTF-8, strict JSON, each field once and no other."""
    found = []
    for raw in b"".join(map(_content, files)).split(b"\n")[:-1]:
        pairs: list[tuple[str, Any]] = json.loads(raw.decode(), object_pairs_hook=list, parse_constant=no_json)
        assert [name for name, _ in pairs] == FIELDS, raw
        found.append(dict(pairs))
    return found


def _content(file: Path) -> bytes:
    """Nothing while the files are renamed, or nginx has not opened the new one yet."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def no_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON, whatever Python takes")


async def until_lines(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The lines, once there are so many: nginx writes each within a second."""
    async with asyncio.timeout(_LONGEST_S):
        while not log_of(gateway).exists() or len(found := lines_of(log_of(gateway))) < count:
            await asyncio.sleep(0.05)
    return found


def logging(make_gateway: MakeGateway, what: str = "all", **more: Any) -> Gateway:
    gateway = make_gateway(access_log={"tokens": True, **more.pop("access_log", {})})
    gateway.settings["services"][0]["frontend"] = {"access_log": what, **more}
    return gateway


async def post(gateway: Gateway, body: object = BODY, **headers: str) -> tuple[int, str, str]:
    """Status, `X-Request-Id` and text of an answer."""
    async with gateway.client() as client, client.post(gateway.url() + CHAT, json=body, headers=headers) as answer:
        assert len(answer.headers.getall("X-Request-Id")) == 1
        assert not {name for name in answer.headers if name.lower().startswith(("x-gateway", "x-smg-routed"))}
        return answer.status, answer.headers["X-Request-Id"], await answer.text()


async def test_a_line_says_who_asked_for_what_and_what_became_of_it(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """The key's name and never the key, the path and never its query, the model and nothing of the prompt."""
    gateway = make_gateway(access_log={"tokens": True})
    file = gateway.directory / "keys"
    key = add_key(file, "alice")
    gateway.settings["services"][0]["frontend"] = {"access_log": "all", "auth": {"keys_file": str(file)}}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    shown = {"Authorization": f"Bearer {key}"}
    assert (await post(gateway, **shown, **{"X-Request-Id": "mine-1"}))[:2] == (200, "mine-1")
    assert (await post(gateway, {**BODY, "model": "none"}, **shown))[0] == 404
    stream = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    assert (await post(gateway, stream, **shown))[0] == 200
    asked = f"{gateway.url()}/v1/models?key={key}"
    async with gateway.client() as client, client.get(asked, headers={"X-Api-Key": "wrong"}) as answer:
        assert answer.status == 401
    chat, unknown, streamed, refused = await until_lines(gateway, 4)
    assert chat | {name: 0 for name in FIELDS if name.endswith("_s") or name in ("time", "bytes_in", "bytes_out")} == {
        "time": 0, "unix_s": 0, "id": "mine-1", "service": "chat", "address": "", "client": "127.0.0.1",
        "key": "alice",
        "method": "POST", "path": CHAT, "model": "tiny", "status": 200, "complete": True, "waited_s": 0,
        "first_byte_s": 0, "first_token_s": 0, "duration_s": 0, "bytes_in": 0, "bytes_out": 0,
        "tokens_in": chat["tokens_in"], "tokens_out": 4, "replica": "r1", "retries": 0,
    }  # fmt: skip
    assert chat["tokens_in"] > 0
    assert chat["bytes_in"] > len(json.dumps(BODY))
    assert chat["bytes_out"] > 200
    assert 0 < chat["first_byte_s"] <= chat["duration_s"] < _LONGEST_S
    assert (unknown["model"], unknown["status"], unknown["replica"]) == ("none", 404, "")
    assert (streamed["tokens_out"], streamed["replica"]) == (4, "r1")
    assert streamed["first_byte_s"] <= streamed["first_token_s"] <= streamed["duration_s"]
    assert (refused["status"], refused["key"], refused["path"], refused["model"]) == (401, "", "/v1/models", "")
    assert refused["tokens_in"] is refused["tokens_out"] is None
    text = log_of(gateway).read_text()
    assert key not in text
    assert "secret" not in text
    assert log_of(gateway).stat().st_mode & 0o777 == 0o640


async def test_a_request_has_one_name_from_its_client_to_its_engine(
    make_gateway: MakeGateway, recorder: StartRecorder
) -> None:
    """The client's if it is sane, else nginx's own; what an engine says of it does not reach the client."""
    gateway = logging(make_gateway)
    gateway.settings["services"][0]["router"] = {"log_level": "info"}
    await gateway.start()
    engine = await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    told = []
    for sent in ("mine-1", "", "a b", "x" * 129, 'x"y', "\u00e9"):
        status, name, _ = await post(gateway, **({"X-Request-Id": sent} if sent else {}))
        assert status == 200
        told.append(name)
    assert told[0] == "mine-1"
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in told[1:])
    assert [seen["x-request-id"] for seen in engine.seen] == told
    assert [line["id"] for line in await until_lines(gateway, len(told))] == told
    await gateway.until_logged("router.said")
    async with asyncio.timeout(_LONGEST_S):
        while not {it.get("request_id") for it in gateway.events("router.said")} >= set(told):
            await asyncio.sleep(0.05)


async def test_a_request_that_waits_keeps_its_name_and_says_how_long(
    make_gateway: MakeGateway, recorder: StartRecorder
) -> None:
    """Whether it goes on, is refused, or its client leaves; to wait is to be sent to nobody, and so no retry."""
    gateway = logging(make_gateway)
    gateway.settings["services"][0]["hold"] = {"asleep_s": 600, "max_waiting": 2}
    await gateway.start()
    waiting = asyncio.create_task(post(gateway, **{"X-Request-Id": "waits"}))
    leaving = asyncio.create_task(post(gateway, **{"X-Request-Id": "leaves"}))
    async with gateway.client() as client, asyncio.timeout(_LONGEST_S):
        metrics = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
        while 'waiting_requests{service="chat"} 2' not in await (await client.get(metrics)).text():
            await asyncio.sleep(0.05)
    assert (await post(gateway, **{"X-Request-Id": "too-many"}))[:2] == (503, "too-many")
    leaving.cancel()
    await until_lines(gateway, 2)
    await recorder(gateway.socket("r1"))
    assert (await waiting)[:2] == (200, "waits")
    by_id = {line["id"]: line for line in await until_lines(gateway, 3)}
    assert by_id["too-many"]["status"] == 503
    assert (by_id["leaves"]["status"], by_id["leaves"]["first_byte_s"]) == (499, None)
    assert by_id["leaves"]["complete"] is False
    assert 0 < by_id["leaves"]["waited_s"] <= by_id["leaves"]["duration_s"] + 0.01
    went_on = by_id["waits"]
    assert 0.05 < went_on["waited_s"] <= went_on["first_byte_s"] + 0.01
    assert (went_on["status"], went_on["retries"], went_on["replica"]) == (200, 0, "r1")
    assert by_id["too-many"]["waited_s"] < went_on["waited_s"]


async def test_errors_only_are_what_was_refused_failed_or_cut_off(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A line that is not written costs as good as nothing, and a client that leaves a stream is one."""
    gateway = logging(make_gateway, "errors")
    await gateway.start()
    await engine(gateway.socket("r1"), token_interval_s=0.2)
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, {**BODY, "max_tokens": 1}, **{"X-Request-Id": "good"}))[0] == 200
    assert (await post(gateway, {**BODY, "model": "none"}, **{"X-Request-Id": "unknown"}))[0] == 404
    async with (
        gateway.client() as client,
        client.post(
            gateway.url() + CHAT, json={**BODY, "stream": True, "max_tokens": 100}, headers={"X-Request-Id": "cut"}
        ) as answer,
    ):
        await answer.content.readline()
        answer.close()
    async with gateway.client() as client, client.head(f"{gateway.url()}/v1/nothing") as answer:
        assert answer.status == 404
    lines = await until_lines(gateway, 3)
    assert "good" not in {line["id"] for line in lines}
    (cut,) = [line for line in lines if line["id"] == "cut"]
    assert (cut["status"], cut["complete"], cut["replica"], cut["model"]) == (200, False, "r1", "tiny")
    (head,) = [line for line in lines if line["method"] == "HEAD"]
    assert (head["status"], head["path"]) == (404, "/v1/nothing")


HOSTILE = st.binary(min_size=0, max_size=40).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"\x01"))
TARGETS = st.one_of(
    HOSTILE.map(lambda raw: b"/" + raw),
    st.text(max_size=40).map(lambda text: b"/v1/models/" + text.encode("utf-8", "surrogatepass").replace(b"\n", b"")),
    st.sampled_from([b"*", b"", b"/" + b"x" * 3000, b'/"},"id":"forged', b"/v1/models?key=secret", b"http://u:p@h/v1/x",
                     b"/%00%0a%22", b"/\xff\xfe\\\"", b"/v1/models#secret"]),
)  # fmt: skip
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"get", b'G"', b"X-Y_Z", b"", b"\xff"])
VALUES = st.one_of(HOSTILE, st.sampled_from([b'"},{"', b"\\", b"\xc3\x28", b"a" * 4000, b"\t", b"\x7f"]))
MODELS = st.one_of(
    st.text(max_size=30), st.sampled_from(['"', "\\", "\n", "x" * 500, "\u2028", "tiny", '","model":"other'])
)


@st.composite
def hostile_requests(draw: st.DrawFn) -> bytes:
    """A request as somebody may send it who wants to break a line, or to write one of his own."""
    body = draw(st.one_of(
        st.just(b""), HOSTILE,
        MODELS.map(lambda name: json.dumps({"messages": [{"model": 1}], "model": name}).encode()),
        MODELS.map(lambda name: json.dumps({"model": name}, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    ))  # fmt: skip
    version = draw(st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"", b" \xff"]))
    headers = [b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
    for name in (b"X-Request-Id", b"X-Forwarded-For", b"User-Agent", b"Referer", b"X-Gateway-Bridge"):
        headers += [name + b": " + draw(VALUES)] if draw(st.booleans()) else []
    head = b"\r\n".join([draw(METHODS) + b" " + draw(TARGETS) + version, *headers])
    whole = head + b"\r\n\r\n" + body
    return whole if draw(st.integers(0, 9)) else whole[: len(whole) // 2]


def drawn(count: int) -> list[bytes]:
    found: list[bytes] = []

    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(hostile_requests())
    def collect(request: bytes) -> None:
        found.append(request)

    collect()
    return found


async def send(gateway: Gateway, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])
    try:
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(_LONGEST_S):
            await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_nothing_that_clients_send_breaks_a_line(make_gateway: MakeGateway, recorder: StartRecorder) -> None:
    """Each line is strict JSON with each field once, of bounded length, and says no query."""
    gateway = logging(make_gateway, trusted_proxies=["127.0.0.0/8"])
    await gateway.start()
    await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    requests = drawn(400)
    for request in requests:
        await send(gateway, request)
    assert (await post(gateway, **{"X-Request-Id": "the-last"}))[0] == 200
    async with asyncio.timeout(_LONGEST_S):
        while b"the-last" not in log_of(gateway).read_bytes():
            await asyncio.sleep(0.05)
    lines = lines_of(log_of(gateway))
    assert len(requests) // 2 < len(lines) <= len(requests) + 1
    assert {line["id"] for line in lines}.isdisjoint({"forged"})
    raw = log_of(gateway).read_bytes()
    assert b"secret" not in raw
    assert max(map(len, raw.split(b"\n"))) < 3000
    assert len({line["status"] for line in lines}) > 3


async def test_what_nginx_refuses_by_itself_is_logged_as_it_came(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Its method, too, though nginx looks such an answer up as a GET. What is no request has none."""
    gateway = logging(make_gateway, "errors")
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    post_of = f"POST {CHAT} HTTP/1.1|Host: x|X-Request-Id:"
    heads = {
        f"{post_of} chunks|Transfer-Encoding: chunked||zz|": ("POST", CHAT, 400),
        f"{post_of} coding|Transfer-Encoding: gzip||": ("POST", CHAT, 501),
        f"{post_of} lengths|Content-Length: 1|Transfer-Encoding: chunked||": ("POST", CHAT, 400),
        f"{post_of} long|X-Long: {'x' * 9000}||": ("POST", CHAT, 431),
        f"TRACE {CHAT} HTTP/1.1|Host: x|X-Request-Id: trace||": ("TRACE", CHAT, 405),
        f"HEAD {CHAT} HTTP/1.1|Host: x|Host: y|X-Request-Id: head||": ("HEAD", CHAT, 400),
        "get / HTTP/1.1|Host: x||": ("", "", 400),
    }
    for head in heads:
        await send(gateway, head.replace("|", "\r\n").encode())
    lines = await until_lines(gateway, len(heads))
    said = [(line["method"], line["path"], line["status"]) for line in lines]
    assert said == list(heads.values())
    assert not [line["replica"] for line in lines if line["replica"]]


async def test_a_log_is_rotated_and_bounded_over_reloads_and_daemons(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """No line is lost or torn, whichever daemon renames the files, and whichever nginx process writes them."""
    gateway = logging(make_gateway, access_log={"max_mb": 1, "keep": 2})
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    file = log_of(gateway)
    files = [file.with_name(f"access.log.{number}") for number in (2, 1)]
    sent = 0

    async def fill(count: int) -> None:
        nonlocal sent
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["chat"])
        for number in range(sent, sent + count):
            name = f"{number:0120d}".encode()
            writer.write(b"GET /%b HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\n\r\n" % (b"p" * 500, name))
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}}")
        writer.close()
        sent += count

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_LONGEST_S):
            while not condition():
                await asyncio.sleep(0.05)

    await fill(1500)  # 1 KB each
    await until(files[1].exists)
    gateway.settings["services"][0]["frontend"]["max_body_mb"] = 7
    gateway.configure()
    code, _, error = await gateway.cli("reload")
    assert code == 0, error
    await fill(10)
    pid = (await gateway.status())["nginx"]["pid"]
    await gateway.kill()
    await fill(1500)  # Nobody rotates meanwhile.
    await gateway.start()
    assert (await gateway.status())["nginx"]["pid"] == pid
    await until(files[0].exists)
    await fill(10)
    await until(lambda: len(lines_of(*files, file)) == sent)
    assert [line["id"] for line in lines_of(*files, file)] == [f"{number:0120d}" for number in range(sent)]
    assert file.stat().st_mode & 0o777 == 0o640
    assert lines_of(files[0])[0]["id"] == f"{0:0120d}"
    first = [lines_of(each)[:1] for each in (files[1], file)]
    await fill(1500)
    await until(lambda: [lines_of(each)[:1] for each in files] == first and file.exists())
    assert not file.with_name("access.log.3").exists()
    file.unlink()
    await until(file.exists)
    before = sent
    async with asyncio.timeout(_LONGEST_S):
        while not lines_of(file):  # nginx's master makes it, a moment before its worker writes there.
            await fill(1)
            await asyncio.sleep(0.05)
    assert {line["id"] for line in lines_of(file)} <= {f"{number:0120d}" for number in range(before, sent)}


async def test_a_full_disk_costs_lines_and_nobody_an_answer(
    disk: Disk,  # noqa: F811
    make_gateway: MakeGateway,
    engine: StartEngine,
) -> None:
    """Lines come again when there is room, without anybody's doing."""
    directory = disk.path / "log"
    directory.mkdir()
    gateway = logging(make_gateway, access_log={"directory": str(directory)})
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    file = directory / "access.log"
    disk.fill()
    for _ in range(200):
        assert (await post(gateway))[0] == 200
    disk.free()
    async with asyncio.timeout(_LONGEST_S):
        while b'"mark"' not in file.read_bytes():
            assert (await post(gateway, **{"X-Request-Id": "mark"}))[0] == 200
            await asyncio.sleep(0.2)
    tail = file.read_bytes().rpartition(b'"mark"')[0].rpartition(b"\n")[2] + b'"mark"'
    assert tail.startswith(b'{"time":"')


async def test_a_directory_that_cannot_be_used_is_told_and_taken_when_it_can(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """`check` fails with what to do. The daemon serves without a log, says so, and logs once it may, without a reload
    of its configuration."""
    gateway = make_gateway()
    directory = gateway.directory / "elsewhere"
    directory.mkdir()
    directory.chmod(0o777)
    gateway.settings["access_log"] = {"directory": str(directory)}
    gateway.settings["services"][0]["frontend"] = {"access_log": "all"}
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code != 0
    assert f"access_log.directory: {directory}" in out
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await gateway.until(lambda status: any("access log: cannot write" in it for it in status["problems"]))
    assert (await post(gateway))[0] == 200
    directory.chmod(0o750)
    await gateway.until(lambda status: not any("access log" in it for it in status["problems"]), within_s=_LONGEST_S)
    async with asyncio.timeout(_LONGEST_S):
        while not (directory / "access.log").exists() or not lines_of(directory / "access.log"):
            assert (await post(gateway))[0] == 200
            await asyncio.sleep(0.1)
    code, out, _ = await gateway.cli("check")
    assert "access_log.directory" in out
    assert code == 0, out


async def test_lines_go_to_syslog_and_to_no_file(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A syslog server that is away, and comes back, costs nobody an answer."""
    gateway = make_gateway()
    place = gateway.directory / "syslog.sock"
    gateway.settings["access_log"] = {"syslog": f"unix:{place}"}
    gateway.settings["services"][0]["frontend"] = {"access_log": "all"}
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code != 0
    assert f"access_log.syslog: there is no socket {place}" in out
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway))[0] == 200
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(place))
        server.setblocking(False)
        async with asyncio.timeout(_LONGEST_S):
            while True:
                assert (await post(gateway, **{"X-Request-Id": "heard"}))[0] == 200
                try:
                    text = server.recv(65536)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.05)
    head, _, line = text.partition(b"gateway_sidecar: ")
    assert head.startswith(b"<190>")
    assert json.loads(line)["replica"] == "r1"
    assert not log_of(gateway).exists()


async def test_nginx_as_a_router_names_the_replica_too(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """`router: {type: none}`: also of requests that were tried at another replica before."""
    gateway = logging(make_gateway)
    gateway.settings["services"][0]["router"] = {"type": "none"}
    await gateway.start()
    for name in ("r1", "r2"):
        await engine(gateway.socket(name))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    for number in range(12):
        assert (await post(gateway, **{"X-Request-Id": str(number)}))[0] == 200
    lines = await until_lines(gateway, 12)
    assert {line["replica"] for line in lines} == {"r1", "r2"}
    assert {line["model"] for line in lines} == {"tiny"}
    assert {line["tokens_out"] for line in lines} == {4}


ASKED = {
    '{"model": "a", "messages": []}': "a",
    ' {\n"messages": [{"role": "user", "content": "x"}],\t"model"\n:\r "a" }': "a",
    '{"metadata": {"model": "b"}, "messages": [{"model": "c"}], "model": "a"}': "a",
    '{"x": ["model", {"model": "b"}], "model": "a", "y": "model"}': "a",
    r'{"messages": [{"content": "\"model\": \"b\" \\"}], "model": "a"}': "a",
    r'{"x": "}{\"", "tools": [{"model": {"type": "string"}}], "model": "a"}': "a",
    r'{"model": "a\"b\\"}': 'a"b\\',
    '{"model": "b", "model": "a"}': "a",
    '{"model": "\u00e4\n"}': "???",
    '{"model": 7, "x": "model"}': "",
    '{"messages": []}': "",
    '["model", "a"]': "",
    '{"model": "' + "m" * 300 + '"}': "m" * 256,
    '{"x": "' + "x" * 400_000 + '", "model": "a"}': "",
    '{"model": "a': "",
}
"""Bodies, and the model that a line names: nothing that somebody says in a prompt, and no other object's."""


async def test_the_model_is_that_of_the_bodys_outermost_object(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """However it is written; of a body that is on disk it is not known."""
    gateway = logging(make_gateway)
    gateway.settings["services"][0]["router"] = {"type": "none"}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    async with gateway.client() as client:
        for body in ASKED:
            async with client.post(gateway.url() + CHAT, data=body.encode()) as answer:
                await answer.read()
    assert [line["model"] for line in await until_lines(gateway, len(ASKED))] == list(ASKED.values())


async def test_what_a_router_tries_again_is_counted(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """SMG asks another engine where one fails, and does not say so: the bridges do. The same name may come again."""
    gateway = logging(make_gateway)
    gateway.settings["services"][0]["router"] = {"policy": "round_robin"}
    await gateway.start()
    failing = await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"))
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    failing.behave(fail_rate=1.0)
    for _ in range(6):
        assert (await post(gateway, **{"X-Request-Id": "mine"}))[0] == 200
    lines = await until_lines(gateway, 6)
    assert {(line["status"], line["replica"]) for line in lines} == {(200, "r2")}
    assert {line["retries"] for line in lines} == {0, 1}


async def test_a_grpc_engine_is_named_too(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It has no headers to say it in: SMG does."""
    gateway = logging(make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"), EngineKind.VLLM_GRPC)
    await gateway.until_states({"r1": "serving"}, within_s=_LONGEST_S)
    assert (await post(gateway, **{"X-Request-Id": "mine"}))[:2] == (200, "mine")
    (line,) = await until_lines(gateway, 1)
    assert (line["id"], line["replica"], line["model"], line["tokens_out"]) == ("mine", "r1", "tiny", 4)


async def test_names_that_somebody_removed_are_put_back(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """What is in run_dir may be swept away: the next lines have names again."""
    gateway = logging(make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    names = gateway.directory / "run/names"
    take_away(names)
    async with asyncio.timeout(_LONGEST_S):
        while not names.exists() or len(os.listdir(names)) != 1:
            await asyncio.sleep(0.05)
    assert (await post(gateway))[0] == 200
    assert [line["replica"] for line in await until_lines(gateway, 1)] == ["r1"]
