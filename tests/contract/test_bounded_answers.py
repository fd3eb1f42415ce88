"""What is read in the event loop is bounded before it is read: JSON, protobuf, a router's lists and lines."""

from __future__ import annotations

import asyncio
import json
import math
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import structlog
from aiohttp import web

from gateway_sidecar.api.replicas import _once
from gateway_sidecar.control.process.child_logs import ChildLogs
from gateway_sidecar.control.routers.process import RouterProcess
from gateway_sidecar.domain.discovery import HttpAnswer, document
from gateway_sidecar.engines._pb import grpc_pb2, sglang_pb2
from gateway_sidecar.engines.messages import MOST_MESSAGE_BYTES, decode
from gateway_sidecar.errors import MetricsError, RouterError, RouterUnavailable
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.routers.http import _MOST_PAGE_BYTES, MOST_ANSWER_BYTES, MetricsPages, RestApi, as_object
from gateway_sidecar.routers.smg.client import SmgClient
from gateway_sidecar.routers.smg.log import read_log_line
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems

MIB = 1024 * 1024
MOST_S = 0.05


def least_cost_of(work: Callable[[], object]) -> float:
    """CPU seconds of this thread, the least of ten times: collected garbage, and a neighbour of the CPU, only add."""
    least_s = math.inf
    for _ in range(10):
        began = time.thread_time()
        work()
        least_s = min(least_s, time.thread_time() - began)
        if least_s < MOST_S:
            break
    return least_s


def memory_of(work: Callable[[], object]) -> float:
    """MiB, at the highest."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


DOCUMENTS = {
    "many numbers": b"[" + b"1," * 2 * MIB + b"1]",
    "many objects": b"[" + b"{}," * MIB + b"1]",
    "many lists": b"[" + b"[]," * MIB + b"1]",
    "deep": b"[" * 4 * MIB,
    "as deep as may be": b"[" * 90_000 + b"]" * 90_000,
    "as many objects as may be": b"[" + b'{"":0},' * 49_000 + b"1]",
    "as many keys as may be": b"{" + b",".join(b'"%d":{}' % number for number in range(49_000)) + b"}",
    "long numbers": b"[" + (b"9" * 4000 + b",") * 1000 + b"1]",
    "a number of 4 MiB": b"[" + b"9" * 4 * MIB + b"]",
    "a fraction of 4 MiB": b"[0." + b"9" * 4 * MIB + b"]",
    "a text of escapes": b'["' + b"\\u00e9" * 600_000 + b'"]',
    "a text of four bytes each": b'["' + "\U0001f600".encode() * MIB + b'"]',
    "blanks": b" " * 4 * MIB,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_json_of_4_mib_costs_50_ms_or_32_mb(name: str) -> None:
    """4 MiB is what an engine may answer."""
    answer = HttpAnswer(200, DOCUMENTS[name])
    assert least_cost_of(lambda: document(answer)) < MOST_S
    assert memory_of(lambda: document(answer)) < 24


@pytest.mark.parametrize("beyond", [b"[" + b'{"":0},' * 60_000 + b"1]", b"[" + b"[]," * 60_000 + b"1]"])
def test_json_of_more_values_than_may_be_is_none(beyond: bytes) -> None:
    """Objects and lists cost more than the commas between them tell."""
    assert document(HttpAnswer(200, beyond)) is None


def test_json_within_the_bounds_is_read() -> None:
    """A large engine: 64 ranks of 600 values."""
    told = {"ranks": [{f"value_{number}": number for number in range(600)} for _ in range(64)]}
    assert document(HttpAnswer(200, json.dumps(told).encode())) == told


def prefixed(tag: int, content: bytes) -> bytes:
    length, rest = b"", len(content)
    while rest > 127:
        length += bytes((rest & 127 | 128,))
        rest >>= 7
    return bytes((tag,)) + length + bytes((rest,)) + content


@pytest.mark.parametrize("services", [9_000, 20_000, MOST_MESSAGE_BYTES // 2 - 10, 500_000])
def test_no_message_costs_50_ms_or_32_mb(services: int) -> None:
    """A service without a name takes two bytes."""
    wire = prefixed(0x32, b"\x0a\0" * services)
    response = grpc_pb2.ServerReflectionResponse
    assert least_cost_of(lambda: decode(response, wire)) < MOST_S
    assert memory_of(lambda: decode(response, wire)) < 24
    assert decode(response, wire).code == ("OK" if services < 10_000 else "RESOURCE_EXHAUSTED")


def test_a_message_of_too_many_bytes_is_not_read() -> None:
    """However few values it has: what it is read into is memory of the library's, which nobody here measures."""
    wire = prefixed(0x0A, b"x" * MOST_MESSAGE_BYTES)
    read = decode(grpc_pb2.ServerReflectionResponse, wire)
    assert (read.code, read.detail) == (
        "RESOURCE_EXHAUSTED", f"a ServerReflectionResponse of more than {MOST_MESSAGE_BYTES} bytes"
    )  # fmt: skip


