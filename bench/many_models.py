"""Figures: what it costs to have the models of several services at one address.

One gateway with two services, without routers, a tiny nginx that answers `{}` behind each, and a shared address with
1,000 models. A request to the shared address, against the same one to the service's own address (floor); both in one
nginx with one worker process.

added latency    One request at a time over one kept connection to each, in turns; a chat of 300 bytes, one of
                 1 MB in messages of 1,000 characters, and one of 1 MB that is an image in base64. Per round the p50
                 of all requests; ours - floor is the median of the rounds' differences.
CPU per request  Of nginx's worker, while wrk asks with 32 kept connections for a second; a chat of 300 bytes as it
                 came, and one whose model is called otherwise at its service.
models           Memory of nginx's worker with 1,000 models beside that with two, and how long a reload for them takes
                 that the daemon is asked for.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import processes
from bench.bridge_cost import upstream
from bench.place import BASE, scratch_directory
from bench.report import Row, Scale, median, percentile
from bench.wire import Connection
from tests.system.gateway import Gateway

NAME = "many-models"
_MODELS = 1_000
_ADDED_P50_S, _ADDED_LARGE_S, _ADDED_CPU_US = 0.000_015, 0.001_5, 5.0
_PATH = "/v1/chat/completions"
_REQUESTS, _LARGE_REQUESTS = 200, 20
_CONNECTIONS = 32
_ROUND_S = 1
_COUNTS = re.compile(r"(\d+) requests in")


def _chat(model: str, content: list[str]) -> bytes:
    messages = [{"role": "user", "content": text} for text in content]
    return json.dumps({"messages": messages, "max_tokens": 8, "stream": False, "model": model}).encode()


_SMALL = ["x" * 200]
_MESSAGES = ["hello world, " * 77] * 1000
_IMAGE = ["data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 42_000]


def _models(count: int) -> dict[str, object]:
    others = {f"org{number}/model-{number}-instruct": "code" for number in range(count - 2)}
    return {"tiny": "chat", "gpt-4o": {"service": "chat", "model": "tiny"}, **others}


@asynccontextmanager
async def _gateway(directory: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(services=("chat", "code"), base=BASE, log={"format": "json", "level": "info"})
    gateway.ports["api"] = gateway.ports["chat"] + 8
    for service in gateway.settings["services"]:
        service["router"] = {"type": "none"}
    listen = f"127.0.0.1:{gateway.ports['api']}"
    gateway.settings["addresses"] = [{"name": "api", "listen": listen, "models": _models(2)}]
    try:
        await gateway.start()
        async with (
            upstream(directory / "chat", gateway.socket("r1", "chat")),
            upstream(directory / "code", gateway.socket("r1", "code")),
        ):
            for service in ("chat", "code"):
                await gateway.until_states({"r1": "serving"}, service=service)
            yield gateway
    finally:
        await gateway.close()


async def _worker(gateway: Gateway) -> int:
    """The newest process that serves."""
    return max(processes.children(int((await gateway.status())["nginx"]["pid"])))


async def _p50_s(connection: Connection, body: bytes, requests: int) -> float:
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        answer = await connection.ask("POST", _PATH, body)
        times.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")
    return percentile(times, 50)


async def _latency(gateway: Gateway, case: str, content: list[str], rounds: int, requests: int, bar_s: float) -> Row:
    body = _chat("tiny", content)
    floors: list[float] = []
    ours: list[float] = []
    async with (
        Connection("127.0.0.1", gateway.ports["chat"]) as own,
        Connection("127.0.0.1", gateway.ports["api"]) as shared,
    ):
        for number in range(rounds):
            sides = [(floors, own), (ours, shared)]
            for found, connection in sides if number % 2 else reversed(sides):
                found.append(await _p50_s(connection, body, requests))
    added = median([our - floor for our, floor in zip(ours, floors, strict=True)])
    numbers = {"floor_us": [round(it * 1e6, 1) for it in floors], "ours_us": [round(it * 1e6, 1) for it in ours]}
    return Row(NAME, f"added latency p50, {case}", f"< {bar_s * 1e6:.0f} us", _us(median(floors)), _us(median(ours)),
               f"+{added * 1e6:.0f} us", added < bar_s, numbers)  # fmt: skip


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


async def _cpu_us(port: int, worker: int, script: Path) -> float:
    before = processes.cpu_s(worker)
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{_ROUND_S}s", "-s", str(script), f"http://127.0.0.1:{port}{_PATH}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    found = _COUNTS.search(output.decode())
    if found is None or b"Non-2xx" in output or b"Socket errors" in output:
        raise RuntimeError(f"wrk: {output.decode()}")
    return (processes.cpu_s(worker) - before) / int(found[1]) * 1e6


async def _cpu(gateway: Gateway, directory: Path, case: str, model: str, rounds: int, bar_us: float | None) -> Row:
    script, own = directory / "ask.lua", directory / "own.lua"
    for path, name in ((script, model), (own, "tiny")):
        body = _chat(name, _SMALL).decode()
        path.write_text(
            f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = [[{body}]]\n"
        )
    worker = await _worker(gateway)
    floors: list[float] = []
    ours: list[float] = []
    for number in range(rounds):
        sides = [(floors, "chat", own), (ours, "api", script)]
        for found, service, asks in sides if number % 2 else reversed(sides):
            found.append(await _cpu_us(gateway.ports[service], worker, asks))
    added = median([our - floor for our, floor in zip(ours, floors, strict=True)])
    numbers = {"floor_us": [round(it, 2) for it in floors], "ours_us": [round(it, 2) for it in ours]}
    bar = "-" if bar_us is None else f"< {bar_us:.0f} us"
    return Row(NAME, f"added CPU of nginx, {case}", bar, f"{median(floors):.1f} us", f"{median(ours):.1f} us",
               f"{added:+.1f} us", bar_us is None or added < bar_us, numbers)  # fmt: skip


async def _thousand(gateway: Gateway) -> Row:
    """Tells nginx of all models, and what that takes."""
    few = processes.rss_mb(await _worker(gateway))
    gateway.settings["addresses"][0]["models"] = _models(_MODELS)
    gateway.configure()
    began = time.perf_counter()
    async with gateway.session.post("http://daemon/v1/reload") as answer:
        if answer.status != 200:
            raise RuntimeError(await answer.text())
    took_s = time.perf_counter() - began
    many = processes.rss_mb(await _worker(gateway))
    numbers = {"mb": [few, many], "s": took_s}
    return Row(NAME, f"{_MODELS:,} models (floor: 2): memory, reload", "-", f"{few:.1f} MB",
               f"{many:.1f} MB", f"{took_s:.1f} s", True, numbers)  # fmt: skip


async def run(scale: Scale) -> list[Row]:
    """40 rounds of 200 requests (20 large ones) and 14 of wrk for each side; 8 and 4 with `--quick`."""
    rounds = scale.pick(40, 8)
    with scratch_directory() as directory:
        async with _gateway(directory) as gateway:
            rows = [await _thousand(gateway)]
            for case, content, requests, bar_s in (
                ("300 bytes", _SMALL, _REQUESTS, _ADDED_P50_S),
                ("1 MB of messages", _MESSAGES, _LARGE_REQUESTS, _ADDED_LARGE_S),
                ("1 MB of image", _IMAGE, _LARGE_REQUESTS, _ADDED_LARGE_S),
            ):
                rows.append(await _latency(gateway, case, content, rounds, requests, bar_s))
            if shutil.which("wrk") is None:
                return [*rows, Row.not_measured(NAME, "wrk is missing: apt-get install wrk")]
            rows.append(await _cpu(gateway, directory, "as it came", "tiny", scale.pick(14, 4), _ADDED_CPU_US))
            rows.append(await _cpu(gateway, directory, "an alias", "gpt-4o", scale.pick(14, 4), None))
    return rows
