"""Who follows events over a real socket: a slow reader loses nothing of others, and is cut with a clear word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from gateway_sidecar.api import events
from gateway_sidecar.api.answers import DAEMON, as_json
from gateway_sidecar.api.bounded_server import BoundedServer
from gateway_sidecar.api.events import MOST_FOLLOWERS, Followers, end_followers, list_events
from gateway_sidecar.api.unix_server import UnixServer
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.journal import RECENT
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.test_journal import Noted

Reader = asyncio.StreamReader


class Site(Noted):
    """A journal that is served. Its events come from the event loop's thread, as most do."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "admin.sock"

    async def ask(self, query: str) -> tuple[Reader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(f"GET /v1/events?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return reader, writer


@asynccontextmanager
async def site(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    made = Site(directory)
    monkeypatch.setattr(events, "FOLLOWERS", Followers(made.journal))
    app = web.Application(middlewares=[as_json])
    app[DAEMON] = cast("Any", SimpleNamespace(services={"chat": None}))
    app.router.add_get("/v1/events", list_events)
    app.on_shutdown.append(end_followers)
    server = UnixServer(BoundedServer(app, Tasks("-", Metrics())), made.path)
    await server.open()
    try:
        yield made
    finally:
        await server.close()


async def head(reader: Reader) -> bytes:
    async with asyncio.timeout(60):
        return await reader.readuntil(b"\r\n\r\n")


async def lines(reader: Reader) -> list[dict[str, Any]]:
    """All that comes until the end of the answer."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while (line := await reader.readline()) not in (b"0\r\n", b""):
            if line.startswith(b"{"):
                found.append(json.loads(line))
    return found


async def test_a_slow_reader_is_cut_with_a_word_and_others_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told where it can go on; one that reads gets each event once, in order."""
    async with site(tmp_path, monkeypatch) as it:
        slow, slow_writer = await it.ask("follow=1")
        quick, quick_writer = await it.ask("follow=1&service=chat")
        await head(slow)
        await head(quick)
        seen: list[int] = []
        for number in range(40):
            for _ in range(RECENT // 16):
                it.note("router.said", service="chat", text="x" * 2000)
            async with asyncio.timeout(60):
                while len(seen) < (number + 1) * (RECENT // 16):
                    line = await quick.readline()
                    seen += [json.loads(line)["seq"]] if line.startswith(b"{") else []
        assert seen == sorted(set(seen))
        told = await lines(slow)
        assert "more than 4096 events behind and is cut off" in told[-1]["error"]
        assert told[-1]["after"] == told[-2]["seq"]
        for writer in (slow_writer, quick_writer):
            writer.close()


async def test_followers_are_bounded_and_end_with_the_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions have room beside them, and none of them keeps the daemon from ending."""
    async with site(tmp_path, monkeypatch) as it:
        followers = [await it.ask("follow=1") for _ in range(MOST_FOLLOWERS)]
        for reader, _ in followers:
            assert b" 200 OK" in await head(reader)
        one_more, writer = await it.ask("follow=1")
        assert b" 503 " in await head(one_more)
        followers[0][1].close()
        async with asyncio.timeout(60):
            while True:
                again, further = await it.ask("follow=1")
                if b" 200 OK" in await head(again):
                    break
                further.close()
    for reader, _ in followers[1:]:
        assert await lines(reader) == []
    for each in (writer, further, *(of_one for _, of_one in followers)):
        each.close()
        with suppress(ConnectionError):
            await each.wait_closed()
