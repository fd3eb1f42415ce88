"""The control API of a running fleet: small JSON over HTTP on a Unix socket.

    POST   /engines                  start one, or `count` of them: {"kind": "vllm-grpc", "socket": ...}
    GET    /engines                  all of them, with counters
    GET    /engines/NAME             one, with its behaviour and counters
    GET    /engines/NAME/requests    the last inference requests as they came in
    PATCH  /engines/NAME             change behaviour: {"hang": true, "lie": null}
    DELETE /engines/NAME             stop; ?grace_s=0 &unlink=false &kill=true

Errors are `{"error": ...}` with 400 (wrong settings), 404 (no such engine) or 409 (cannot bind).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from examples.simulated import sockets
from examples.simulated.engine import SimulatedEngine
from examples.simulated.fleet import Fleet, expanded

FLEET: web.AppKey[Fleet] = web.AppKey("fleet", Fleet)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Stop(BaseModel):
    """The query of a DELETE."""

    model_config = ConfigDict(extra="forbid")

    grace_s: float | None = None
    unlink: bool | None = None
    kill: bool = False


async def serve_control(fleet: Fleet, path: Path) -> web.AppRunner:
    """Serve the control API on a Unix socket until the runner's `cleanup`.

    Raises:
        OSError: the socket cannot be bound.
    """
    app = web.Application(middlewares=[_explain])
    app[FLEET] = fleet
    app.router.add_get("/engines", _list)
    app.router.add_post("/engines", _start)
    app.router.add_get("/engines/{name}", _show)
    app.router.add_patch("/engines/{name}", _change)
    app.router.add_delete("/engines/{name}", _stop)
    app.router.add_get("/engines/{name}/requests", _requests)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sockets.bind(path)).start()
    return runner


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except KeyError as missing:
        return web.json_response({"error": f"there is no engine named {missing}"}, status=404)
    except ValueError as wrong:
        return web.json_response({"error": str(wrong)}, status=400)
    except OSError as refused:
        return web.json_response({"error": str(refused)}, status=409)


async def _list(request: web.Request) -> web.Response:
    return web.json_response({"engines": [engine.as_dict() for engine in request.app[FLEET]]})


async def _start(request: web.Request) -> web.Response:
    fleet = request.app[FLEET]
    settings = await _object(request)
    started = await asyncio.gather(*[fleet.start(each) for each in expanded(settings)])
    return web.json_response({"engines": [engine.as_dict() for engine in started]}, status=201)


async def _show(request: web.Request) -> web.Response:
    return web.json_response(_in_full(_engine(request)))


async def _change(request: web.Request) -> web.Response:
    engine = _engine(request)
    engine.behave(**await _object(request))
    return web.json_response(_in_full(engine))


async def _stop(request: web.Request) -> web.Response:
    wish = _Stop.model_validate(dict(request.query))
    name = request.match_info["name"]
    if wish.kill:
        await request.app[FLEET].kill(name)
    else:
        await request.app[FLEET].stop(name, grace_s=wish.grace_s, unlink=wish.unlink)
    return web.Response(status=204)


async def _requests(request: web.Request) -> web.Response:
    seen = _engine(request).ledger.requests
    return web.json_response({"requests": [{"call": each.call, "body": each.body} for each in seen]})


def _engine(request: web.Request) -> SimulatedEngine:
    return request.app[FLEET][request.match_info["name"]]


def _in_full(engine: SimulatedEngine) -> dict[str, Any]:
    return {**engine.as_dict(), "behaviour": asdict(engine.behaviour)}


async def _object(request: web.Request) -> dict[str, Any]:
    body = json.loads(await request.read())
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004  (the caller's mistake, a 400)
    return body
