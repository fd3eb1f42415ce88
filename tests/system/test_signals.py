"""Signals from the real parts: what clients saw, what is in flight, how long a token takes, and what follows."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import yaml
from aiohttp import web

from examples.simulated import EngineKind
from examples.simulated.options import Lie, Role
from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.domain.signals import RequestEnd
from gateway_sidecar.nginx.access_events import EventListener, placeholder
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_frontend_keys import bare_nginx, listening

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


async def signals_of(gateway: Gateway, service: str = "chat") -> dict[str, Any]:
    async with gateway.session.get(f"http://daemon/v1/services/{service}/signals") as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


async def until_signals(
    gateway: Gateway, condition: Callable[[dict[str, Any]], Any], *, within_s: float = 60.0, service: str = "chat"
) -> dict[str, Any]:
    """The first signals for which the condition holds; the routers are read every five seconds."""
    end = time.monotonic() + within_s
    while True:
        async with gateway.session.get(f"http://daemon/v1/services/{service}/signals") as response:
            found: dict[str, Any] = await response.json()
            if response.status == 200 and condition(found):
                return found
        assert time.monotonic() < end, f"not within {within_s} s: {json.dumps(found, indent=1)}"
        await asyncio.sleep(0.05)


async def until_listening(gateway: Gateway) -> None:
    """The daemon takes nginx's events in, and has read the router once."""
    await until_signals(gateway, lambda s: s["windows"]["30"]["covered_s"] > 0 and s["in_flight"] is not None)


async def post(session: aiohttp.ClientSession, gateway: Gateway, **changes: object) -> int:
    async with session.post(f"{gateway.url()}/v1/chat/completions", json=BODY | changes) as response:
        await response.read()
        return response.status


