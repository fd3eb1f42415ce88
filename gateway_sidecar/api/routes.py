"""The admin API: status, fleet, plan, signals, usage, events, drain, resume, reload, router restart, store accept,
leave, join and stop; replicas put and deleted; and keys of the store.

Everyone who may open the socket may use all of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway_sidecar.api import models, view
from gateway_sidecar.api.answers import DAEMON, Refused, as_json, check_query, json_text, seconds_in, service_in
from gateway_sidecar.api.bounded_server import BoundedServer
from gateway_sidecar.api.events import end_followers, list_events
from gateway_sidecar.api.explained import explain_replica
from gateway_sidecar.api.fleet import show_fleet, show_fleet_usage
from gateway_sidecar.api.openapi import describe_api
from gateway_sidecar.api.reload_view import reload_plan
from gateway_sidecar.api.replicas import (
    MOST_BYTES,
    delete_replica,
    drained_view,
    get_replica,
    list_replicas,
    put_replica,
    unknown_replica,
)
from gateway_sidecar.api.signals_view import signals_view
from gateway_sidecar.api.stored_certificates import list_stored_certificates, put_stored_certificate
from gateway_sidecar.api.stored_keys import list_stored_keys, put_stored_key
from gateway_sidecar.api.unix_server import UnixServer
from gateway_sidecar.api.usage import show_usage
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.shutdown import DEFAULT_STOP_S
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import ConfigError, LeaveError, NotInForce, RouterUnavailable, StoreError
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import own_children, peer_of


def admin_app(daemon: Daemon) -> web.Application:
    """The API itself, wherever it listens."""
    app = web.Application(middlewares=[as_json, _once_it_knows], client_max_size=MOST_BYTES)
    app[DAEMON] = daemon
    app.on_shutdown.append(end_followers)
    for (method, path), handler in ROUTES.items():
        app.router.add_route(method, path, handler)
    return app


async def serve_admin(daemon: Daemon, run_dir: Path, state_dir: Path) -> UnixServer:
    """Listens on `admin.sock` in run_dir; the caller closes it.

    Nothing that the daemon started is answered. A replica's socket that is replaced by a link to this one, after it was
    judged and before the next look, leads nginx here, and clients with it.
    """
    is_own_child = own_children(run_dir, state_dir)

    @web.middleware
    async def from_people(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        peer = 0 if transport is None else peer_of(transport.get_extra_info("socket"))
        if peer != os.getpid() and is_own_child(peer):
            raise Refused(403, error="the daemon's child processes may not use the admin API")
        return await handler(request)

    app = admin_app(daemon)
    app.middlewares.insert(1, from_people)
    server = UnixServer(BoundedServer(app, Tasks("-", daemon.metrics)), run_dir / "admin.sock")
    await server.open()
    return server


@web.middleware
async def _once_it_knows(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A daemon that has just started answers once it has adopted what an earlier one left: before, all looks empty."""
    await request.app[DAEMON].taken_up.wait()
    return await handler(request)


async def _openapi(_request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(describe_api))


async def _status(request: web.Request) -> web.Response:
    return web.json_response(view.status(request.app[DAEMON]), dumps=json_text)


async def _plan(request: web.Request) -> web.Response:
    daemon = request.app[DAEMON]
    await daemon.file.look()
    return web.json_response(models.Plan(actions=view.plan(daemon), reload=await reload_plan(daemon)))


async def _signals(request: web.Request) -> web.Response:
    daemon, name = request.app[DAEMON], service_in(request).name
    signals = daemon.signals.of.get(name)
    if signals is None:
        raise Refused(503, error=f"service '{name}' has no measurements yet; ask again in a second")
    return web.json_response(signals_view(signals, daemon.signals.events_problem))


async def _reload(request: web.Request) -> web.Response:
    try:
        changes = await request.app[DAEMON].reload()
    except ConfigError as error:
        raise Refused(422, error="the configuration was refused", problems=error.problems) from error
    except NotInForce as error:
        raise Refused(
            503, error="not all of the configuration is in force", problems=error.problems, changes=error.changes
        ) from error
    return web.json_response(models.Reloaded(changes=changes))


async def _accept_store(request: web.Request) -> web.Response:
    check_query(request, "refill")
    refill = request.query.get("refill", "false")
    if refill not in ("true", "false"):
        raise Refused(400, error=f"refill: '{refill}' is neither true nor false")
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    try:
        return web.json_response(models.Accepted(changed=await fleet.reflector.accept(refill=refill == "true")))
    except ValueError as error:
        raise Refused(409, error=f"{error}; there is nothing to accept") from error
    except StoreError as error:
        raise Refused(503, error=f"the store cannot be written: {error}") from error


async def _stop(request: web.Request) -> web.Response:
    timeout_s = seconds_in(request, "timeout_s", DEFAULT_STOP_S)
    stop_all = request.query.get("all") == "true"
    request.app[DAEMON].end(stop_all=stop_all, timeout_s=timeout_s, by_command=True)
    return web.json_response(models.Stopped(pid=os.getpid()), status=202)


