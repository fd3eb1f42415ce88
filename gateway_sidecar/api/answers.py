"""What all handlers of the admin API share: access to the daemon, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Unpack

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway_sidecar.api.models import Error
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.similar import near

DAEMON = web.AppKey("daemon", Daemon)
LONGEST_S = 86400.0  # A day: nobody waits longer for an answer over HTTP.
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")


class Refused(Exception):
    """The request cannot be done; `body` is the answer."""

    def __init__(self, status: int, **body: Unpack[Error]) -> None:
        super().__init__(body["error"])
        self.status = status
        self.body = body


def json_text(body: object) -> str:
    """The status of a thousand replicas takes 0.3 ms, and would take 5 by `json`."""
    try:
        return orjson.dumps(body).decode()
    except orjson.JSONEncodeError:  # A path that is not UTF-8: escaped, it can be sent.
        return json.dumps(body)


@web.middleware
async def as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every no is JSON: ours, and aiohttp's own for what no handler sees."""
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response(refused.body, status=refused.status)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        body: Error = {"error": error.text or error.reason}
        return web.json_response(body, status=error.status, headers=headers)


def service_in(request: web.Request) -> Service:
    """The service that the path names. Raises Refused."""
    services = request.app[DAEMON].services
    service = services.get(request.match_info["service"])
    if service is None:
        raise unknown_service(services, request.match_info["service"])
    return service


def unknown_service(services: Iterable[str], name: str) -> Refused:
    """The answer about an unknown service."""
    return Refused(404, error=f"no service '{name}'; {near(name, services)}")


def check_query(request: web.Request, *names: str) -> None:
    """A parameter that is not known, or stands twice, was meant to do something. Raises Refused."""
    for name in request.query:
        if name not in names:
            raise Refused(400, error=f"'{name}' is not a parameter of this request; use {' and '.join(names)}")
        if len(request.query.getall(name)) > 1:
            raise Refused(400, error=f"{name} is given twice; keep one of them")


def seconds_in(request: web.Request, name: str, default: float) -> float:
    """A time from the query. Raises Refused."""
    text = request.query.get(name)
    if text is None:
        return default
    seconds = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= seconds <= LONGEST_S:
        raise Refused(400, error=f"{name}: '{text}' is not a number of seconds from 0 to {LONGEST_S:.0f}")
    return seconds
