"""Figures: what the bounds of keys cost.

One gateway with three services without routers, each with a tiny nginx behind it that answers at once with tokens:
`open` has 10,000 keys without bounds, `bounded` as many with a plan, in all bounds that there are, and `limited` the
same file. All in one nginx with one worker process.

added latency    One chat of 300 bytes at a time over one kept connection to `open` and `bounded`, in turns. Each side's
                 figure is that of its quietest round of 50, since other work only adds.
CPU per request  What nginx's worker used, by its schedstat, for the same requests.
piece of a stream  The same for streams of 200 events, a write each, over what the stream costs with `open`.
in force         From the moment before `change_key` begins, in a process of its own that runs already, to the first
                 403 of a paused key, asked every millisecond; 10,000 keys with bounds. The same for a plan's models.
memory           Of nginx's worker, after each of the 10,000 keys has had a request, over before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from bench import processes
from bench.place import BASE, scratch_directory
from bench.report import Row, Scale, in_ms, median, rounded_ms
from bench.wire import Connection
from gateway_sidecar.frontend.edit_keys import change_key, change_plan
from tests.system.gateway import Gateway

NAME = "bounds"
_KEYS = 10_000
_ADDED_P50_S, _ADDED_CPU_US, _PIECE_US = 0.00003, 15.0, 3.0
_IN_FORCE_S, _MEMORY_MB = 0.1, 40.0
_CHATS, _EVENTS = 50, 200
_PATH = "/v1/chat/completions"
_BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 200}], "max_tokens": 4}
_PLAN = "plan team models=tiny,other requests_per_minute=90M tokens_per_day=900M tokens_per_month=9000M concurrent=500"
_BETWEEN_S, _SETTLE_S = 0.001, 0.3


def _fill(file: Path, *, bounded: bool) -> None:
    words = " plan=team tokens_per_minute=900M" if bounded else ""
    lines = [f"user{n}:{hashlib.sha256(_secret(n).encode()).hexdigest()}{words}\n" for n in range(_KEYS)]
    file.write_text(f"# keys\n{_PLAN}\n" + "".join(lines))
    file.chmod(0o600)


def _secret(number: int) -> str:
    return f"a-secret-of-user-{number}"


async def _engine(socket: Path) -> web.AppRunner:
    """An engine that is no more than fast: health, one model, and answers with tokens."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    event = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'

    async def chat(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            return web.json_response({"choices": [], "usage": usage})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(_EVENTS):
            await answer.write(event)
            await asyncio.sleep(0)
        await answer.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        await answer.write_eof()
        return answer

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post(_PATH, chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    socket.chmod(0o660)
    return runner


@asynccontextmanager
async def _gateway(files: dict[str, Path]) -> AsyncIterator[Gateway]:
    gateway = Gateway(services=tuple(files), base=BASE, log={"format": "json", "level": "info"})
    first = min(gateway.ports.values())
    gateway.settings["router_ports"] = f"{first + 10}-{first + 21}"
    gateway.settings["bridges"]["ports"] = f"{first + 22}-{first + 59}"
    for service in gateway.settings["services"]:
        auth = {"keys_file": str(files[service["name"]])}
        service |= {"router": {"type": "none"}, "frontend": {"auth": auth}}
    runners = []
    try:
        await gateway.start()
        for service in files:
            runners.append(await _engine(gateway.socket("r1", service)))
            await gateway.until_states({"r1": "serving"}, service=service)
        yield gateway
    finally:
        for runner in runners:
            await runner.cleanup()
        await gateway.close()


async def _compare(gateway: Gateway, rounds: int) -> dict[str, dict[str, list[float]]]:
    """By service: the p50 of each round in seconds, CPU of a chat and of a stream in us."""
    pid = await processes.only_worker(gateway)
    found: dict[str, dict[str, list[float]]] = {
        name: {"p50": [], "cpu": [], "stream": []} for name in ("open", "bounded")
    }
    connections = {name: Connection("127.0.0.1", gateway.ports[name], key=_secret(1)) for name in found}

    async def ask(name: str, body: dict[str, Any]) -> float:
        began = time.perf_counter()
        answer = await connections[name].ask("POST", _PATH, body)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")
        return time.perf_counter() - began

    for number in range(rounds):
        for name in list(found)[:: 1 if number % 2 else -1]:
            before = processes.cpu_us(pid)
            found[name]["p50"].append(median([await ask(name, _BODY) for _ in range(_CHATS)]))
            found[name]["cpu"].append((processes.cpu_us(pid) - before) / _CHATS)
            before = processes.cpu_us(pid)
            for _ in range(4):
                await ask(name, {**_BODY, "stream": True})
            found[name]["stream"].append((processes.cpu_us(pid) - before) / 4)
    for connection in connections.values():
        connection.close()
    return found


async def _in_force_s(
    gateway: Gateway, number: int, wanted: int, editor: Executor, change: Callable[..., object], *args: object
) -> float:
    async with (
        Connection("127.0.0.1", gateway.ports["limited"], key=_secret(number)) as connection,
        asyncio.timeout(60),
    ):
        while (await connection.ask("POST", _PATH, _BODY)).status != 200:
            await asyncio.sleep(_BETWEEN_S)
        await asyncio.sleep(_SETTLE_S)
        began = time.perf_counter()
        changing = asyncio.get_running_loop().run_in_executor(editor, change, *args)
        while (await connection.ask("POST", _PATH, _BODY)).status != wanted:
            await asyncio.sleep(_BETWEEN_S)
        took = time.perf_counter() - began
        await changing
        return took


async def _memory_mb(gateway: Gateway) -> float:
    """What nginx's worker grows by when all keys have had a request."""
    pid = await processes.only_worker(gateway)
    before = processes.rss_mb(pid)
    url = f"{gateway.url('bounded')}{_PATH}"
    async with aiohttp.ClientSession() as session:
        for number in range(_KEYS):
            headers = {"Authorization": f"Bearer {_secret(number)}"}
            async with session.post(url, json=_BODY, headers=headers) as answer:
                await answer.read()
    return processes.rss_mb(pid) - before


async def run(scale: Scale) -> list[Row]:
    """200 rounds of 50 chats and 4 streams for each side, 20 changes of each kind; 20 and 4 with `--quick`."""
    with scratch_directory() as directory:
        files = {name: directory / f"{name}.keys" for name in ("open", "bounded", "limited")}
        for name, file in files.items():
            _fill(file, bounded=name != "open")
        async with _gateway(files) as gateway:
            found = await _compare(gateway, scale.pick(200, 20))
            file, times = files["limited"], scale.pick(20, 4)
            with ProcessPoolExecutor(1, get_context("spawn")) as editor:
                paused = [await _in_force_s(gateway, n, 403, editor, change_key, file, f"user{n}", {"paused": ""})
                          for n in range(times + 1)][1:]  # fmt: skip
                plans = []
                for _ in range(times):
                    plans.append(
                        await _in_force_s(gateway, _KEYS - 1, 404, editor, change_plan, file, "team", {"models": "x"})
                    )
                    change_plan(file, "team", {"models": "tiny,other"})
            memory = await _memory_mb(gateway)
    return [*_rows(found), _in_force_row("a key is paused", paused), _in_force_row("a plan's models change", plans),
            Row(NAME, f"memory of nginx's worker, {_KEYS:,} keys in use", f"< {_MEMORY_MB:.0f} MB", "-",
                f"{memory:.1f} MB", "", memory < _MEMORY_MB, {"mb": memory})]  # fmt: skip


def _rows(found: dict[str, dict[str, list[float]]]) -> list[Row]:
    least = {name: {what: min(values) for what, values in those.items()} for name, those in found.items()}
    later, more, piece = (least["bounded"][what] - least["open"][what] for what in ("p50", "cpu", "stream"))
    piece = (piece - more) / _EVENTS
    numbers = {
        name: {what: [round(it, 7) for it in values] for what, values in those.items()} for name, those in found.items()
    }
    return [
        Row(NAME, "added latency p50", f"< {_ADDED_P50_S * 1e6:.0f} us", in_ms(least["open"]["p50"]),
            in_ms(least["bounded"]["p50"]), f"{later * 1e6:+.1f} us", later < _ADDED_P50_S, numbers),
        Row(NAME, "added CPU of nginx", f"< {_ADDED_CPU_US:.0f} us", f"{least['open']['cpu']:.1f} us",
            f"{least['bounded']['cpu']:.1f} us", f"{more:+.1f} us", more < _ADDED_CPU_US),
        Row(NAME, "added CPU, each event of a stream", f"< {_PIECE_US:.0f} us",
            f"{least['open']['stream'] / _EVENTS:.1f} us", f"{least['bounded']['stream'] / _EVENTS:.1f} us",
            f"{piece:+.1f} us", piece < _PIECE_US),
    ]  # fmt: skip


def _in_force_row(what: str, times: list[float]) -> Row:
    worst = max(times)
    return Row(NAME, f"{what}, until it is in force, {_KEYS:,} keys", f"all < {in_ms(_IN_FORCE_S)}", "-",
               f"p50 {in_ms(median(times))}", f"worst {in_ms(worst)}", worst < _IN_FORCE_S,
               {"ms": rounded_ms(times)})  # fmt: skip
