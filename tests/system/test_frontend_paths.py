"""What passes a service's address: inference, and nothing that controls the router."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway_sidecar.nginx.templates import any_of
from gateway_sidecar.routers.smg.paths import PATHS
from tests.system.conftest import MakeGateway, StartAs
from tests.system.gateway import Gateway, service_of
from tests.users import ONE

pytestmark = pytest.mark.own_users

ROUTES = {
    "/v1/responses": "POST",
    "/v1/responses/resp_1": "GET DELETE",
    "/v1/responses/resp_1/cancel": "POST",
    "/v1/responses/resp_1/input_items": "GET",
    "/v1/conversations": "POST",
    "/v1/conversations/conv_1": "GET POST DELETE",
    "/v1/conversations/conv_1/items": "GET POST",
    "/v1/conversations/conv_1/items/item_1": "GET DELETE",
    "/generate": "POST",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/rerank": "POST",
    "/v1/rerank": "POST",
    "/v1/embeddings": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/decisions": "POST",
    "/v1/systemone": "POST",
    "/v1/interactions": "POST",
    "/v1/classify": "POST",
    "/v1/tokenize": "POST",
    "/v1/detokenize": "POST",
    "/v1/realtime/sessions": "POST",
    "/v1/realtime/client_secrets": "POST",
    "/v1/realtime/transcription_sessions": "POST",
    "/v1/realtime": "GET",
    "/v1/realtime/calls": "POST",
    "/v1/audio/transcriptions": "POST",
    "/v1/models": "GET",
    "/v1/models/model_1": "GET",
    "/v1/models/org/model_1": "GET",
    "/v1/models/org%2Fmodel_1": "GET",
    "/v1/models/org%2Fmodel_1%3A7b@main+lora": "GET",
    "/liveness": "GET",
    "/readiness": "GET",
    "/health": "GET",
    "/health_generate": "GET",
}
"""Every route of SMG that serves clients."""

INFORMATION = {"/engine_metrics": "GET", "/get_model_info": "GET", "/get_server_info": "GET"}
"""Routes that tell of the fleet: not for clients, unless `paths` names them."""

CONTROLS = {
    "/flush_cache": "POST",
    "/start_profile": "POST",
    "/stop_profile": "POST",
    "/heap_profile": "POST",
    "/get_loads": "GET",
    "/parse/function_call": "POST",
    "/parse/reasoning": "POST",
    "/wasm": "GET POST",
    "/wasm/00000000-0000-0000-0000-000000000000": "DELETE",
    "/v1/tokenizers": "GET POST",
    "/v1/tokenizers/t1": "GET DELETE",
    "/v1/tokenizers/t1/status": "GET",
    "/workers": "GET POST",
    "/workers/w1": "GET PUT PATCH DELETE",
    "/v1/rl/workers": "GET",
    "/v1/rl/workers/w1/engine/pause_generation": "POST",
}
"""Routes that control it: not for anybody."""

WORKERS_TOLD = {"/loads": "GET"}
"""Routes that tell of the workers' addresses, without a key."""

TRICKS = (
    "/v1/../workers",
    "/v1/models/../../workers",
    "/v1/models/./../../workers",
    "/v1/models/%2e%2e/%2e%2e/workers",
    "/v1/models/..%2f..%2fworkers",
    "//workers",
    "/v1//tokenizers",
    "/v1/responses//../../workers",
    "/%77orkers",
    "/%2577orkers",
    "/Workers",
    "/WORKERS",
    "/workers/",
    "/workers//",
    "/workers?x=/v1/models",
    "/workers;/v1/models",
    "/workers#/v1/models",
    "/workers/%2e",
    "/./workers",
    "/v1/responses/..",
    "/v1/responses/../../workers",
    "/v1/responses/.%2e/%2e./workers",
    "/v1/models/",
    "/v1/modelsx",
    "/v1/models\\..\\..\\workers",
    "/v1/models%00/../workers",
    "/",
    "*",
    "http://gateway/workers",
    "http://gateway//workers",
    "http://gateway/v1/../workers",
    "http://gateway",
    "HTTP://GATEWAY/%77orkers",
)
"""Request targets that would reach a control route, or nothing, if somebody read them otherwise than nginx."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str

    @property
    def refused(self) -> bool:
        """Whether the frontend itself said that there is nothing at this path (the router has other words)."""
        return self.status == 404 and "There is nothing at this path." in self.body


async def ask_raw(port: int, method: str, target: str) -> Answer:
    """One request, its target as it stands here; no client library puts it right."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b"{}" if method != "GET" else b""
    head = f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        async with asyncio.timeout(60):
            answer = await reader.read()
    finally:
        writer.close()
    first, _, rest = answer.partition(b"\r\n")
    return Answer(int(first.split()[1]), rest.partition(b"\r\n\r\n")[2].decode())


def router_port(status: dict[str, object]) -> int:
    return int(service_of(status)["router"]["url"].rsplit(":", 1)[1])


def pairs(routes: dict[str, str]) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in routes.items() for method in methods.split()]