def test_a_struct_of_too_many_fields_is_none() -> None:
    """`server_args` has some hundreds."""
    fields = b"".join(prefixed(0x0A, prefixed(0x0A, b"%d" % number)) for number in range(20_000))
    number = sglang_pb2.GetServerInfoResponse.DESCRIPTOR.fields_by_name["server_args"].number
    assert decode(sglang_pb2.GetServerInfoResponse, prefixed(number << 3 | 2, fields)).code == "RESOURCE_EXHAUSTED"


def test_a_name_given_twice_is_found_in_linear_time() -> None:
    """An admin request of 64 KiB was looked through for each of its names."""
    pairs = [(f"{number}", 0) for number in range(8000)] + [("7999", 0)]

    def read() -> None:
        with pytest.raises(ValueError, match="'7999' is given twice"):
            _once(pairs)

    assert least_cost_of(read) < MOST_S


# --- routers ----------------------------------------------------------------------------------------------------


async def served(answer: bytes, status: int = 200) -> tuple[web.AppRunner, str]:
    app = web.Application()

    async def list_workers(_request: web.Request) -> web.Response:
        return web.Response(body=answer, status=status, content_type="application/json")

    app.router.add_get("/workers", list_workers)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    return runner, f"http://127.0.0.1:{port}"


def worker(number: int, **further: object) -> dict[str, object]:
    return {
        "id": f"w{number}",
        "url": f"http://127.0.0.1:{number}",
        "status": "ready",
        "worker_type": "regular",
        "connection_mode": "http",
        **further,
    }


async def test_a_long_list_of_workers_gives_others_their_turn() -> None:
    """Eight thousand ranks would be read in one go of 60 ms and more."""
    runner, url = await served(json.dumps({"workers": [worker(number) for number in range(8000)]}).encode())
    client = SmgClient(RestApi(url, "key", 60), health={})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    try:
        raw = client._api.ask_raw("GET", "/workers")
        answer = await raw
        client._api.ask_raw = lambda *_: asyncio.sleep(0, answer)  # type: ignore[method-assign]
        counting = asyncio.create_task(count())
        assert len(await client.list_workers()) == 8000
        counting.cancel()
        assert turns >= 16
    finally:
        await client.close()
        await runner.cleanup()


async def test_answers_without_a_body_are_read_one_after_the_other() -> None:
    """aiohttp has one stream for all of them, whose pieces have no end from the second answer on."""
    runner, url = await served(b"", status=204)
    api = RestApi(url, "key", timeout_s=60)
    try:
        assert [await api.ask_raw("GET", "/workers") for _ in range(3)] == [b"", b"", b""]
    finally:
        await api.close()
        await runner.cleanup()


