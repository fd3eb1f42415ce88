"""The events of the log over the API: the last of each replica and service, and each one as it is logged.

Who follows reads from the journal at its own pace, so a slow reader holds up nobody and takes no memory. One that is
too far behind, or takes nothing for as long as an answer may take, is cut, and is told where it can go on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable

import orjson
from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused, check_query, unknown_service
from gateway_sidecar.api.bounded_server import ANSWER_S
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.dates import ago_s, seconds_of
from gateway_sidecar.telemetry.journal import JOURNAL, RECENT, Entry, Journal

MOST_FOLLOWERS = 32
"""Of a listener's 512 connections: the rest is for questions."""
BACK = "[0-9]{1,9}[smhd]"
DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"

_PARAMETERS = ("service", "replica", "since", "after", "last", "said", "follow")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOOK_S = 2.0
"""How often it is looked whether a follower has left."""
_PIECE = 256  # A choice: events that are written before others have their turn; one has 4 KB at the most.
_SSE = "text/event-stream"


class Followers:
    """All requests that follow events."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._there: set[asyncio.Event] = set()
        self._ended: set[asyncio.Event] = set()

    def begin(self) -> tuple[asyncio.Event, Callable[[], None]]:
        """One more: what is set when there is news, and what ends it. Raises Refused."""
        if len(self._there) >= MOST_FOLLOWERS:
            raise Refused(503, error=f"{MOST_FOLLOWERS} requests follow events already; end one of them")
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        self._there.add(news)

        def tell() -> None:
            if not news.is_set():
                loop.call_soon_threadsafe(news.set)

        def end() -> None:
            self.journal.unlisten(tell)
            self._there.discard(news)
            self._ended.discard(news)

        self.journal.listen(tell)
        return news, end

    def has_ended(self, news: asyncio.Event) -> bool:
        """Whether the listener closes."""
        return news in self._ended

    def close(self) -> None:
        """The listener closes: all of them end."""
        self._ended |= self._there
        for news in self._there:
            news.set()


FOLLOWERS = Followers(JOURNAL)


async def end_followers(_app: web.Application) -> None:
    """Whoever follows events gets the end of the answer."""
    FOLLOWERS.close()


async def list_events(request: web.Request) -> web.StreamResponse:
    """The events that are asked for; with `follow=1` without end."""
    check_query(request, *_PARAMETERS)
    service, replica = request.query.get("service"), request.query.get("replica")
    if replica is not None and service is None:
        raise Refused(400, error="replica: a replica is one of a service's; say `service`, too")
    follow, said = _flag(request, "follow", "0"), _flag(request, "said", "1")
    since, last = _since(request), _number(request.query.get("last"), "last")
    is_sse = follow == "1" and _SSE in request.headers.get("Accept", "")
    after = _number(request.query.get("after") or (request.headers.get("Last-Event-ID") if is_sse else None), "after")

    def wanted(it: Entry) -> bool:
        return it.concerns(service, replica) and (said == "1" or not it.is_said)

    journal, services = FOLLOWERS.journal, request.app[DAEMON].services
    if service is not None and service not in services and not journal.entries(service):
        raise unknown_service(services, service)
    there = [
        it for it in journal.entries(service, replica, since=since) if (after is None or it.seq > after) and wanted(it)
    ]
    there = there if last is None else there[len(there) - min(last, len(there)) :]
    if follow == "0":
        head, lines = b'{"events":[', b",".join(it.line for it in there)
        return web.Response(body=head + lines + b'],"last":%d}' % journal.last, content_type="application/json")
    return await _follow(request, there, wanted, is_sse=is_sse)


async def _follow(
    request: web.Request, there: Iterable[Entry], concerns: Callable[[Entry], bool], *, is_sse: bool
) -> web.StreamResponse:
    news, end = FOLLOWERS.begin()
    journal, entries, at, lost = FOLLOWERS.journal, list(there), FOLLOWERS.journal.last, False
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = _SSE if is_sse else "application/x-ndjson"
    try:
        await response.prepare(request)
        while not FOLLOWERS.has_ended(news):
            for begin in range(0, len(entries), _PIECE):
                await _write(response, b"".join(_shown(it, is_sse=is_sse) for it in entries[begin : begin + _PIECE]))
            if lost:
                await _write(response, _cut_off(at, is_sse=is_sse))
                break
            if journal.last <= at:
                await awake.until_set(news, _LOOK_S)
            news.clear() if not FOLLOWERS.has_ended(news) else None
            if request.transport is None or request.transport.is_closing():
                break
            fresh, lost = journal.after(at)
            entries = [] if lost else [it for it in fresh if concerns(it)]
            at = at if lost or not fresh else fresh[-1].seq
        await response.write_eof()
    except (ConnectionError, TimeoutError):  # It has left, or takes nothing.
        if request.transport is not None:
            request.transport.abort()
    finally:
        end()
    return response


async def _write(response: web.StreamResponse, text: bytes) -> None:
    """Raises TimeoutError if the reader takes nothing."""
    async with within(ANSWER_S):
        await response.write(text)


def _shown(entry: Entry, *, is_sse: bool) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (entry.seq, entry.line) if is_sse else entry.line + b"\n"


def _cut_off(at: int, *, is_sse: bool) -> bytes:
    error = f"this reader is more than {RECENT} events behind and is cut off; some are lost. Go on with after={at}"
    line = orjson.dumps({"error": error, "after": at})
    return b"event: error\ndata: %b\n\n" % line if is_sse else line + b"\n"


def _since(request: web.Request) -> float:
    """Seconds since 1970. Raises Refused."""
    text = request.query.get("since")
    if text is None:
        return 0.0
    if re.fullmatch(BACK, text, re.ASCII):
        return ago_s(int(text[:-1]) * _SECONDS[text[-1]])
    try:
        if re.fullmatch(DATE, text, re.ASCII):
            return seconds_of(text)
    except (ValueError, OverflowError):
        pass
    raise Refused(
        400, error=f"since: '{text}' is neither a time ago (90s, 10m, 2h, 1d) nor a date and time in RFC 3339"
    )


def _flag(request: web.Request, name: str, default: str) -> str:
    value = request.query.get(name, default)
    if value not in ("0", "1"):
        raise Refused(400, error=f"{name}: '{value}' is neither 0 nor 1")
    return value


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise Refused(400, error=f"{name}: '{text}' is not a whole number from 0")
    return int(text)
