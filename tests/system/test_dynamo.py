"""The running daemon with Dynamo's frontend as its router (`make dynamo`)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from examples.simulated import EngineKind, Role
from gateway_sidecar.routers.dynamo.inside import frontend
from tests.dynamo import PYTHON, Mocker, needs_dynamo, write_model
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of, service_of, states_of, until_gone
from tests.system.test_access_log import StartRecorder, post, recorder, until_lines  # noqa: F401 - a fixture
from tests.system.test_lost_models import ask as ask_for
from tests.system.test_lost_models import lost
from tests.system.test_shared_address import chat as asks_for
from tests.system.test_tracing import SENT

pytestmark = [needs_dynamo, pytest.mark.timeout(180)]
_FIRST_TOKENS = "dynamo_frontend_time_to_first_token_seconds_count"


def with_dynamo(gateway: Gateway, **router: Any) -> Gateway:
    """The same with Dynamo's frontend as the router of its first service."""
    gateway.settings["services"][0]["router"] = {"type": "dynamo", "command": PYTHON, **router}
    gateway.configure()
    return gateway


def shims_of(gateway: Gateway) -> set[int]:
    """The processes that make this gateway's engines Dynamo workers."""
    return set(_shims(f"{gateway.directory}/"))


def _shims(below: str) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
            if any(word.endswith("routers/dynamo/inside/shim.py") for word in words) and any(
                below in it for it in words
            ):
                yield int(entry.name)


