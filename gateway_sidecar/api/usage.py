"""What clients have used, for the admin API."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping

from aiohttp import web

from gateway_sidecar.api import models
from gateway_sidecar.api.answers import DAEMON, Refused, check_query, json_text
from gateway_sidecar.control.state.usage_store import HOUR_S, Asked, Change
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import StateError
from gateway_sidecar.frontend.certificate import today

_AGO = re.compile(r"([0-9]{1,6})([hdw])")
_DEFAULT_SINCE = "24h"
_LAST_S = 253402297200.0
"""The last hour that has a date."""
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


async def show_usage(request: web.Request) -> web.Response:
    """Each service, key and model, with what was used of it."""
    check_query(request, "since", "until", "service", "key", "model")
    now = today()
    asked = asked_in(request.query, now)
    try:
        found = await request.app[DAEMON].shared.usage.usage(asked)
    except StateError as error:
        raise Refused(503, error=str(error)) from error
    answer: models.Usage = {
        "since": _said(asked.first_hour * HOUR_S),
        "until": _said(now if asked.end_hour is None else asked.end_hour * HOUR_S),
        "rows": [_row(change) for change in found],
    }
    return web.json_response(answer, dumps=json_text)


def asked_in(query: Mapping[str, str], now: float) -> Asked:
    """What a query asks for. Raises Refused."""
    if query.get("service") == "":
        raise Refused(400, error="service: is empty; name a service or a shared address, or leave it out")
    since, until = _moment("since", query.get("since", _DEFAULT_SINCE), now), None
    if since > now:
        raise Refused(
            400, error=f"since: {_shown(query, 'since')} is in the future; use a time before now, such as 24h"
        )
    first = math.floor(since / HOUR_S)
    if "until" in query:
        until = _moment("until", query["until"], now)
        if until <= first * HOUR_S:
            raise Refused(400, error=_not_after(query))
    return Asked(
        first_hour=first,
        end_hour=None if until is None else math.ceil(until / HOUR_S),
        service=query.get("service", ""),
        key=query.get("key"),
        model=query.get("model"),
    )


def _not_after(query: Mapping[str, str]) -> str:
    until = f"until: {_shown(query, 'until')} is not after since"
    if "since" in query:
        return f"{until}, {_shown(query, 'since')}; use a later until, or an earlier since"
    return f"{until}, which is {_DEFAULT_SINCE} ago if it is not given; give an earlier since as well"


def _shown(query: Mapping[str, str], name: str) -> str:
    return f"'{printable(query[name], 100)}'"


def _moment(name: str, text: str, now: float) -> float:
    """Seconds since 1970. Raises Refused."""
    if (ago := _AGO.fullmatch(text)) is not None:
        return max(0.0, now - int(ago[1]) * _HOURS[ago[2]] * HOUR_S)
    try:
        at = datetime.datetime.fromisoformat(text)
        return min(max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()), _LAST_S)
    except (ValueError, OverflowError):
        shown = _shown({name: text}, name)
        raise Refused(
            400, error=f"{name}: {shown} is no time; use 24h, 7d, 4w, 2026-11-01 or 2026-11-01T12:00Z"
        ) from None


def _said(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _row(change: Change) -> models.UsageRow:
    key, usage = change
    return {
        "frontend": key.frontend,
        "service": key.service,
        "key": key.key,
        "model": key.model,
        "requests": usage.requests,
        "refused": usage.refused,
        "failed": usage.failed,
        "aborted": usage.aborted,
        "streams": usage.streams,
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "unknown": usage.unknown,
    }