async def serving(gateway: Gateway, start: StartAs) -> int:
    """Starts the gateway with one replica; the router's own port."""
    await gateway.start()
    await start(ONE, gateway.socket("r1"))
    return router_port(await gateway.until_states({"r1": "serving"}))


@pytest.mark.parametrize("paths", [[], "all"], ids=["default", "all"])
async def test_no_control_route_passes(make_gateway: MakeGateway, start: StartAs, paths: object) -> None:
    """Not with the default, and not with `all`; the router itself, asked directly, has every one of them."""
    gateway = make_gateway()
    gateway.settings["services"][0] |= {"frontend": {"paths": paths}, "router": {"args": ["--enable-rl"]}}
    behind = await serving(gateway, start)
    for method, path in pairs(CONTROLS):
        assert (await ask_raw(gateway.ports["chat"], method, path)).refused, f"{method} {path} passed"
        there = await ask_raw(behind, method, path)
        # Without its key the router says 401: the route is there.
        assert there.status in (401, 403), f"{method} {path} is no control route of this router: {there}"
    for method, path in pairs(INFORMATION | WORKERS_TOLD):
        assert (await ask_raw(gateway.ports["chat"], method, path)).refused, path
        assert (await ask_raw(behind, method, path)).status != 404


async def test_of_the_routes_of_this_very_router_only_inference_passes(
    make_gateway: MakeGateway, start: StartAs
) -> None:
    """Also of one that is newer than our lists: its program is searched for what may be a route, and it is asked."""
    gateway = make_gateway()
    gateway.settings["services"][0] |= {"frontend": {"paths": "all"}, "router": {"args": ["--enable-rl"]}}
    behind = await serving(gateway, start)
    candidates = await asyncio.to_thread(paths_in, router_program())
    assert len(candidates) > 1000
    routes = await answered(behind, candidates)
    assert {"/heap_profile", "/loads", "/workers", "/v1/chat/completions"} <= set(routes), routes
    passing = [path for path in routes if not (await ask_raw(gateway.ports["chat"], "GET", path)).refused]
    inference = re.compile(any_of(PATHS.inference))
    assert [path for path in passing if not inference.fullmatch(path)] == [], "decide: inference, or control"


def router_program() -> Path:
    """What is installed as the router."""
    found = importlib.util.find_spec("smg")
    assert found is not None
    assert found.submodule_search_locations
    (program,) = Path(found.submodule_search_locations[0]).glob("smg_rs*.so")
    return program


def paths_in(program: Path) -> set[str]:
    """What may be a path: all runs of up to four segments in the program's text, where routes lie end to end."""
    runs = set(re.findall(rb"(?:/(?:[a-z][a-z0-9_]{1,30}|\{\*?[a-z_]+\}))+", program.read_bytes()))
    found = set()
    for run in runs:
        segments = re.sub(r"\{.*?\}", "x1", run.decode()).split("/")[1:]
        for at in range(len(segments)):
            found |= {"/" + "/".join(segments[at : at + count]) for count in range(1, 5)}
    return found