def test_the_longest_list_of_workers_that_is_read_costs_less_than_50_ms() -> None:
    """It is parsed in one go, in the event loop."""
    row = json.dumps(worker(1, labels={f"label_{number}": "x" * 20 for number in range(30)})).encode() + b","
    raw = b'{"workers": [' + row * (MOST_ANSWER_BYTES // len(row)) + row[:-1] + b"]}"
    assert len(raw) >= MOST_ANSWER_BYTES
    assert least_cost_of(lambda: as_object(raw, "GET /workers")) < MOST_S


async def test_an_endless_list_of_workers_is_not_read() -> None:
    """And what a router says of a worker can be shown."""
    runner, url = await served(b'{"workers": [' + b" " * MOST_ANSWER_BYTES + b"]}")
    client = SmgClient(RestApi(url, "key", 60), health={})
    try:
        with pytest.raises(RouterUnavailable, match="larger than"):
            await client.list_workers()
    finally:
        await client.close()
        await runner.cleanup()
    told = worker(1, job_status={"status": "failed", "message": "\x1b[2J\n" + "m" * 10_000})
    runner, url = await served(json.dumps({"workers": [told]}).encode())
    client = SmgClient(RestApi(url, "key", 60), health={})
    try:
        (listed,) = (await client.list_workers()).values()
    finally:
        await client.close()
        await runner.cleanup()
    assert listed.note is not None
    assert listed.note.isprintable()
    assert len(listed.note) < 400


EVIL = "\x1b[2J\n\x9b31m\u2028" + "e" * 10_000


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, json.dumps({"error": EVIL})),
        (400, json.dumps({"error": {"message": EVIL}})),
        (400, EVIL),
        (500, json.dumps([EVIL])),
        (200, EVIL),
        (200, json.dumps([EVIL])),
        (200, json.dumps({"workers": [EVIL]})),
        (200, json.dumps({"workers": [worker(1, url=EVIL) | {"status": EVIL}]})),
    ],
)
async def test_what_a_router_says_of_a_failure_can_be_shown(status: int, answer: str) -> None:
    """It may be an engine's words, or a client's; they reach `status`, the log and whoever called a command."""
    runner, url = await served(answer.encode(), status)
    client = SmgClient(RestApi(url, "key", 60), health={})
    try:
        with pytest.raises(RouterError) as failed:
            await client.list_workers()
    finally:
        await client.close()
        await runner.cleanup()
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) < 3000


async def test_a_metrics_page_without_end_is_not_read() -> None:
    """A router's has 3 KiB for each worker."""
    runner, url = await served(b"x" * (_MOST_PAGE_BYTES + 1))
    pages = MetricsPages()
    try:
        with pytest.raises(MetricsError, match=f"larger than {_MOST_PAGE_BYTES} bytes"):
            await pages.read(f"{url}/workers", 60)
    finally:
        await pages.close()
        await runner.cleanup()


async def test_what_nginx_says_of_its_clients_can_be_shown(tmp_path: Path) -> None:
    """nginx writes a client's header into its error log as it is, escapes and all."""
    log = ChildLog(tmp_path / "nginx.log")
    log.new_lines()
    (tmp_path / "nginx.log").write_bytes(b'[error] referrer: "\x1b[2J\xc2\x9b31m\xe2\x80\xa8' + b"x" * 10_000 + b'"\n')
    children = ChildLogs(dict, cast(Nginx, None), log, Problems(), Metrics())
    with structlog.testing.capture_logs() as events:
        children._logger = structlog.get_logger()
        await children._pass_on_nginx(log)
    assert [event["text"][:40] for event in events] == [r'[error] referrer: "\x1b[2J\x9b31m\u2028x']
    assert len(events[0]["text"]) < 1100
    with (tmp_path / "nginx.log").open("a") as file:
        file.write("[error] nobody listens\n" * 1000)
    with structlog.testing.capture_logs() as events:
        children._logger = structlog.get_logger()
        await children._pass_on_nginx(log)
    assert [event["event"] for event in events] == ["nginx.said"] * 5 + ["nginx.said_more"]
    assert events[-1]["lines"] == 995


class _Talkative:
    """As much of a router as its log needs."""

    service = "chat"
    setup = type("Setup", (), {"read_log_line": staticmethod(read_log_line)})()

    def __init__(self, log: ChildLog) -> None:
        self.log = log


async def test_a_flood_of_log_lines_is_passed_on_in_part(tmp_path: Path) -> None:
    """All of it is in the file; the rest of the daemon has its turn."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    log = ChildLog(tmp_path / "router.log")
    log.new_lines()
    children = ChildLogs(dict, cast(Nginx, None), log, Problems(), Metrics())
    with structlog.testing.capture_logs() as events:
        children._logger = structlog.get_logger()
        assert await log.read() == []  # Its thread is there: from here on it is lines alone that are waited for.
        (tmp_path / "router.log").write_text('{"message":"m"}\n' * 10_000)
        lines = await log.read()
        log.read = lambda: asyncio.sleep(0, lines)  # type: ignore[method-assign]
        counting = asyncio.create_task(count())
        await children._pass_on(cast(RouterProcess, _Talkative(log)))
        counting.cancel()
    assert turns >= 20
    assert [event["event"] for event in events] == ["router.said"] * 1000 + ["router.said_more"]
    assert events[-1]["lines"] == 9000
