"""The waiting room's door: a small HTTP server on a Unix socket that only nginx talks to.

`X-Accel-Redirect: @router` makes nginx send the original request, body and all, to the router.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from gateway_sidecar.control.daemon import Daemon
from gateway_sidecar.control.waiting_room import Answer, Verdict

_DAEMON = web.AppKey("daemon", Daemon)
_STATUS = {Verdict.FULL: 503, Verdict.TOO_LONG: 503, Verdict.LOST: 502}


async def serve_hold(daemon: Daemon, path: Path) -> web.AppRunner:
    """Listens on `path`; the caller cleans the runner up. A client that leaves stops waiting."""
    app = web.Application()
    app[_DAEMON] = daemon
    app.router.add_route("*", "/{path:.*}", _hold)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path), backlog=4096).start()
    path.chmod(0o660)
    return runner


async def _hold(request: web.Request) -> web.Response:
    service = request.app[_DAEMON].services.get(request.headers.get("X-Service", ""))
    if service is None:
        return _error(Answer(Verdict.FULL, "There is no such service."))
    # nginx writes the time that connecting took, and `-` where it came to no connection.
    connected = request.headers.get("X-Router-Connected", "").rsplit(",", 1)[-1].strip()
    answer = await service.room.wait(accepted=connected not in ("", "-"))
    if answer.verdict is Verdict.GO_ON:
        return web.Response(headers={"X-Accel-Redirect": "@router"})
    return _error(answer)


def _error(answer: Answer) -> web.Response:
    code = "router_lost" if answer.verdict is Verdict.LOST else "router_unavailable"
    body = {"error": {"message": answer.message, "type": "server_error", "code": code, "param": None}}
    return web.json_response(body, status=_STATUS[answer.verdict], headers={"Retry-After": str(answer.retry_after_s)})