async def _leave(request: web.Request) -> web.Response:
    daemon = request.app[DAEMON]
    timeout_s = seconds_in(request, "timeout_s", 0.0) if "timeout_s" in request.query else None
    try:
        await daemon.leaving.start(timeout_s)
    except LeaveError as error:
        raise Refused(503, error=str(error)) from error
    daemon.leaving.note_reader()
    return web.json_response(view.leave(daemon), status=202)


async def _leaving(request: web.Request) -> web.Response:
    request.app[DAEMON].leaving.note_reader()
    return web.json_response(view.leave(request.app[DAEMON]))


async def _join(request: web.Request) -> web.Response:
    try:
        joined = await request.app[DAEMON].leaving.join()
    except LeaveError as error:
        raise Refused(409, error=str(error)) from error
    return web.json_response(models.Joined(joined=joined))


async def _restart_router(request: web.Request) -> web.Response:
    service = service_in(request)
    began = time.monotonic()
    try:
        await service.slots.replace()
    except RouterUnavailable as error:
        raise Refused(409, error=str(error)) from error
    took_s = round(time.monotonic() - began, 3)
    return web.json_response(models.Restarted(pid=service.router.pid, took_s=took_s))


async def _before_drain(request: web.Request) -> web.Response:
    service, replica = service_in(request), ReplicaId(request.match_info["replica"])
    try:
        return web.json_response(models.Unanswered(unanswered=service.drains.unanswered_without(replica)))
    except KeyError:
        raise unknown_replica(service, replica) from None


async def _drain(request: web.Request) -> web.Response:
    service, replica = service_in(request), ReplicaId(request.match_info["replica"])
    timeout_s = seconds_in(request, "timeout_s", service.settings.drain.timeout_s)
    await service.look_again()  # Meant is who is there now, and not who left a moment ago.
    fleet = request.app[DAEMON].shared.fleet if service.drains.is_for_fleet(replica) else None
    try:
        if fleet is None:
            report = await service.drains.drain(replica, timeout_s)
        else:
            report = await fleet.drains.drain(service.drains, replica, timeout_s, service.until)
    except KeyError:
        raise unknown_replica(service, replica) from None
    await request.app[DAEMON].flush_leases()
    return web.json_response(drained_view(report), status=200 if report.drained else 504)


async def _resume(request: web.Request) -> web.Response:
    service, replica = service_in(request), ReplicaId(request.match_info["replica"])
    fleet = request.app[DAEMON].shared.fleet if service.drains.is_for_fleet(replica) else None
    try:
        if fleet is not None:
            await fleet.drains.take_back(service.drains, replica)
        service.drains.resume(replica)
    except StoreError as error:
        raise Refused(503, error=f"nothing was changed, the other gateways could not be told: {error}") from error
    except KeyError:
        raise unknown_replica(service, replica) from None
    await request.app[DAEMON].flush_leases()
    return web.json_response(models.Resumed(resumed=True))


_SERVICE = "/v1/services/{service}"
_REPLICA = f"{_SERVICE}/replicas/{{replica}}"
ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/v1/openapi.json"): _openapi,
    ("GET", "/v1/status"): _status,
    ("GET", "/v1/plan"): _plan,
    ("GET", "/v1/events"): list_events,
    ("GET", "/v1/usage"): show_usage,
    ("GET", "/v1/fleet"): show_fleet,
    ("GET", "/v1/fleet/usage"): show_fleet_usage,
    ("POST", "/v1/reload"): _reload,
    ("POST", "/v1/stop"): _stop,
    ("POST", "/v1/store/accept"): _accept_store,
    ("GET", "/v1/store/keys"): list_stored_keys,
    ("PUT", "/v1/store/keys/{key}"): put_stored_key,
    ("GET", "/v1/store/certificates"): list_stored_certificates,
    ("PUT", "/v1/store/certificates/{certificate}"): put_stored_certificate,
    ("GET", "/v1/leave"): _leaving,
    ("POST", "/v1/leave"): _leave,
    ("POST", "/v1/join"): _join,
    ("GET", f"{_SERVICE}/signals"): _signals,
    ("POST", f"{_SERVICE}/router/restart"): _restart_router,
    ("GET", f"{_SERVICE}/replicas"): list_replicas,
    ("GET", _REPLICA): get_replica,
    ("PUT", _REPLICA): put_replica,
    ("DELETE", _REPLICA): delete_replica,
    ("GET", f"{_REPLICA}/explain"): explain_replica,
    ("GET", f"{_REPLICA}/drain"): _before_drain,
    ("POST", f"{_REPLICA}/drain"): _drain,
    ("POST", f"{_REPLICA}/resume"): _resume,
}
"""Method and path -> who answers. `openapi.py` describes just these."""
