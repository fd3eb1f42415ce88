"""The admin API on a Unix socket: status, plan, signals, drain, resume, reload, router restart, stop.

Who may open the socket may do all of it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway_sidecar.admin import view
from gateway_sidecar.admin.signals_view import signals_view
from gateway_sidecar.control.daemon import DEFAULT_STOP_S, Daemon
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import ConfigError, RouterUnavailable

_DAEMON = web.AppKey("daemon", Daemon)
_LONGEST_DRAIN_S = 86400.0


async def serve_admin(daemon: Daemon, path: Path) -> web.AppRunner:
    """Listens on `path` (mode 0660); the caller cleans the runner up."""
    app = web.Application(middlewares=[_once_it_knows])
    app[_DAEMON] = daemon
    app.router.add_get("/v1/status", _status)
    app.router.add_get("/v1/plan", _plan)
    app.router.add_get("/v1/services/{service}/signals", _signals)
    app.router.add_post("/v1/reload", _reload)
    app.router.add_post("/v1/stop", _stop)
    app.router.add_post("/v1/services/{service}/router/restart", _restart_router)
    app.router.add_post("/v1/services/{service}/replicas/{replica}/drain", _drain)
    app.router.add_post("/v1/services/{service}/replicas/{replica}/resume", _resume)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    path.unlink(missing_ok=True)
    await web.UnixSite(runner, str(path)).start()
    path.chmod(0o660)
    return runner


@web.middleware
async def _once_it_knows(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A daemon that has just begun answers when it has taken up what an earlier one left: before, all looks empty."""
    await request.app[_DAEMON].taken_up.wait()
    return await handler(request)


def _problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


async def _status(request: web.Request) -> web.Response:
    return web.json_response(view.status(request.app[_DAEMON]))


async def _plan(request: web.Request) -> web.Response:
    return web.json_response({"actions": view.plan(request.app[_DAEMON])})


async def _signals(request: web.Request) -> web.Response:
    daemon, name = request.app[_DAEMON], request.match_info["service"]
    if name not in daemon.services:
        return _unknown_service(request)
    signals = daemon.signals.of.get(name)
    if signals is None:
        return _problem(503, f"nothing has been measured of service '{name}' yet; ask again in a second")
    return web.json_response(signals_view(signals, daemon.signals.events_problem))


async def _reload(request: web.Request) -> web.Response:
    try:
        changes = await request.app[_DAEMON].reload()
    except ConfigError as error:
        return web.json_response({"error": "the configuration was refused", "problems": error.problems}, status=422)
    return web.json_response({"changes": changes})


async def _stop(request: web.Request) -> web.Response:
    text = request.query.get("timeout_s", str(DEFAULT_STOP_S))
    timeout_s = _seconds(text)
    if timeout_s is None:
        return _bad_timeout(text)
    request.app[_DAEMON].ended_by_command = True
    request.app[_DAEMON].end(stop_all=request.query.get("all") == "true", timeout_s=timeout_s)
    return web.json_response({"pid": os.getpid()}, status=202)


async def _restart_router(request: web.Request) -> web.Response:
    service = request.app[_DAEMON].services.get(request.match_info["service"])
    if service is None:
        return _unknown_service(request)
    began = time.monotonic()
    try:
        await service.slots.replace()
    except RouterUnavailable as error:
        return _problem(409, str(error))
    return web.json_response({"pid": service.router.pid, "took_s": round(time.monotonic() - began, 3)})


async def _drain(request: web.Request) -> web.Response:
    service = request.app[_DAEMON].services.get(request.match_info["service"])
    if service is None:
        return _unknown_service(request)
    text = request.query.get("timeout_s", str(service.settings.drain.timeout_s))
    timeout_s = _seconds(text)
    if timeout_s is None:
        return _bad_timeout(text)
    try:
        report = await service.drain(ReplicaId(request.match_info["replica"]), timeout_s)
    except KeyError:
        return _unknown_replica(request)
    return web.json_response(
        {
            "drained": report.drained,
            "in_flight": report.in_flight,
            "took_s": round(report.took_s, 3),
            "missed": list(report.missed),
        },
        status=200 if report.drained else 504,
    )


async def _resume(request: web.Request) -> web.Response:
    service = request.app[_DAEMON].services.get(request.match_info["service"])
    if service is None:
        return _unknown_service(request)
    try:
        service.resume(ReplicaId(request.match_info["replica"]))
    except KeyError:
        return _unknown_replica(request)
    return web.json_response({"resumed": True})


def _seconds(text: str) -> float | None:
    """A time that is allowed; None for any other text."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST_DRAIN_S else None


def _bad_timeout(text: str) -> web.Response:
    return _problem(400, f"timeout_s: '{text}' is not a number of seconds from 0 to {_LONGEST_DRAIN_S:.0f}")


def _unknown_service(request: web.Request) -> web.Response:
    names = ", ".join(sorted(request.app[_DAEMON].services)) or "none"
    return _problem(404, f"no service '{request.match_info['service']}'; there are: {names}")


def _unknown_replica(request: web.Request) -> web.Response:
    name, replica = request.match_info["service"], request.match_info["replica"]
    service = request.app[_DAEMON].services[name]
    known = sorted(t.replica for t in service.tenures.values() if not t.gone)
    shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "") or "none"
    return _problem(404, f"service '{name}' has no replica '{replica}'; there are: {shown}")
