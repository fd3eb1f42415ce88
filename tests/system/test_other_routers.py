"""The running daemon with vllm-router and sglang-router: the same service as with SMG, as far as these can."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest

from examples.simulated import EngineKind, Role
from tests.other_routers import KINDS, router_of
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of
from tests.system.test_access_log import StartRecorder, post, recorder, until_lines  # noqa: F401 - a fixture
from tests.system.test_tracing import SENT

PAIRING = {"vllm-router": {"models": "many"}, "sglang-router": {"mode": "prefill_decode"}}
FAMILY = {"vllm-router": EngineKind.VLLM_HTTP, "sglang-router": EngineKind.SGLANG_HTTP}

MakeService = Callable[..., Awaitable[Gateway]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(make_gateway: MakeGateway) -> MakeService:
    """Starts a daemon whose one service has a router of this kind."""

    async def start(kind: str, hold: dict[str, Any] | None = None, **router: Any) -> Gateway:
        gateway = make_gateway()
        gateway.settings["services"][0] |= {
            "router": router_of(kind, **router), "hold": hold or {"timeout_s": 600}, "drain": {"settle_s": 0}
        }  # fmt: skip
        await gateway.start()
        return gateway

    return start


@asynccontextmanager
async def asked_meanwhile(gateway: Gateway, *, clients: int = 4) -> AsyncIterator[list[int]]:
    """Clients that ask on and on, streamed and not. Raises at the end if one request failed."""
    answered = [0]

    async def one(number: int) -> None:
        while True:
            await (stream_chat(gateway, 5) if number % 2 else ask(gateway, "tiny", stream=False))
            answered[0] += 1

    asking = [asyncio.create_task(one(number)) for number in range(clients)]
    try:
        yield answered
    finally:
        failed = [task.exception() for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert failed == []


async def until_more(answered: list[int], more: int = 20) -> None:
    """Until that many further requests were answered."""
    wanted = answered[0] + more
    async with asyncio.timeout(60):
        while answered[0] < wanted:
            await asyncio.sleep(0.01)


async def test_it_serves_and_clients_cannot_control_it(serve: MakeService, engine: StartEngine, kind: str) -> None:
    """Both replicas answer, streamed and not; the model is listed; what controls the router is for nobody outside."""
    gateway = await serve(kind, policy="round_robin")
    here, there = [await engine(gateway.socket(name), FAMILY[kind]) for name in ("r1", "r2")]
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert (service_of(status)["router"]["type"], service_of(status)["router"]["state"]) == (kind, "up")
    for stream in (True, False) * 3:
        assert await ask(gateway, "tiny", stream=stream)
    assert here.ledger.requests
    assert there.ledger.requests
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{gateway.url()}/v1/models") as answer:
            assert [it["id"] for it in (await answer.json(content_type=None))["data"]] == ["tiny"]
        for method, path in (
            ("GET", "/workers"),
            ("POST", "/workers"),
            ("DELETE", "/workers/x"),
            ("GET", "/get_loads"),
        ):
            async with client.request(method, gateway.url() + path, json={}) as answer:
                assert answer.status == 404, path
    code, out, err = await gateway.cli("check")
    assert code == 0, out + err
    assert f"{kind} " in out
    assert "which takes its arguments" in out


async def test_no_request_fails_while_replicas_die_and_drain_and_its_router_is_replaced(
    serve: MakeService, engine: StartEngine, kind: str
) -> None:
    """An engine that ends gracefully after a drain, a router of other settings, and one by hand."""
    gateway = await serve(kind, policy="round_robin")
    for name in ("r1", "r2", "r3"):
        await engine(gateway.socket(name), FAMILY[kind])
    status = await gateway.until_states(dict.fromkeys(("r1", "r2", "r3"), "serving"))
    pid = service_of(status)["router"]["pid"]
    async with asked_meanwhile(gateway) as answered:
        await until_more(answered)
        code, out, err = await gateway.cli("drain", "chat", "r1")
        assert code == 0, out + err
        await until_more(answered)
        gateway.settings["services"][0]["router"]["policy"] = "random"
        gateway.configure()
        assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: router\n")
        status = await gateway.until(lambda s: service_of(s)["router"]["pid"] not in (None, pid))
        await until_more(answered)
    assert states_of(status)["r2"] == "serving"


async def test_a_killed_replica_costs_only_what_it_was_answering(
    serve: MakeService, engine: StartEngine, kind: str
) -> None:
    """What comes while the router does not know yet is answered by the others."""
    gateway = await serve(kind, policy="round_robin")
    engines = [await engine(gateway.socket(name), FAMILY[kind]) for name in ("r1", "r2", "r3")]
    await gateway.until_states(dict.fromkeys(("r1", "r2", "r3"), "serving"))
    await engines[0].stop(grace_s=0)
    for _ in range(12):
        assert await ask(gateway, "tiny", stream=False)
    await gateway.until(lambda s: states_of(s).get("r1") != "serving")


async def test_a_killed_router_and_a_killed_daemon_are_taken_up(
    serve: MakeService, engine: StartEngine, kind: str
) -> None:
    """The next request after a router's SIGKILL waits and is answered; the next daemon adopts the router."""
    gateway = await serve(kind)
    await engine(gateway.socket("r1"), FAMILY[kind])
    status = await gateway.until_states({"r1": "serving"})
    pid = service_of(status)["router"]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert await ask(gateway, "tiny", stream=False)
    status = await gateway.until(lambda s: service_of(s)["router"]["pid"] not in (None, pid))
    pid = service_of(status)["router"]["pid"]
    await gateway.until_states({"r1": "serving"})
    await gateway.until_written(1)
    await gateway.kill()
    assert await ask(gateway, "tiny", stream=True), "the router needs no daemon"
    await gateway.start()
    status = await gateway.until_states({"r1": "serving"})
    assert service_of(status)["router"]["pid"] == pid
    assert gateway.events("router.adopted")
    assert not gateway.events("worker.operation_failed")
    assert await ask(gateway, "tiny", stream=True)