async def test_plain_engines_are_served_through_shims_that_end_with_them(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """Both ways of an answer; each engine has a shim; a frontend or a daemon that is killed ends none. A frontend that
    is replaced loses no request.
    """
    gateway = with_dynamo(make_gateway())
    code, out, err = await gateway.cli("check")
    assert (code, "chat: router: ai-dynamo 1.6.1" in out) == (0, True), out + err
    await gateway.start()
    here = await engine(gateway.socket("r1"))
    there = await engine(gateway.socket("r2"))
    before = service_of(await gateway.until_states({"r1": "serving", "r2": "serving"}))["router"]
    # What is cut off when an entry is deleted is asked once more; it happens to one request of some thousands.
    assert "http_503 non_idempotent" in (gateway.directory / "run" / "nginx" / "nginx.conf").read_text()
    shims = shims_of(gateway)
    assert len(shims) == 2
    for stream in (True, True, False, False):
        assert await ask(gateway, "tiny", stream=stream)
    assert (len(here.ledger.requests), len(there.ledger.requests)) == (2, 2)
    async with aiohttp.ClientSession() as client, client.get(f"{gateway.url()}/health") as answer:
        assert answer.status == 404, "it has the workers' addresses"

    await gateway.kill()
    await gateway.start()
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert service_of(await gateway.status())["router"]["pid"] == before["pid"]

    os.kill(before["pid"], signal.SIGKILL)
    assert await ask(gateway, "tiny", stream=False), "it waits for the next frontend"
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert shims_of(gateway) == shims

    asking = asyncio.create_task(ask_on(gateway))
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking

    await there.stop()
    gateway.socket("r2").unlink(missing_ok=True)
    await gateway.until_states({"r1": "serving"})
    async with asyncio.timeout(60):
        while len(shims_of(gateway)) > 1:
            await asyncio.sleep(0.05)
    assert await ask(gateway, "tiny", stream=False)
    [last] = shims_of(gateway)
    assert (await gateway.cli("stop", "--all"))[0] == 0
    await until_gone(last)


async def ask_on(gateway: Gateway) -> None:
    """Asks again and again; raises if one request fails."""
    while True:
        assert await ask(gateway, "tiny", stream=True)


@pytest_asyncio.fixture
async def mocker(tmp_path: Path) -> AsyncIterator[Callable[[Path], Awaitable[Mocker]]]:
    """Starts mock workers of Dynamo's."""
    started: list[Mocker] = []
    write_model(tmp_path / "model")

    async def start(socket: Path) -> Mocker:
        started.append(Mocker(socket, tmp_path / "model"))
        await started[-1].start()
        return started[-1]

    yield start
    for one in started:
        await one.stop()


async def test_dynamo_workers_are_routed_by_their_caches_and_an_answer_outlives_its_worker(
    make_gateway: MakeGateway, engine: StartEngine, mocker: Callable[[Path], Awaitable[Mocker]]
) -> None:
    """Their entries lead to bridges, stay fresh while no daemon runs, and go with them. A worker that is killed in the
    middle of an answer is followed by another one, and no token is missing.
    """
    gateway = with_dynamo(make_gateway(), policy="kv")
    await engine(gateway.socket("plain"), model="plain")
    await gateway.start()
    workers = {name: await mocker(gateway.socket(name)) for name in ("r1", "r2")}
    status = await gateway.until_states({"plain": "serving", "r1": "serving", "r2": "serving"})
    assert await ask(gateway, "plain", stream=True), "a plain engine beside them, which has no part in that"
    row, url = replica_of(status, "r1"), service_of(status)["router"]["url"]
    assert (row["runtime_type"], row["connection_mode"], row["model"]) == ("dynamo", "tcp", "tiny")
    prompt = "the same beginning " * 20
    assert (await chat(gateway, prompt, tokens=2))["cached"] == 0
    async with asyncio.timeout(60):  # The worker tells its router what it has cached after it has answered.
        while not await counted(url, "dynamo_component_router_kv_selected_cached_prefix_tokens_total"):
            again = await chat(gateway, prompt, tokens=2)
    assert again["cached"] > 0

    await gateway.kill()
    answered = await counted(url, _FIRST_TOKENS)
    long = [asyncio.create_task(chat(gateway, f"{n} is another text", tokens=900)) for n in range(4)]
    async with asyncio.timeout(60):
        while await counted(url, _FIRST_TOKENS) < answered + 4:
            await asyncio.sleep(0.02)
    workers["r1"].kill()
    assert [it["tokens"] for it in await asyncio.gather(*long)] == [900] * 4
    assert "recreating stream" in (gateway.directory / "state" / "log" / "router-chat.log").read_text()
    await gateway.start()
    await gateway.until(lambda seen: states_of(seen)["r1"] != "serving" and states_of(seen)["r2"] == "serving")
    assert (await chat(gateway, "one more", tokens=3))["tokens"] == 3


async def chat(gateway: Gateway, text: str, *, tokens: int) -> dict[str, int]:
    """One streamed chat of so many tokens; how many came, and how many of the prompt's were in a cache."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    came = 0
    usage: dict[str, Any] = {}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])
                came += sum(bool(choice["delta"].get("content")) for choice in piece["choices"])
                usage = piece.get("usage") or usage
    return {
        "tokens": usage["completion_tokens"],
        "came": came,
        "cached": usage["prompt_tokens_details"]["cached_tokens"],
    }


async def counted(router: str, name: str) -> float:
    """What a router has counted of the model `tiny`."""
    async with aiohttp.ClientSession() as client, client.get(f"{router}/metrics") as answer:
        page = await answer.text()
    return sum(map(float, re.findall(rf'^{name}{{[^}}]*model="tiny"[^}}]*}} (\S+)', page, re.MULTILINE)))


async def test_a_drain_waits_for_answers_and_what_cannot_be_served_is_said(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A plain engine's answers are counted at its bridge; an engine over gRPC, or a part of a pair, is told why not."""
    gateway = with_dynamo(make_gateway(), migration_limit=0)
    await gateway.start()
    await engine(gateway.socket("r1"), token_interval_s=0.02)
    await engine(gateway.socket("grpc"), kind=EngineKind.VLLM_GRPC)
    await engine(gateway.socket("half"), kind=EngineKind.SGLANG_HTTP, role=Role.PREFILL)
    await gateway.until_state("r1", "serving")
    status = await gateway.until(
        lambda seen: (
            "speaks no engine's gRPC" in (replica_of(seen, "grpc")["reason"] or "")
            and "must be a Dynamo worker itself" in (replica_of(seen, "half")["reason"] or "")
        )
    )
    assert states_of(status)["grpc"] == "registering"
    started = asyncio.Event()
    answer = asyncio.create_task(stream_chat(gateway, 60, started))
    await started.wait()
    drain = asyncio.create_task(gateway.cli("drain", "chat", "r1"))
    assert (await answer).split()[-1] == "59"
    assert (await drain)[0] == 0


async def test_requests_wait_for_a_model_that_has_lost_its_last_replica(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """As with SMG: other models are answered, and a model that was never there does not wait."""
    gateway = with_dynamo(make_gateway())
    gateway.settings["services"][0]["hold"] = {"asleep_s": 120}
    await gateway.start()
    await engine(gateway.socket("r1"), model="tiny")
    large = await engine(gateway.socket("r2"), model="large")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    await large.stop()
    await gateway.until(lambda seen: lost(seen) == {"large"})
    waiting = asyncio.create_task(ask_for(gateway, "chat", asks_for("large")))
    await gateway.until(lambda seen: service_of(seen)["waiting"] == 1)
    assert (await ask_for(gateway, "chat", asks_for("tiny")))[0] == 200
    assert (await ask_for(gateway, "chat", asks_for("none")))[0] == 404
    again = await engine(gateway.socket("r3"), model="large")
    assert (await waiting)[0] == 200
    assert again.ledger.received == 1
    assert lost(await gateway.status()) == set()


@pytest.mark.parametrize(
    ("router", "cure"),
    [
        ({"args": ["--no-such-option"]}, "router.args: "),
        ({"command": sys.executable}, "has no ai-dynamo"),
        ({"command": "/nowhere/python"}, "is not an executable file"),
    ],
)
async def test_check_says_what_is_wrong_with_it(make_gateway: MakeGateway, router: dict[str, Any], cure: str) -> None:
    """In one line, with the cure, before anything is started."""
    code, out, _ = await with_dynamo(make_gateway(), **router).cli("check")
    assert code != 0
    [line] = [line for line in out.splitlines() if cure in line]
    assert "chat" in line


async def test_a_frontend_leaves_no_file_behind(tmp_path: Path) -> None:
    """Dynamo writes down how SGLang is to log, which none of ours runs, in a new temporary file at each start."""
    looks = await asyncio.create_subprocess_exec(
        *(PYTHON, frontend.__file__, frontend.CHECK, "0"),
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert (await looks.communicate())[0].strip() == b"1.6.1"
    assert looks.returncode == 0
    assert list(tmp_path.iterdir()) == []


async def test_an_engine_is_told_the_name_and_the_trace_of_a_request(
    make_gateway: MakeGateway,
    recorder: StartRecorder,  # noqa: F811
) -> None:
    """Its shim says them, as they went with the request through Dynamo. By its name the access log finds the replica,
    since Dynamo says nothing of the engine.
    """
    gateway = with_dynamo(make_gateway())
    gateway.settings["services"][0]["frontend"] = {"access_log": "all"}
    await gateway.start()
    engine = await recorder(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert (await post(gateway, **SENT, **{"X-Request-Id": "mine"}))[:2] == (200, "mine")
    (seen,) = engine.seen
    assert seen["x-request-id"] == "mine"
    assert seen["traceparent"].split("-")[1] == SENT["traceparent"].split("-")[1]
    (line,) = await until_lines(gateway, 1)
    assert (line["id"], line["replica"], line["model"], line["status"]) == ("mine", "r1", "tiny", 200)