async def page(gateway: Gateway, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.metrics_port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_requests_are_counted_as_their_clients_saw_them(gateway: Gateway, engine: StartEngine) -> None:
    """Every one, by what became of it; what only asks is no load. And the same in Prometheus' form."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    async with aiohttp.ClientSession() as session:
        assert [await post(session, gateway) for _ in range(20)] == [200] * 20
        assert await post(session, gateway, model="other") == 404
        async with session.get(f"{gateway.url()}/v1/models") as response:
            assert response.status == 200
    await asyncio.gather(*(stream_chat(gateway, 3) for _ in range(10)))
    found = await until_signals(gateway, lambda s: sum(s["windows"]["300"]["outcomes"].values()) >= 31)
    assert found["windows"]["300"]["outcomes"] == {"ok": 30, "client_error": 1}
    assert found["windows"]["300"]["e2e_s"]["samples"] == 30
    assert found["windows"]["300"]["errors_per_s"] == 0
    _, text = await page(gateway, "/metrics")
    assert 'gateway_sidecar_requests_total{outcome="ok",service="chat"} 30.0' in text
    assert "gateway_sidecar_lost_request_events 0.0" in text


async def test_failures_are_seen_by_service_and_by_role(gateway: Gateway, engine: StartEngine) -> None:
    """Every fourth request fails: nginx sees what its client got, the router what its worker did."""
    await engine(gateway.socket("r1"), fail_rate=0.25)
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    async with aiohttp.ClientSession() as session:
        codes = [await post(session, gateway) for _ in range(16)]
    assert codes.count(500) == 4
    found = await until_signals(
        gateway,
        lambda s: (
            s["roles"]["regular"]["windows"]["300"]["errors_per_s"]
            and sum(s["windows"]["300"]["outcomes"].values()) >= 16
        ),
    )
    assert found["windows"]["300"]["outcomes"] == {"ok": 12, "error": 4}
    assert found["windows"]["300"]["errors_per_s"] > 0


async def test_nginx_does_not_care_whether_the_daemon_listens(gateway: Gateway, engine: StartEngine) -> None:
    """A killed daemon: requests go on, not a line in nginx's error log; the next one hears of the next requests."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    await gateway.kill()
    log = gateway.directory / "state" / "log" / "nginx.log"
    before = log.read_bytes()
    async with aiohttp.ClientSession() as session:
        assert [await post(session, gateway) for _ in range(200)] == [200] * 200
        assert log.read_bytes() == before
        await gateway.start()
        assert gateway.events("nginx.adopted")
        await until_listening(gateway)
        assert [await post(session, gateway) for _ in range(7)] == [200] * 7
    found = await until_signals(gateway, lambda s: s["windows"]["300"]["outcomes"].get("ok", 0) >= 7)
    assert found["windows"]["300"]["outcomes"] == {"ok": 7}, "what nobody heard is not made up"


async def test_nginx_started_again_is_heard_again(gateway: Gateway, engine: StartEngine) -> None:
    """It has another port then."""
    await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    pid = status["nginx"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await gateway.until(lambda s: s["nginx"]["state"] == "up" and s["nginx"]["pid"] != pid)
    async with aiohttp.ClientSession() as session:

        async def is_heard() -> bool:
            await post(session, gateway)
            await asyncio.sleep(0.1)
            return bool((await signals_of(gateway))["windows"]["300"]["outcomes"].get("ok"))

        async with asyncio.timeout(60):
            while not await is_heard():
                pass


async def test_latencies_are_those_of_tokens(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """0.2 s to the first token and 0.2 s to each further one, over HTTP and over gRPC, each by whoever knows it.

    The first token at nginx is never later than at the client, whose clock begins before; an answer in one piece has
    none, and `share` says so.
    """
    gateway = make_gateway(services=("http", "grpc"))
    await gateway.start()
    await engine(gateway.socket("r1", "http"), EngineKind.VLLM_HTTP, token_interval_s=0.2)
    await engine(gateway.socket("r1", "grpc"), EngineKind.VLLM_GRPC, token_interval_s=0.2)
    for service in ("http", "grpc"):
        await gateway.until_states({"r1": "serving"}, service=service)
        read = 1 if service == "http" else 0
        await until_signals(
            gateway,
            lambda s, read=read: s["sources"]["engines"]["read"] == read and s["in_flight"] is not None,  # type: ignore[misc]
            service=service,
        )

    seen_s = dict.fromkeys(("http", "grpc"), 0.0)
    took_s = dict.fromkeys(("http", "grpc"), 0.0)

    async def chats(service: str) -> None:
        async with aiohttp.ClientSession() as session:
            body = BODY | {"max_tokens": 4}
            for stream in (True, True, True, False):
                began = time.monotonic()
                url = f"{gateway.url(service)}/v1/chat/completions"
                async with session.post(url, json=body | {"stream": stream}) as response:
                    assert response.status == 200
                    await response.content.readany()
                    seen_s[service] += time.monotonic() - began if stream else 0.0
                    await response.read()
                    took_s[service] += time.monotonic() - began

    await asyncio.gather(chats("http"), chats("grpc"))
    for service, itl_by, of_all in (("http", "engines", ("engines_ttft_s", 4)), ("grpc", "router", ("itl_s", 3))):
        # Engines and routers are read every five seconds, on a busy machine between these chats, too.
        found = await until_signals(
            gateway,
            lambda s, of=of_all: (  # type: ignore[misc]
                s["windows"]["300"]["outcomes"] == {"ok": 4}
                and (s["windows"]["300"][of[0]] or {"samples": 0})["samples"] == of[1]
            ),
            service=service,
        )
        window = found["windows"]["300"]
        assert (window["ttft_s"]["source"], window["ttft_s"]["samples"], window["ttft_s"]["share"]) == (
            "nginx",
            3,
            0.75,
        )
        assert window["itl_s"]["source"] == itl_by
        if service == "http":
            assert window["engines_ttft_s"]["source"] == "engines"
        _, text = await page(gateway, "/metrics")
        (sum_s,) = re.findall(rf'gateway_sidecar_time_to_first_token_seconds_sum{{service="{service}"}} (\S+)', text)
        # The engine waits 0.2 s; nginx counts in milliseconds.
        assert 3 * 0.199 <= float(sum_s) <= seen_s[service] + 3 * 0.001
        # SMG counts the tokenizer's tokens, of which a simulated word has two or three.
        # Half of four chats, or of their twelve gaps, take as long as the median or longer, and together no longer than
        # their clients saw. A median is off by a tenth, and an engine's by as much as its buckets are wide.
        assert 0.04 < window["itl_s"]["p50"] < took_s[service] / 6 * 1.5, window
        assert 0.7 < window["e2e_s"]["p50"] < took_s[service] / 2 * 1.1, window


EVENT = b'event: x\ndata: {"choices":[{"delta":{"content":"{{{"}}]}\n\n'
COMMENT = b": still here\n\n"
PIECES = {"event": EVENT, "comment": COMMENT, "done": b"data: [DONE]\n\n"}


class Streams:
    """A router that answers with what the query says, and its client. Each piece is sent 0.05 s after the client has
    had the one before, so that it is known when each has passed nginx. The answer to a client that leaves has no end.
    """

    def __init__(self) -> None:
        self.arrived_at = 0.0
        self.passed: list[tuple[float, float]] = []
        """When each piece was sent, and when the client had it."""
        self._has_it = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.arrived_at = time.monotonic()
        kind = request.query.get("type", "text/event-stream; charset=utf-8")
        answer = web.StreamResponse(headers={"Content-Type": kind})
        await answer.prepare(request)
        for piece in request.query["pieces"].split(","):
            await asyncio.sleep(0.05)
            self._has_it.clear()
            self.passed.append((time.monotonic(), math.inf))
            await answer.write(PIECES[piece])
            await self._has_it.wait()
        if "hangs" in request.query:
            await asyncio.Event().wait()
        return answer

    async def take(self, response: aiohttp.ClientResponse, pieces: Sequence[str]) -> None:
        """Takes these, byte by byte as they were sent."""
        for number, piece in enumerate(pieces):
            assert await response.content.readexactly(len(PIECES[piece])) == PIECES[piece]
            self.passed[number] = (self.passed[number][0], time.monotonic())
            self._has_it.set()


async def test_first_token_is_the_first_event_that_holds_data(tmp_path: Path) -> None:
    """Not what keeps a connection open before it, nor an event about the answer itself; an answer that has none, or
    that its client left before, has no first token. Clients get every byte as it was sent."""
    held, address = placeholder()
    ends: list[RequestEnd] = []
    listener = EventListener(ends.append)
    streams = Streams()
    chat, late, never = "/v1/chat/completions", "comment,event,event,done", "comment,comment"
    with held, closing(listener):
        listener.listen(address)
        async with (
            listening(streams.answer) as router,
            bare_nginx(tmp_path, FrontendPlaces(tmp_path), router, FrontendSettings(), events=address) as url,
            aiohttp.ClientSession() as session,
        ):

            async def ask(target: str, *, stay: bool = True) -> tuple[float, RequestEnd]:
                """When it began, and what nginx says of it."""
                ends.clear()
                streams.passed.clear()
                began = time.monotonic()
                async with session.post(f"{url}{target}") as response:
                    assert response.status == 200
                    await streams.take(response, parse_qs(urlsplit(target).query)["pieces"][0].split(","))
                    if stay:
                        assert await response.read() == b""
                async with asyncio.timeout(60):
                    while not ends:
                        await asyncio.sleep(0.01)
                return began, ends[0]

            for target in (f"{chat}?pieces={late}", f"/v1/completions?x=/v1/responses&pieces={late}"):
                began, end = await ask(target)
                assert end.first_s is not None
                sent_at, had_at = streams.passed[1]
                # nginx counts in milliseconds, from some time between the two ends' beginnings.
                assert sent_at - streams.arrived_at - 0.002 <= end.first_s <= had_at - began + 0.002
                assert end.is_whole
            _, left = await ask(f"{chat}?pieces=event&hangs=1", stay=False)
            assert (left.first_s is not None, left.is_whole) == (True, False)
            for target in (
                f"{chat}?pieces={never}", f"{chat}?pieces=done", f"{chat}?pieces=event,event&type=application/json",
                f"/v1/responses?pieces={late}", f"/v1/interactions?pieces={late}",
            ):  # fmt: skip
                assert (await ask(target))[1].first_s is None, target
            _, left = await ask(f"{chat}?pieces=comment&hangs=1", stay=False)
            assert (left.first_s, left.is_whole) == (None, False)


async def test_a_pair_has_signals_for_each_half(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Three streams are on a prefill and on a decode replica, and three requests in flight."""
    gateway = make_gateway()
    gateway.settings["services"][0]["scaling"] = {
        "metric": "concurrency", "target": 1, "max": 9, "decode": {"target": 3, "min": 2}
    }  # fmt: skip
    await gateway.start()
    await engine(gateway.socket("p1"), role=Role.PREFILL, token_interval_s=0.05)
    await engine(gateway.socket("d1"), role=Role.DECODE, token_interval_s=0.05)
    await gateway.until_states({"p1": "serving", "d1": "serving"})
    streams = [asyncio.create_task(stream_chat(gateway, 4000)) for _ in range(3)]  # For 200 s.
    found = await until_signals(
        gateway, lambda s: s["in_flight"] == 3 and all(r["in_flight"] == 3 for r in s["roles"].values()), within_s=60
    )
    assert set(found["roles"]) == {"prefill", "decode"}
    assert [role["serving"] for role in found["roles"].values()] == [1, 1]
    found = await until_signals(gateway, lambda s: s["scaling"]["roles"]["prefill"]["desired"] >= 2)
    assert found["scaling"]["roles"]["decode"]["desired"] == 2, "its own min"
    assert found["scaling"]["roles"]["decode"]["target"] == 3
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def test_from_zero_on_demand_and_back(make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path) -> None:
    """Nobody serves and a request waits: the hook is told, what it starts serves, and the request is answered.

    When nothing has come for a while, and nothing is in flight, it is none again.
    """
    gateway = make_gateway()
    told = tmp_path / "told"
    gateway.settings["services"][0]["scaling"] = {
        "metric": "concurrency", "target": 4, "min": 0, "down_after_s": 0, "idle_after_s": 5,
        "hook": {"command": ["/bin/sh", "-c", f"cat >> {told}; echo >> {told}"]},
    }  # fmt: skip
    await gateway.start()
    await until_signals(gateway, lambda s: s["scaling"] and s["scaling"]["roles"]["regular"]["desired"] == 0)

    async def has_heard(desired: int) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
                for row in rows:
                    if row["desired"] == desired:
                        return dict(row)
                await asyncio.sleep(0.05)

    async with aiohttp.ClientSession() as session:
        waiting = asyncio.create_task(post(session, gateway))
        notice = await has_heard(1)
        assert notice["reason"] == "1 request waits and no replica serves"
        assert notice["service"] == "chat"
        await engine(gateway.socket("r1"))
        assert await waiting == 200
    status = await gateway.until(lambda s: service_of(s)["scaling"]["roles"]["regular"]["current"] == 1)
    assert service_of(status)["scaling"]["roles"]["regular"]["desired"] == 1
    code, out, _ = await gateway.cli("status")
    assert code == 0
    assert "  scaling: regular 1 (there: 1): " in out
    _, text = await page(gateway, "/metrics")
    assert 'gateway_sidecar_desired_replicas{role="regular",service="chat"} 1.0' in text
    found = await until_signals(gateway, lambda s: s["scaling"]["roles"]["regular"]["desired"] == 0, within_s=75)
    assert found["scaling"]["roles"]["regular"]["reason"].startswith("no request for ")


@pytest.mark.timeout(600)  # The shortest window is one of 30 s: it fills and empties once, slowly on a busy machine.
async def test_a_step_with_noise_and_back_to_zero(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """Real requests through the daemon: 8 a second where 2 are for each replica are 4. Then nothing, and down to none
    without a step up. What a hook is told is what an autoscaler would have done.

    How noise is borne on the way up is tested in fake time: a busy machine sends less than 8 a second for a while.
    """
    gateway = make_gateway()
    told = tmp_path / "told"
    gateway.settings["services"][0]["scaling"] = {
        "metric": "rps", "target": 2, "min": 0, "max": 9, "window_s": 30, "down_after_s": 5, "idle_after_s": 5,
        "hook": {"command": ["/bin/sh", "-c", f"cat >> {told}; echo >> {told}"]},
    }  # fmt: skip
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    sent: list[asyncio.Task[int]] = []

    async def eight_a_second(session: aiohttp.ClientSession) -> None:
        began, chance = time.monotonic(), random.Random(7)
        for number in itertools.count(1):
            sent.append(asyncio.create_task(post(session, gateway)))
            # Each comes up to half a pause early or late: over a window the rate is the same.
            due = began + (number + chance.uniform(-0.5, 0.5)) / 8
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def desired() -> list[int]:
        return [json.loads(line)["desired"] for line in told.read_text().splitlines()] if told.exists() else []

    async with aiohttp.ClientSession() as session:
        load = asyncio.create_task(eight_a_second(session))
        await until_signals(
            gateway,
            lambda s: (
                s["scaling"]["roles"]["regular"]["desired"] == 4
                and s["windows"]["30"]["covered_s"] >= 30
                and s["windows"]["30"]["requests_per_s"] == pytest.approx(8, rel=0.05)
            ),
            within_s=300,
        )
        async with asyncio.timeout(60):
            while 4 not in desired():
                await asyncio.sleep(0.05)
        load.cancel()
        assert set(await asyncio.gather(*sent)) == {200}
    # Until now a busy machine may have sent less for a while, and then more.
    async with asyncio.timeout(60):
        while (await signals_of(gateway))["scaling"]["roles"]["regular"]["desired"] != desired()[-1]:
            await asyncio.sleep(0.05)
    up = len(desired()) - 1
    await until_signals(gateway, lambda s: s["scaling"]["roles"]["regular"]["desired"] == 0, within_s=120)
    async with asyncio.timeout(60):
        while desired()[-1] != 0:
            await asyncio.sleep(0.05)
    way = desired()[up:]
    assert way == sorted(set(way), reverse=True), way


async def test_a_hook_that_fails_is_shown_and_holds_nobody_up(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """In status, in the log and in a metric; requests are answered meanwhile."""
    gateway = make_gateway()
    gateway.settings["services"][0]["scaling"] = {
        "metric": "rps", "target": 1, "hook": {"command": ["/bin/sh", "-c", "echo out of GPUs >&2; exit 7"]}
    }  # fmt: skip
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    status = await gateway.until(
        lambda s: (service_of(s)["scaling"] or {}).get("hook_problem") is not None, within_s=60
    )
    assert "ended with 7: out of GPUs" in service_of(status)["scaling"]["hook_problem"]
    assert gateway.events("scaling.hook_failed")
    async with aiohttp.ClientSession() as session:
        assert await post(session, gateway) == 200
    _, text = await page(gateway, "/metrics")
    assert 'gateway_sidecar_scaling_hook_runs_total{outcome="failed",service="chat"}' in text


async def test_a_reload_changes_the_policy(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Without touching anything else; and takes it away."""
    gateway = make_gateway()
    service = gateway.settings["services"][0]
    service["scaling"] = {"metric": "rps", "target": 1, "min": 3}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_signals(gateway, lambda s: s["scaling"] and s["scaling"]["roles"]["regular"]["desired"] == 3)
    service["scaling"] = {"metric": "rps", "target": 1, "min": 5}
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    await until_signals(gateway, lambda s: s["scaling"] and s["scaling"]["roles"]["regular"]["desired"] == 5)
    del service["scaling"]
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    await until_signals(gateway, lambda s: s["scaling"] is None)
    assert "gateway_sidecar_desired_replicas{" not in (await page(gateway, "/metrics"))[1]
    assert gateway.events("config.reloaded")[-1]["changes"] == ["chat: scaling"]


async def test_metrics_of_what_is_behind_sockets(gateway: Gateway, engine: StartEngine) -> None:
    """Each replica's and each router's, by one listener; what has none says so, and what lies is bounded."""
    await engine(gateway.socket("r 1"), EngineKind.VLLM_HTTP)
    await engine(gateway.socket("g1"), EngineKind.VLLM_GRPC)
    odd = await engine(gateway.socket("o1"), EngineKind.OPENAI_HTTP)
    await gateway.until_states({"r 1": "serving", "g1": "serving", "o1": "serving"})
    await stream_chat(gateway, 3)
    status, text = await page(gateway, "/replicas/chat/r%201/metrics")
    assert status == 200
    assert "vllm:time_to_first_token_seconds_bucket{" in text
    status, text = await page(gateway, "/routers/chat/metrics")
    assert (status, "smg_router_requests_total" in text) == (200, True)
    status, text = await page(gateway, "/replicas/chat/g1/metrics")
    assert (status, text) == (404, "a vllm engine that speaks gRPC has no metrics page on its socket\n")
    status, text = await page(gateway, "/replicas/chat/o1/metrics")
    assert (status, text) == (404, "the engine has no /metrics; it may have to be started with metrics on\n")
    for path, words in (
        ("/replicas/chat/nobody/metrics", "service 'chat' has no replica 'nobody'\n"),
        ("/replicas/nobody/r1/metrics", "no service 'nobody'\n"),
        ("/routers/nobody/metrics", "no service 'nobody'\n"),
    ):
        assert await page(gateway, path) == (404, words)
    odd.behave(lie=Lie.HUGE)
    status, text = await page(gateway, "/replicas/chat/o1/metrics")
    assert (status, text) == (502, "/metrics: answer too large\n")
    odd.behave(lie=None, hang=True)
    status, text = await page(gateway, "/replicas/chat/o1/metrics")
    assert (status, text) == (502, "no answer to /metrics within 8 s\n")


async def test_an_engine_that_has_no_metrics_is_no_target(gateway: Gateway, engine: StartEngine) -> None:
    """Once it has said so: a target that can never be up is an alarm that nobody heeds."""
    await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP)
    await engine(gateway.socket("o1"), EngineKind.OPENAI_HTTP)
    await gateway.until_states({"r1": "serving", "o1": "serving"})

    async def targets() -> set[str]:
        _, text = await page(gateway, "/sd")
        return {group["labels"].get("replica", "-") for group in json.loads(text)}

    assert await targets() == {"-", "r1", "o1"}
    assert [(await page(gateway, f"/replicas/chat/{it}/metrics"))[0] for it in ("r1", "o1")] == [200, 404]
    assert await targets() == {"-", "r1"}


async def test_a_real_prometheus_finds_and_reads_them(
    gateway: Gateway, engine: StartEngine, prometheus: Callable[[dict[str, Any]], Any]
) -> None:
    """By HTTP service discovery: every target up, each replica's series with its labels; one that goes, goes."""
    await engine(gateway.socket("r1"), EngineKind.VLLM_HTTP)
    leaving = await engine(gateway.socket("r2"), EngineKind.SGLANG_HTTP)
    await engine(gateway.socket("g1"), EngineKind.SGLANG_GRPC)
    await gateway.until_states({"r1": "serving", "r2": "serving", "g1": "serving"})
    here = f"127.0.0.1:{gateway.metrics_port}"
    shipped = Path("gateway_sidecar/share/prometheus/prometheus.yaml").read_text()
    config = yaml.safe_load(shipped.replace("127.0.0.1:9464", here))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    for job in config["scrape_configs"]:
        for discovery in job.get("http_sd_configs", []):
            discovery["refresh_interval"] = "1s"
    del config["rule_files"]
    server = await prometheus(config)
    # A busy machine's first answers may take longer than a scrape may.
    up = await server.until(
        'up{job="gateway-sidecar-behind"}', lambda rows: [row["value"][1] for row in rows] == ["1"] * 3
    )
    assert sorted(row["metric"]["instance"] for row in up) == ["chat/r1", "chat/r2", "chat/router"]
    (row,) = await server.until(
        "vllm:time_to_first_token_seconds_count", lambda rows: [r["metric"]["replica"] for r in rows] == ["r1"]
    )
    wanted = {"service": "chat", "replica": "r1", "worker_type": "regular", "runtime_type": "vllm", "model": "tiny"}
    assert wanted.items() <= row["metric"].items()
    await server.until('smg_worker_pool_size{service="chat"}', lambda rows: len(rows) > 0)
    await server.until("gateway_sidecar_router_up", lambda rows: len(rows) == 1)
    await asyncio.gather(*(stream_chat(gateway, 3) for _ in range(6)))
    shown = json.loads(Path("gateway_sidecar/share/grafana/gateway-sidecar.json").read_text())["panels"]
    (by_replica,) = (panel["targets"][0]["expr"] for panel in shown if panel["title"] == "Requests on each replica")
    rows = await server.until(by_replica.replace("$instance", ".*").replace("$service", ".*"), lambda rows: len(rows))
    assert {row["metric"]["gateway"] for row in rows} == {here}
    assert {row["metric"]["replica"] for row in rows} <= {"r1", "r2", "g1"}
    await server.until(
        "gateway_sidecar_request_duration_seconds_count", lambda rows: [row["value"][1] for row in rows] == ["6"]
    )
    await leaving.stop()
    await server.until('up{job="gateway-sidecar-behind"}', lambda rows: len(rows) == 2)
