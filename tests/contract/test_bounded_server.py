"""What an HTTP listener of the daemon's stands: clients that say nothing, too little, too slowly, or take no answers.

On the event loop that the daemon runs on.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import resource
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
import uvloop
from aiohttp import web

from gateway_sidecar.api import bounded_server
from gateway_sidecar.api.bounded_server import BoundedServer, tcp_listener
from gateway_sidecar.config import Endpoint
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from tests.certificates import certificate

BIG = b"x" * (4 * 1024 * 1024)
MOST = 16
PATIENCE_S = 1.0
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs that a test can wait for, and that the clock does not reach within two or three late ticks."""
    monkeypatch.setattr(bounded_server, "_SWEEP_S", 0.02)
    for name in ("REQUEST_S", "ANSWER_S", "IDLE_S"):
        monkeypatch.setattr(bounded_server, name, PATIENCE_S)


class Place:
    """A server that runs, what its handlers were asked, and ways to come in."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = asyncio.Event()
        self.port = 0
        self.stack = AsyncExitStack()

    async def open(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{what}", self._answer)
        self.metrics = Metrics()
        self.server = BoundedServer(app, Tasks("-", self.metrics), most=MOST)
        self.listening = tcp_listener(Endpoint("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        await self.server.listen(self.listening)
        self.stack.push_async_callback(self.server.close)

    async def _answer(self, request: web.Request) -> web.Response:
        what = request.match_info["what"]
        self.asked.append(what)
        if what == "wait":
            await self.release.wait()
        if what == "fault":
            raise ZeroDivisionError("a fault of ours")
        if what == "body":
            return web.Response(text=str(len(await request.read())))
        return web.Response(body={"big": BIG, "middling": BIG[:60_000]}.get(what, b"ok"))

    async def connect(self) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**25)
        self.stack.push_async_callback(drop, writer)
        return reader, writer

    async def ask(self, what: str, stream: Stream | None = None) -> bytes:
        """The body of the answer; honest clients read at once."""
        reader, writer = stream or await self.connect()
        writer.write(f"GET /{what} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return await reader.readexactly(int(length.split(b":")[1]))


def on_the_daemons_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test of a place of its own, on the event loop that the daemon runs on."""

    async def with_place(**fixtures: Any) -> None:
        place = Place()
        await place.open()
        try:
            with awake.watched():
                async with asyncio.timeout(60):
                    await test(place, **fixtures)
        finally:
            await place.stack.aclose()

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        uvloop.run(with_place(**fixtures))

    signature = inspect.signature(test)
    fixtures = [one for name, one in signature.parameters.items() if name != "place"]
    run.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
    return run


