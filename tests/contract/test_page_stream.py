"""The live page's stream over real sockets: viewers are bounded, and a slow one holds up nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway_sidecar.api import page, page_feed
from gateway_sidecar.api.bounded_server import BoundedServer, tcp_listener
from gateway_sidecar.api.exposition import serve_metrics
from gateway_sidecar.api.page import follow
from gateway_sidecar.api.page_feed import MOST_VIEWERS, Feed
from gateway_sidecar.config import Endpoint, MetricsSettings
from gateway_sidecar.control.autoscaling.last_hour import LastHour
from gateway_sidecar.domain.history import History
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics
from tests.ssh_servers import free_port
from tests.unit.test_journal import Noted

Reader = asyncio.StreamReader


class Site(Noted):
    """A feed that is served. Its state is another one each time that it is looked at."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.looks = 0
        self.filling = ""
        self.feed = Feed(self._look, History(), self.journal, Tasks("-", Metrics()))

    def _look(self) -> dict[str, Any]:
        self.looks += 1
        return {"number": self.looks, "filling": f"{self.looks}{self.filling}"}

    async def open(self, headers: str = "", *, limit: int = 1 << 20) -> tuple[Reader, asyncio.StreamWriter]:
        """A connection that takes `limit` bytes before they are read."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        writer.write(f"GET /page/stream HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        return reader, writer


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site(free_port())
    app = web.Application()
    app.router.add_get("/page/stream", partial(follow, made.feed), allow_head=False)

    async def close(_app: web.Application) -> None:
        await made.feed.close()

    app.on_shutdown.append(close)
    server = BoundedServer(app, Tasks("-", Metrics()))
    await server.listen(tcp_listener(Endpoint("127.0.0.1", made.port)))
    try:
        yield made
    finally:
        await server.close()


@asynccontextmanager
async def listener(*, has_page: bool) -> AsyncIterator[str]:
    """The metrics listener, of a daemon that has no service; its address."""
    daemon: Any = SimpleNamespace(metrics=Metrics(), taken_up=asyncio.Event(), last_hour=LastHour({}), healthy=True)
    listen = Endpoint("127.0.0.1", free_port())
    server = await serve_metrics(daemon, listen, MetricsSettings(listen=listen, page=has_page))
    try:
        yield f"http://{listen}/"
    finally:
        await server.close()


async def test_the_page_can_be_turned_off() -> None:
    """What else the listener has stays."""
    async with listener(has_page=False) as url, aiohttp.ClientSession() as session:
        for path in ("", "page/page.js", "page/page.css", "page/stream", "page/events.json"):
            async with session.get(url + path) as answer:
                assert answer.status == 404
        async with session.get(f"{url}healthz") as answer:
            assert answer.status == 200


async def test_it_is_read_alone_by_its_own_name_and_lets_a_browser_run_nothing_else() -> None:
    """No method changes anything, and no page of another name gets it."""
    async with listener(has_page=True) as url, aiohttp.ClientSession() as session:
        for path in ("", "page/page.js", "page/page.css", "page/events.json"):
            async with session.get(url + path) as answer:
                assert answer.status == 200
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                async with session.request(method, url + path) as answer:
                    assert answer.status == 405
            async with session.get(url + path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 421
        async with session.head(f"{url}page/stream") as answer:
            assert answer.status == 405


async def test_those_that_wait_for_a_daemon_that_begins_are_bounded_too() -> None:
    """They would take all connections of the listener, and with them its `/healthz`."""
    async with listener(has_page=True) as url, AsyncExitStack() as waiting:
        session = await waiting.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        asks = [asyncio.create_task(session.get(f"{url}page/stream")) for _ in range(MOST_VIEWERS + 1)]
        async with asyncio.timeout(60):
            done, begun = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status for task in done] == [503]
        for task in begun:
            task.cancel()
        async with session.get(f"{url}healthz") as answer:
            assert answer.status == 200


async def head(reader: Reader) -> bytes:
    async with asyncio.timeout(60):
        return await reader.readuntil(b"\r\n\r\n")


async def message(reader: Reader, event: str) -> Any:
    """The data of the next message of this kind."""
    wanted = False
    async with asyncio.timeout(60):
        while True:
            line = await reader.readline()
            assert line, "the connection was closed"
            if line.startswith(b"event: "):
                wanted = line == f"event: {event}\n".encode()
            elif wanted and line.startswith(b"data: "):
                return json.loads(line[6:])


async def test_viewers_are_bounded_and_one_more_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room again as soon as one has left."""
    monkeypatch.setattr(page_feed, "_STATE_S", 3600)  # All see the first look, however long they take to come.
    async with site() as it:
        viewers = [await it.open() for _ in range(MOST_VIEWERS)]
        for reader, _ in viewers:
            assert b" 200 OK" in await head(reader)
        one_more, writer = await it.open()
        refused = await head(one_more)
        assert b" 503 " in refused
        assert b"Retry-After: 10" in refused
        assert b"16 pages are open already" in await one_more.readline()
        viewers[0][1].close()
        async with asyncio.timeout(60):
            while True:
                again, further = await it.open()
                if b" 200 OK" in await head(again):
                    break
                further.close()
        for reader, _ in viewers[1:]:
            assert (await message(reader, "state"))["number"] == 1
    for each in (writer, further, *(of_one for _, of_one in viewers)):
        each.close()
        with suppress(ConnectionError):
            await each.wait_closed()


async def test_a_slow_viewer_is_cut_the_others_lose_nothing_and_it_may_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it takes nothing it is cut, and what it has not had it gets when it comes again."""
    monkeypatch.setattr(page, "_SLOW_S", 2.0)  # Who is not slow may be held up with us.
    monkeypatch.setattr(page_feed, "_STATE_S", 0.01)
    monkeypatch.setattr(page_feed, "_STATE_TAKES", 0)
    monkeypatch.setattr(page_feed, "_GAP_S", -0.2)  # The next tick of all, and at once.
    async with site() as it:
        it.note("replica.seen", service="chat", replica="r1")
        _, slow_writer = await it.open(limit=4096)
        quick, quick_writer = await it.open()
        last = (await message(quick, "events"))["events"][-1]["seq"]
        it.filling = "x" * 100_000
        numbers: list[int] = []
        async with asyncio.timeout(60):
            while not numbers or len(it.feed._viewers) == 2:
                numbers.append((await message(quick, "patch"))["number"])
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        it.note("replica.serving", service="chat", replica="r1")
        again, again_writer = await it.open(f"Last-Event-ID: {last}\r\n")
        assert [each["event"] for each in (await message(again, "events"))["events"]] == ["replica.serving"]
        for writer in (slow_writer, quick_writer, again_writer):
            writer.close()