async def test_a_request_waits_for_the_first_replica_after_the_last_has_gone(
    serve: MakeService, engine: StartEngine, kind: str
) -> None:
    """To zero and back."""
    gateway = await serve(kind, {"asleep_s": 600})
    first = await engine(gateway.socket("r1"), FAMILY[kind])
    await gateway.until_states({"r1": "serving"})
    assert await ask(gateway, "tiny", stream=False)
    await first.stop()
    gateway.socket("r1").unlink(missing_ok=True)
    await gateway.until(lambda s: "serving" not in states_of(s).values())
    waiting = asyncio.create_task(ask(gateway, "tiny", stream=True))
    await gateway.until(lambda s: service_of(s)["waiting"] == 1)
    await engine(gateway.socket("r2"), FAMILY[kind])
    assert await waiting


async def test_prefill_and_decode_answer_together(serve: MakeService, engine: StartEngine, kind: str) -> None:
    """Half a pair is told, and a whole one answers through both bridges."""
    gateway = await serve(kind, {"asleep_s": 0}, **PAIRING[kind])
    prefill = await engine(gateway.socket("p1"), FAMILY[kind], role=Role.PREFILL, dev_mode=True)
    status = await gateway.until(lambda s: bool(service_of(s)["unanswered"]))
    assert service_of(status)["unanswered"] == {"tiny": "1 prefill worker and no decode worker"}
    decode = await engine(gateway.socket("d1"), FAMILY[kind], role=Role.DECODE, dev_mode=True)
    await gateway.until(lambda s: not service_of(s)["unanswered"] and service_of(s)["missing"] is None)
    for stream in (True, False):
        assert await ask(gateway, "tiny", stream=stream)
    assert len(prefill.ledger.requests) == len(decode.ledger.requests) == 2


async def test_what_it_cannot_serve_is_told_with_the_cure(serve: MakeService, engine: StartEngine, kind: str) -> None:
    """gRPC, a role and another model; each replica says it in `status`, and the others serve on."""
    gateway = await serve(kind)
    await engine(gateway.socket("r1"), FAMILY[kind])
    await gateway.until_states({"r1": "serving"})
    await engine(gateway.socket("grpc"), EngineKind.SGLANG_GRPC)
    await engine(gateway.socket("half"), FAMILY[kind], role=Role.DECODE, dev_mode=True)
    await engine(gateway.socket("other"), FAMILY[kind], model="other")
    for replica, words in (("grpc", "over HTTP"), ("half", "takes decode workers"), ("other", "knows no models")):
        status = await gateway.until(partial(_is_told, replica, words))
        assert replica_of(status, replica)["state"] == "registering"
    for _ in range(4):
        assert await ask(gateway, "tiny", stream=False)


def _is_told(replica: str, words: str, status: dict[str, Any]) -> bool:
    rows = service_of(status)["replicas"]
    return any(words in str(row["reason"]) for row in rows if row["id"] == replica)


async def test_the_access_log_names_the_replica_and_the_request(
    serve: MakeService, engine: StartEngine, kind: str
) -> None:
    """These routers do not say which worker answered. Its bridge does, and no client hears of it."""
    gateway = await serve(kind, policy="round_robin")
    gateway.settings["services"][0]["frontend"] = {"access_log": "all"}
    gateway.configure()
    code, _, error = await gateway.cli("reload")
    assert code == 0, error
    for name in ("r1", "r2"):
        await engine(gateway.socket(name), FAMILY[kind])
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    for number in range(8):
        assert (await post(gateway, **{"X-Request-Id": f"mine-{number}"}))[:2] == (200, f"mine-{number}")
    lines = await until_lines(gateway, 8)
    assert {line["replica"] for line in lines} == {"r1", "r2"}
    assert {(line["status"], line["model"]) for line in lines} == {(200, "tiny")}


async def test_an_engine_is_told_the_name_and_the_trace_of_a_request(
    serve: MakeService,
    recorder: StartRecorder,  # noqa: F811
    kind: str,
) -> None:
    """As with SMG: both pass the router as they came."""
    gateway = await serve(kind)
    engine = await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, **SENT, **{"X-Request-Id": "mine"}))[:2] == (200, "mine")
    assert {name: engine.seen[0].get(name) for name in (*SENT, "x-request-id")} == {**SENT, "x-request-id": "mine"}