async def drop(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def ended(stream: Stream) -> bytes:
    """What came until the connection ended."""
    try:
        return await stream[0].read()
    except ConnectionError:
        return b""


@on_the_daemons_loop
async def test_who_says_nothing_makes_room_for_who_asks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many say nothing, and the ones that were there first go first."""
    monkeypatch.setattr(bounded_server, "REQUEST_S", 60)
    silent = [await place.connect() for _ in range(10 * MOST)]
    for _ in range(5):
        assert await place.ask("small") == b"ok"
        assert len(place.server._connections) <= MOST
    for stream in silent[: 9 * MOST]:
        assert await ended(stream) == b""


@on_the_daemons_loop
async def test_who_says_nothing_or_too_little_is_cut(place: Place) -> None:
    """Nothing at all; half a request; a byte at a time; a request whose body does not come."""
    streams = [await place.connect() for _ in range(4)]
    streams[1][1].write(b"GET /small HTT")
    streams[2][1].write(b"GET /small HTTP/1.1\r\nX-Slow: ")
    streams[3][1].write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0123456789")

    async def drip() -> None:
        while True:
            streams[2][1].write(b"a")
            streams[3][1].write(b"a" if not place.asked else b"")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert [await ended(stream) for stream in streams] == [b""] * 4
    dripping.cancel()
    assert await place.ask("small") == b"ok"


@on_the_daemons_loop
async def test_a_kept_connection_is_used_again_and_then_ended(place: Place) -> None:
    """Nobody who asks is cut, however often."""
    stream = await place.connect()
    for _ in range(3):
        assert await place.ask("small", stream) == b"ok"
        await asyncio.sleep(0.05)
    assert await ended(stream) == b""


@on_the_daemons_loop
async def test_answers_that_nobody_takes_cost_little_and_not_for_long(place: Place) -> None:
    """One that asks a hundred times and takes nothing is answered until its buffers are full, and then cut."""
    stream = await place.connect()
    stream[1].transport.pause_reading()  # type: ignore[attr-defined]
    stream[1].write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    await until(lambda: bool(place.asked))
    await until(lambda: not place.server._connections)
    assert len(place.asked) < 5
    assert place.server._untaken == {}
    assert await place.ask("big") == BIG


@on_the_daemons_loop
async def test_who_asks_on_and_on_and_takes_nothing_gets_no_more(place: Place) -> None:
    """Answers that are too small to be sent in pieces would pile up in our memory, one for each question."""
    stream = await place.connect()
    stream[1].transport.pause_reading()  # type: ignore[attr-defined]
    stream[1].write(b"GET /middling HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
    await until(lambda: bool(place.asked))
    await until(lambda: not place.server._connections)
    assert len(place.asked) < 1000


@on_the_daemons_loop
async def test_untaken_answers_are_bounded_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were begun first are given up; who takes his gets it."""
    monkeypatch.setattr(bounded_server, "ANSWER_S", 60)
    monkeypatch.setattr(bounded_server, "_MOST_UNTAKEN_BYTES", 3 * len(BIG))
    streams = [await place.connect() for _ in range(8)]
    for stream in streams:
        stream[1].transport.pause_reading()  # type: ignore[attr-defined]
        stream[1].write(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: len(place.asked) == 8)
    assert sum(place.server._untaken.values()) <= 3 * len(BIG)
    for stream in streams:
        stream[1].transport.resume_reading()  # type: ignore[attr-defined]
    taken_whole = [len(await ended(stream)) > len(BIG) for stream in streams]
    assert 0 < sum(taken_whole) < len(streams)
    assert await place.ask("big") == BIG


@on_the_daemons_loop
async def test_who_waits_for_us_is_not_cut(place: Place) -> None:
    """Long work is no fault of the client's; when all that there may be wait for us, the next one is turned away."""
    waiting = [asyncio.create_task(place.ask("wait")) for _ in range(MOST)]
    await until(lambda: len(place.asked) == MOST)
    began = awake.now()
    await until(lambda: awake.now() > began + 1.5 * PATIENCE_S)
    assert await ended(await place.connect()) == b""
    place.release.set()
    assert await asyncio.gather(*waiting) == [b"ok"] * MOST


@on_the_daemons_loop
async def test_a_stall_of_ours_cuts_nobody(place: Place) -> None:
    """A daemon that was stopped for longer than all time-outs finds what came meanwhile, and answers it."""
    stream = await place.connect()
    assert await place.ask("small", stream) == b"ok"
    time.sleep(1.5 * PATIENCE_S)  # noqa: ASYNC251
    assert await place.ask("small", stream) == b"ok"


@on_the_daemons_loop
async def test_what_is_no_http_is_answered_and_not_logged(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """HTTP/2, TLS, garbage, a body that is none: 400, and not a line of log for whoever likes to write some."""
    for garbage in (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",
        b"\0\xff\n\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /small HTTP/1.1\r\nA: " + b"b" * 100_000,
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        stream = await place.connect()
        stream[1].write(garbage)
        answer = await ended(stream)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), (garbage[:30], answer)
    with structlog.testing.capture_logs() as logs:
        stream = await place.connect()
        stream[1].write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b" 400 " in await ended(stream)
        for expected in (b"a", b"\xdb"):
            stream = await place.connect()
            stream[1].write(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: " + expected + b"\r\n\r\n")
            assert b" 200 " in await ended(stream)
        for target in (b"body", b"small"):  # Read by its handler, and by nobody.
            stream = await place.connect()
            stream[1].write(b"POST /" + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
            stream[1].write(b"Content-Encoding: gzip\r\n\r\nno gzip\r\n")
            await ended(stream)
    assert logs == []
    assert capfd.readouterr() == ("", "")


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client begins that takes for granted that it meets HTTP/2: its preface, and an empty SETTINGS frame."""
H2C = (
    b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
)


@on_the_daemons_loop
async def test_http2_in_any_form_is_turned_down_without_a_line(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Known beforehand, by upgrade, behind an answered request, in pieces of any size; and targets that are none."""
    faults: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: faults.append(context))
    get = H2C.partition(b"Connection")[0] + b"\r\n"
    with structlog.testing.capture_logs() as logs:
        for sent in (
            HTTP2, HTTP2[:10], HTTP2.replace(b"2.0", b"1.1"), get + HTTP2, get + get + HTTP2, H2C, H2C + HTTP2,
            H2C + H2C, H2C + get, H2C + bytes(70_000), H2C.replace(b"GET", b"POST"), H2C.replace(b"h2c", b"h2"),
            H2C.replace(b"/small", b"/big") + HTTP2, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + HTTP2,
            b"GET /small HTTP/2.0\r\nHost: x\r\n\r\n", b"GET http://[::1/small HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET http://x:99999/small HTTP/1.1\r\nHost: x\r\n\r\n", b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        ):  # fmt: skip
            for size in (len(sent), *(1, 7) * (len(sent) < 1000)):
                with socket.create_connection(("127.0.0.1", place.port)) as client, suppress(OSError):
                    client.setblocking(False)
                    for at in range(0, len(sent), size):
                        await loop.sock_sendall(client, sent[at : at + size])
                    client.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(client, 65536):
                        pass
        assert await place.ask("small") == b"ok"
    assert (faults, logs) == ([], [])
    assert capfd.readouterr() == ("", "")


@on_the_daemons_loop
async def test_client_that_would_rather_speak_http2_over_tls_gets_http_1(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ALPN it offers both, or HTTP/2 alone."""
    monkeypatch.setattr(bounded_server, "REQUEST_S", 60)  # The handshake's time is that of the wall.
    pem = certificate(tmp_path, "x")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(pem, pem.with_suffix(".key"))
    place.server.use_tls(ours)
    with structlog.testing.capture_logs() as logs:
        for offers in (["h2", "http/1.1"], ["h2"]):
            context = ssl._create_unverified_context()
            context.set_alpn_protocols(offers)
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() in (None, "http/1.1")
            writer.write(HTTP2)
            assert b" 400 " in await reader.read()
            await drop(writer)
    assert logs == []


@on_the_daemons_loop
async def test_who_leaves_is_no_fault(place: Place) -> None:
    """In the middle of an answer, before it, or with more questions than were answered: not a line of log."""
    with structlog.testing.capture_logs() as logs:
        for what, count in ((b"big", 1), (b"big", 50), (b"small", 50), (b"wait", 1), (b"wait", 3)):
            stream = await place.connect()
            stream[1].transport.pause_reading()  # type: ignore[attr-defined]
            place.asked.clear()
            stream[1].write((b"GET /" + what + b" HTTP/1.1\r\nHost: x\r\n\r\n") * count)
            await until(lambda: bool(place.asked))
            stream[1].transport.abort()
        for half in (b"", b"x" * 50):
            stream = await place.connect()
            place.asked.clear()
            stream[1].write(b"PUT /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + half)
            await until(lambda: bool(place.asked))
            stream[1].transport.abort()
        place.release.set()
        await until(lambda: not place.server._connections)
        assert await place.ask("small") == b"ok"
    assert logs == []


@on_the_daemons_loop
async def test_a_fault_of_ours_is_told(place: Place) -> None:
    """In the daemon's own log, as one event."""
    stream = await place.connect()
    with structlog.testing.capture_logs() as logs:
        stream[1].write(b"GET /fault HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream[0].readline()).startswith(b"HTTP/1.1 500 ")
    assert [row["event"] for row in logs] == ["daemon.request_failed"]


@on_the_daemons_loop
async def test_a_fault_while_a_connection_begins_costs_that_connection_alone(place: Place) -> None:
    """Law 15: it is logged and counted, its client is cut, and its place is free for the next."""
    place.server._tls = cast("Any", "no TLS context")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2 * MOST):
            assert await ended(await place.connect()) == b""
        await until(lambda: not place.server._connections)
    assert {(row["event"], row["loop"]) for row in logs} == {("loop.failed", "BoundedServer._connect")}
    assert place.metrics.loop_failures.labels("-")._value.get() == 2 * MOST
    place.server._tls = None
    assert await place.ask("small") == b"ok"


@on_the_daemons_loop
async def test_no_descriptor_left_ends_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes meanwhile waits, and is answered afterwards."""
    monkeypatch.setattr(bounded_server, "_REST_S", 0.05)
    tries, accept = 0, place.server._accept

    def count() -> None:
        nonlocal tries
        tries += 1
        accept()

    monkeypatch.setattr(place.server, "_accept", count)
    listening = tcp_listener(Endpoint("127.0.0.1", 0))
    place.port = listening.getsockname()[1]
    await place.server.listen(listening)
    stream = await place.connect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    late = await place.connect()
    await until(lambda: len(place.server._connections) == 2)
    waiting = [socket.socket() for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(s.fileno() for s in waiting) + 1, limits[1]))
    try:
        fillers = []
        try:
            while True:
                fillers.append(socket.socket())
        except OSError:
            pass
        for sock in waiting:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", place.port))
        assert await place.ask("small", stream) == b"ok"
        assert await place.ask("small", late) == b"ok"
        await asyncio.sleep(0.5)
        assert tries < 200, "the kernel is not asked again and again"
        for filler in fillers:
            filler.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    loop = asyncio.get_running_loop()
    for sock in waiting:
        await loop.sock_sendall(sock, b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 200")
        sock.close()
