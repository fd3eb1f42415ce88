"""Where requests wait: a small HTTP server on a Unix socket that only nginx talks to.

`X-Accel-Redirect: @router` makes nginx send the original request, body and all, to the router. A shared address has
several such locations, and says in `X-Return-To` which of them a request came for.
"""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web

from gateway_sidecar.api.bounded_server import BoundedServer
from gateway_sidecar.api.unix_server import UnixServer
from gateway_sidecar.control.hold.queue import Answer, History, Verdict
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.client_headers import WAITED
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, survived

_DAEMON = web.AppKey("daemon", Daemon)
_FAULT = Answer(Verdict.FULL, "The gateway made a mistake with this request; try again.", "gateway_fault")
_STATUS = {Verdict.FULL: 503, Verdict.TOO_LONG: 503, Verdict.LOST: 502, Verdict.UNREADABLE: 502}


async def serve_hold(daemon: Daemon, path: Path) -> UnixServer:
    """Listens on `path`; the caller closes it. A client that leaves stops waiting."""
    app = web.Application()
    app[_DAEMON] = daemon
    app.router.add_route("*", "/{path:.*}", _hold)
    # As many as may wait: the hold itself has a bound for each service, and nginx alone connects.
    server = UnixServer(
        BoundedServer(app, Tasks("-", daemon.metrics), most=None, handler_cancellation=True), path, backlog=4096
    )
    await server.open()
    return server


async def _hold(request: web.Request) -> web.Response:
    service = request.app[_DAEMON].services.get(request.headers.get("X-Service", ""))
    if service is None:
        return _error(Answer(Verdict.FULL, "There is no such service.", "no_service"))
    with survived(service.name, _wait.__qualname__, request.app[_DAEMON].metrics):
        return await _wait(request, service)
    service.hold_policy.decide()
    return _error(_FAULT)


async def _wait(request: web.Request, service: Service) -> web.Response:
    so_far = read_history(*(request.headers.get(f"X-Router-{it}", "") for it in ("Connected", "Took", "Said")))
    began = awake.monotonic()
    response = await _wait_on(request, service, so_far)
    # Over all its visits; for nginx's access log, and for no client.
    response.headers[WAITED] = f"{so_far.waited_s + awake.monotonic() - began:.3f}"
    return response


async def _wait_on(request: web.Request, service: Service, so_far: History) -> web.Response:
    asleep = None if so_far.tries else _while_asleep(request, service)
    if asleep is not None:
        return asleep
    only_asks = _only_asks(request)
    repeatable = only_asks or request.path in ROUTERS[service.router.kind].paths_of(service.settings).repeatable
    alone = service.router.is_nginx
    answer = await service.hold.wait(
        so_far,
        only_for_router=only_asks and not alone,
        repeatable=repeatable,
        alone=alone,
        model=request.headers.get("X-Model", ""),
    )
    if answer.verdict is Verdict.GO_ON:
        return _while_asleep(request, service) or _on_to_router(request)
    return _error(answer)


def read_history(connected: str, took: str, said: str = "") -> History:
    """What nginx reports of a request: the times to connect and to answer, and the bytes of the answer, at each place
    it was sent to. Places stand in order, separated by colons; the last is a router, the one before it the hold, and so
    on. Several visits to the hold in a row, after the daemon ended, are separated by commas. A `-` stands where no
    connection was made; nginx, where it is the router, may try several engines in one visit.
    """
    if not connected:
        return History()
    places = [place.strip() for place in connected.split(" : ")]
    times = [place.split(",") for place in took.split(" : ")]
    waits = [float(text) for here in times[-2::-2] for text in here if re.fullmatch(r" *[0-9.]+ *", text)]
    took_it = [any(it.strip() != "-" for it in place.split(",")) for place in places[-1::-2]]
    return History(
        tries=len(took_it),
        accepted=took_it[0],
        lost=sum(took_it),
        answered=said.rpartition(":")[2].rpartition(",")[2].strip() not in ("", "-", "0"),
        released=len(places[-2::-2]),
        waited_s=sum(waits),
    )


def _only_asks(request: web.Request) -> bool:
    """Whether it needs a router and no replica."""
    return request.method in ("GET", "HEAD", "OPTIONS") and not request.headers.get("X-Request-Upgrade")


def _while_asleep(request: web.Request, service: Service) -> web.Response | None:
    """The answer to a request that needs no replica, while none serves: those that only ask do not wait."""
    if service.hold.missing in (None, Missing.ROUTER) or not _only_asks(request):
        return None
    if service.settings.engine == "http" or (request.path != "/v1/models" and service.router.is_nginx):
        return None
    if request.path != "/v1/models":
        return _on_to_router(request)
    models = [
        {"id": model, "object": "model", "created": 0, "owned_by": "gateway-sidecar", "status": "asleep"}
        for model in service.hold_policy.models
    ]
    return web.json_response({"object": "list", "data": models})


def _on_to_router(request: web.Request) -> web.Response:
    return web.Response(headers={"X-Accel-Redirect": request.headers.get("X-Return-To", "@router")})


def _error(answer: Answer) -> web.Response:
    body = {"error": {"message": answer.message, "type": "server_error", "code": answer.code, "param": None}}
    return web.json_response(body, status=_STATUS[answer.verdict], headers={"Retry-After": str(answer.retry_after_s)})
