"""The live page: a view of the gateway for people, read-only, on the metrics listener.

It is made of three files that come with the package (`share/page`), without a framework. Its headers let a browser run
nothing else and ask nobody else, whatever the names and reasons say that it shows.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from functools import partial
from importlib.resources import files

import orjson
from aiohttp import web

from gateway_sidecar.api import view
from gateway_sidecar.api.page_feed import MOST_VIEWERS, Feed, TooManyViewers
from gateway_sidecar.api.page_view import event_meanings, page_document
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.journal import JOURNAL

_SLOW_S = 10.0
"""A viewer that takes nothing for so long is cut."""
_GONE_MS = 30_000
"""A viewer's machine that acknowledges nothing for so long, such as a phone without a network, is gone."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES = {
    "/": ("page.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}
_FULL = (
    f"{MOST_VIEWERS} pages are open already, and the gateway tells no more at the same time; close one of them, "
    "or use `gateway-sidecar status --watch`\n"
)


def feed_of(daemon: Daemon) -> Feed:
    """What the daemon tells of itself."""
    tasks = Tasks("-", daemon.metrics)
    return Feed(lambda: page_document(view.status(daemon)), daemon.last_hour.history, JOURNAL, tasks)


def add_page(app: web.Application, feed: Feed, taken_up: asyncio.Event) -> None:
    """Serves the page at `/`, and what it asks for below `/page/`.

    taken_up: set once the daemon knows what an earlier one left: before, all looks empty.
    """
    share = files("gateway_sidecar").joinpath("share", "page")
    for path, (name, kind) in _FILES.items():
        app.router.add_get(path, partial(_file, share.joinpath(name).read_bytes(), kind))
    app.router.add_get("/page/events.json", partial(_file, orjson.dumps(event_meanings()), "application/json"))

    waiting = asyncio.Semaphore(MOST_VIEWERS)

    async def stream(request: web.Request) -> web.StreamResponse:
        if waiting.locked():
            return _full()
        async with waiting:
            await taken_up.wait()
        return await follow(feed, request)

    async def close(_app: web.Application) -> None:
        await feed.close()

    app.router.add_get("/page/stream", stream, allow_head=False)
    app.on_shutdown.append(close)


async def follow(feed: Feed, request: web.Request) -> web.StreamResponse:
    """Tells one viewer, until it leaves, is too slow, or the listener closes."""
    transport = request.transport
    after = request.headers.get("Last-Event-ID", "")
    known = int(after) if re.fullmatch("[0-9]{1,18}", after, re.ASCII) else None
    if transport is None:
        return web.Response()  # To nobody: the client has left.
    try:
        viewer, news = feed.begin(known, transport.is_closing)
    except TooManyViewers:
        return _full()
    with suppress(OSError):  # It has just been closed.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
    response = web.StreamResponse(headers={**_HEADERS, "X-Accel-Buffering": "no"})  # An nginx in between passes it on.
    response.content_type = "text/event-stream"
    try:
        await response.prepare(request)
        next_news: bytes | None = news
        while next_news is not None:
            async with within(_SLOW_S):
                await response.write(next_news)
            next_news = await viewer.news()
        if not feed.is_closed:
            transport.abort()
        else:
            await response.write_eof()
    except (ConnectionError, TimeoutError):  # It has left, or takes nothing.
        transport.abort()
    finally:
        await feed.end(viewer)
    return response


def _full() -> web.Response:
    return web.Response(status=503, text=_FULL, headers={**_HEADERS, "Retry-After": "10"})


async def _file(body: bytes, kind: str, _request: web.Request) -> web.Response:
    return web.Response(body=body, content_type=kind, charset="utf-8", headers=_HEADERS)