async def answered(port: int, paths: Iterable[str]) -> list[str]:
    """Those of the paths that the router has a route for, be it for another method or with a key."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    async with asyncio.timeout(300):
        for path in sorted(paths):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if not (head.split()[1] == "404" and b"Invalid URL" in body):
                found.append(path)
            if not length and "chunked" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return found


async def test_every_inference_route_passes(make_gateway: MakeGateway, start: StartAs) -> None:
    """What the router says to it is the router's own."""
    gateway = make_gateway()
    await serving(gateway, start)
    for method, path in pairs(ROUTES):
        assert not (await ask_raw(gateway.ports["chat"], method, path)).refused, f"{method} {path} did not pass"
        assert not (await ask_raw(gateway.ports["chat"], method, f"{path}?after=a/../b%20c")).refused
    answer = await ask_raw(gateway.ports["chat"], "GET", "http://gateway/v1/models")
    assert answer.status == 200, "the absolute form of a path that passes"
    assert json.loads(answer.body)["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("paths", [[], "all"], ids=["default", "all"])
async def test_no_trick_passes(make_gateway: MakeGateway, start: StartAs, paths: object) -> None:
    """Dots, escapes, empty segments, capitals, absolute forms: the same path to nobody else but its sender."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"paths": paths}
    behind = await serving(gateway, start)
    forms = ("/v1/models/", "/v1/modelsx") if paths == "all" else ()
    for target in TRICKS:
        if target in forms:
            continue
        answer = await ask_raw(gateway.ports["chat"], "GET", target)
        # nginx itself has no ear for some of them.
        assert answer.refused or answer.status == 400, f"{target} passed: {answer}"
    assert (await ask_raw(behind, "GET", "/workers")).status == 401
    assert (await ask_raw(behind, "GET", "/workers?x=/v1/models")).status == 401


async def test_paths_add_what_is_below_them(make_gateway: MakeGateway, start: StartAs) -> None:
    """A prefix stands for itself and whole segments below it."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"paths": ["/get_model_info", "/v1"]}
    await serving(gateway, start)
    for path, passes in {
        "/get_model_info": True,
        "/get_server_info": False,
        "/get_model_info2": False,
        "/v1/files/f1": True,
        "/v1/files/../workers": False,
        "/v1/tokenizers": False,
        "/v1/Tokenizers/x": False,
    }.items():
        assert (await ask_raw(gateway.ports["chat"], "GET", path)).refused is not passes, path


async def test_a_refusal_has_the_name_of_its_request(gateway: Gateway) -> None:
    """The client's own, or one that nginx gives it; none of a client's that is no name."""
    found = []
    for sent in ("req-1", "a b", ""):
        async with gateway.client() as session:
            headers = {"X-Request-Id": sent} if sent else {}
            async with session.get(f"{gateway.url()}/nothing", headers=headers) as answer:
                found.append(answer.headers.getall("X-Request-Id"))
    assert found[0] == ["req-1"]
    assert all(len(each) == 1 and re.fullmatch("[0-9a-f]{32}", each[0]) for each in found[1:])


async def test_the_refusal_is_as_clients_know_it(gateway: Gateway) -> None:
    """OpenAI's form, while the router is away too."""
    answer = await ask_raw(gateway.ports["chat"], "POST", "/workers")
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


NO_REQUESTS = {
    "GET /v1/models%00 HTTP/1.1|Host: x": (400, "bad_request"),
    "GET * HTTP/1.1|Host: x": (400, "bad_request"),
    "GET v1/models HTTP/1.1|Host: x": (400, "bad_request"),
    "get /v1/models HTTP/1.1|Host: x": (400, "bad_request"),
    "CONNECT 127.0.0.1:1 HTTP/1.1|Host: x": (400, "bad_request"),
    "GET /v1/models HTTP/2.0|Host: x": (505, "unsupported_version"),
    f"GET /v1/responses/{'x' * 9000} HTTP/1.1|Host: x": (414, "url_too_long"),
    "TRACE /v1/models HTTP/1.1|Host: x": (405, "method_not_allowed"),
    "GET /v1/models HTTP/1.1|Host: x|Host: y": (400, "bad_request"),
    "GET /v1/models HTTP/1.1|Host: x/../y": (400, "bad_request"),
    "GET /v1/models HTTP/1.1": (400, "bad_request"),
    "GET /v1/models HTTP/1.1|Host: x|Authorization: Bearer a|Authorization: Bearer b": (400, "bad_request"),
    "POST /v1/completions HTTP/1.1|Host: x|Content-Length: 2|Transfer-Encoding: chunked": (400, "bad_request"),
    "POST /v1/completions HTTP/1.1|Host: x|Content-Length: 2|Content-Length: 3": (400, "bad_request"),
    "POST /v1/completions HTTP/1.1|Host: x|Content-Length: -1": (400, "bad_request"),
    "POST /v1/completions HTTP/1.1|Host: x|Transfer-Encoding: gzip": (501, "unsupported_encoding"),
    f"GET /v1/models HTTP/1.1|Host: x|X-Large: {'x' * 9000}": (431, "headers_too_large"),
}
"""Request heads that nginx refuses by itself, lines with `|` between them, and the answers."""


async def test_what_is_no_request_is_refused_in_the_same_form(make_gateway: MakeGateway, start: StartAs) -> None:
    """nginx's own refusals, with a name and without one; an engine or a router's own words are left alone."""
    gateway = make_gateway()
    named = gateway.ports["chat"] + 5
    gateway.settings["services"][0]["frontend"] = {
        "listen": [f"127.0.0.1:{named}"],
        "server_names": ["api.example.com"],
    }
    await serving(gateway, start)
    for port in (gateway.ports["chat"], named):
        for head, wanted in NO_REQUESTS.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.replace("|", "\r\n").encode() + b"\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(60):
                answer = (await reader.read()).decode()
            writer.close()
            body = answer.partition("\r\n\r\n")[2]
            assert "\r\nX-Request-Id: " in answer, head
            assert body.startswith("{"), f"{head} on {port}: {answer}"
            assert (int(answer.split()[1]), json.loads(body)["error"]["code"]) == wanted, head
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    own = await ask_raw(gateway.ports["chat"], "DELETE", "/v1/models")
    assert "Invalid URL (DELETE /v1/models)" in own.body, "the router's own 405"


def test_the_lists_are_complete() -> None:
    """Every route of the router is on one list, and the frontend's own lists have all of them."""
    ids = re.compile(r"(resp|conv|item)_1")
    routes = {re.sub(r"(org(/|%2F))?model_1(%3A7b@main\+lora)?", "**", ids.sub("*", path)) for path in ROUTES}
    assert routes == set(PATHS.inference)
    assert set(INFORMATION) == set(PATHS.fleet)
    for path in CONTROLS | WORKERS_TOLD:
        assert any(f"{path}/".startswith(f"{root}/") for root in PATHS.control), path
