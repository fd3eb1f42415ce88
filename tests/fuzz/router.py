"""The router's edge: what its REST API and its metrics page answer, and what it writes into its log."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from gateway_sidecar.domain.model import ConnectionMode, WorkerSpec
from gateway_sidecar.errors import MetricsError, RouterError
from gateway_sidecar.routers.http import MetricsPages, RestApi
from gateway_sidecar.routers.smg.client import SmgClient
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.routers.smg.metrics import read_metrics
from gateway_sidecar.supervision.own_thread import OwnThread
from tests.fuzz.frame import Edge, Trial
from tests.fuzz.mutation import EVIL_TEXTS, mutated
from tests.fuzz.servers import Line, Talk, serving_tcp

_PATIENCE_S = 0.4
_MIB = 1024 * 1024
_LONGEST_REASON = 6000
_PAGES = Path(__file__).parents[1] / "fixtures" / "routers"
_ROW = {
    "id": "01a2230f-cc91-7467-bbe6-feefc9687060",
    "model_id": "m",
    "url": "http://127.0.0.1:24001",
    "worker_type": "regular",
    "connection_mode": "http",
    "runtime_type": "generic",
    "status": "ready",
    "is_healthy": True,
    "load": 0,
}
_ACCEPTED = {"status": "accepted", "worker_id": _ROW["id"], "location": "/workers/1"}
_SPEC = WorkerSpec("http://127.0.0.1:24001", "sglang", ConnectionMode.HTTP)


@contextlib.asynccontextmanager
async def _open(directory: Path) -> AsyncIterator[Trial]:
    pages, reader = MetricsPages(), OwnThread("metrics pages")

    async def trial(source: random.Random) -> str:
        kind, talk = source.choice(_TALKS)
        if kind == "log":
            return _read_log(source)
        with serving_tcp(talk, str(source.random())) as port:
            url = f"http://127.0.0.1:{port}"
            if kind == "metrics":
                return f"{kind}: {await _read_metrics(pages, reader, url)}"
            client = SmgClient(RestApi(url, "key", _PATIENCE_S), health={})
            try:
                return f"{kind}: {await _ask(client, source)}"
            finally:
                await client.close()

    try:
        yield trial
    finally:
        reader.end()
        await pages.close()


async def _ask(client: SmgClient, source: random.Random) -> str:
    asked = source.choice(("list", "register", "find", "deregister"))
    try:
        match asked:
            case "list":
                await client.list_workers()
            case "register":
                await client.register(_SPEC)
            case "find":
                await client.find(str(_ROW["id"]))
            case _:
                await client.deregister(str(_ROW["id"]))
    except RouterError as error:
        _judge(error)
        return f"{asked} {type(error).__name__}"
    return f"{asked} answered"


def _judge(error: Exception) -> None:
    text = str(error)
    assert text.isprintable(), repr(text)
    assert len(text) < _LONGEST_REASON, len(text)


async def _read_metrics(pages: MetricsPages, reader: OwnThread, url: str) -> str:
    try:
        page = await pages.read(url, _PATIENCE_S)
    except MetricsError as error:
        _judge(error)
        return "MetricsError"
    await reader.run(partial(read_metrics, page), patience_s=10)
    return "read"


def _read_log(source: random.Random) -> str:
    good = json.dumps({"level": source.choice(("INFO", "ERROR", [], None)), "message": source.choice(EVIL_TEXTS)})
    text = mutated(source, good.encode()).decode("utf-8", source.choice(("replace", "surrogateescape")))
    told = read_log_line(text)
    if told is None:
        return "log: nothing"
    assert told.message.isprintable(), repr(told.message)
    return f"log: {told.level}"


def _answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


def _changed(line: Line) -> None:
    """What SMG says, changed a little."""
    rows = [_ROW | {"url": f"http://127.0.0.1:{port}"} for port in range(line.random.choice((0, 1, 3, 400)))]
    for row in rows[:3]:
        name = line.random.choice(list(row))
        row[name] = line.random.choice((None, [], {}, -1, 1e300, True, "", *EVIL_TEXTS))
    told = line.random.choice(({"workers": rows}, _ACCEPTED, _ROW, {"error": line.random.choice(EVIL_TEXTS)}))
    while line.hear():
        status = line.random.choice((200, 200, 202, 400, 401, 404, 409, 500, 503))
        line.say(mutated(line.random, _answer(json.dumps(told).encode(), status), 3))


def _strange(line: Line) -> None:
    """What no router would say."""
    line.hear()
    source = line.random
    size = source.choice((1000, 100_000, _MIB, 8 * _MIB))
    match source.randrange(5):
        case 0:
            part = source.choice((b"[", b'{"a":', b"{},", b'{"workers":[', b"1,", b"9" * 4000 + b","))
            line.say(_answer(b'{"workers":[' + part * (size // len(part)) + b"]}"))
        case 1:
            line.say(b"HTTP/1.1 200 OK\r\n")
            line.say_again(source.choice((b"a:\r\n", b"X: y\r\n", b"x" * 100)), size)
        case 2:
            line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            line.say_again(b"1\r\n[\r\n", size)
        case 3:
            line.say(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
        case 4:
            line.say(source.randbytes(source.randrange(1, 3000)))
    if source.random() < 0.3:
        line.hold()


def _page(line: Line) -> None:
    line.hear()
    source = line.random
    if source.random() < 0.5:
        good = source.choice(sorted(_PAGES.glob("*.txt"))).read_bytes()
        line.say(_answer(mutated(source, good)))
        return
    part = source.choice(
        (b'smg_worker_requests_active{worker="', b"{" * 50, b'a{b="\\"', b"smg_admission_inflight 1\n")
    )
    line.say(_answer(part * (source.choice((1000, _MIB, 3 * _MIB)) // len(part))))


_TALKS: tuple[tuple[str, Talk], ...] = (
    ("changed", _changed),
    ("changed", _changed),
    ("strange", _strange),
    ("metrics", _page),
    ("log", _page),
)

EDGE = Edge("router", _open)
