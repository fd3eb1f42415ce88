"""The lies that an HTTP answer can be: too much, nonsense, somewhere else, half, nobody's, or very slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from examples.simulated.options import Lie

HUGE_BYTES = 64 * 1024 * 1024
GARBAGE = bytes(range(128, 256)) * 4
DRIP_INTERVAL_S = 1.0
WELCOME_PAGE = """<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>The web server is successfully installed and working.</p></body></html>
"""
JSON_TYPE = {"Content-Type": "application/json"}

Teller = Callable[[web.BaseRequest, bytes], Awaitable[web.StreamResponse]]


async def _huge(request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=JSON_TYPE)
    response.content_length = HUGE_BYTES
    await response.prepare(request)
    block = b"[" * 65536
    for _ in range(HUGE_BYTES // len(block)):
        await response.write(block)
    await response.write_eof()
    return response


async def _endless(request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=JSON_TYPE)
    await response.prepare(request)
    await response.write(b"[0")
    while True:
        await response.write(b",0" * 4096)
        await asyncio.sleep(0)


async def _empty(_request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    return web.Response()


async def _garbage(_request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    return web.Response(body=GARBAGE, headers=JSON_TYPE)


async def _redirect(request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": f"/again{request.path}"})


async def _truncated(request: web.BaseRequest, truth: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=JSON_TYPE)
    response.content_length = max(len(truth), 64)
    await response.prepare(request)
    await response.write(truth[: len(truth) // 2] or b"{")
    if request.transport is not None:
        request.transport.close()
    return response


async def _not_an_engine(_request: web.BaseRequest, _truth: bytes) -> web.StreamResponse:
    return web.Response(text=WELCOME_PAGE, content_type="text/html", headers={"Server": "nginx"})


async def _slow_drip(request: web.BaseRequest, truth: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=JSON_TYPE)
    response.content_length = len(truth)
    await response.prepare(request)
    for position in range(len(truth)):
        await response.write(truth[position : position + 1])
        await asyncio.sleep(DRIP_INTERVAL_S)
    await response.write_eof()
    return response


TELLERS: Mapping[Lie | None, Teller] = {
    Lie.HUGE: _huge,
    Lie.ENDLESS: _endless,
    Lie.EMPTY: _empty,
    Lie.GARBAGE: _garbage,
    Lie.REDIRECT: _redirect,
    Lie.TRUNCATED: _truncated,
    Lie.NOT_AN_ENGINE: _not_an_engine,
    Lie.SLOW_DRIP: _slow_drip,
}
"""Each is given the request and the truth, and answers it with its lie."""
