"""An engine's HTTP server: one aiohttp protocol for each accepted connection."""

from __future__ import annotations

import asyncio
import json
import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from examples.simulated.bootstrap import Rendezvous
from examples.simulated.completions import NATIVE_PATHS, OPENAI_PATHS, respond
from examples.simulated.core import EngineCore, InferenceError
from examples.simulated.http_lies import TELLERS
from examples.simulated.ledger import RecordedRequest
from examples.simulated.pages import Page, Site

KEEPALIVE_S = 75.0
CLOSING_S = 0.1


class _NotHttp(logging.Filter):
    """Drops the tracebacks of clients that do not speak HTTP: a gRPC probe is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


_LOG = logging.getLogger(__name__)
_LOG.addFilter(_NotHttp())


class HttpFront:
    """Speaks HTTP/1.1 for an engine. Every answer carries `x-simulated-engine: NAME`."""

    def __init__(self, core: EngineCore, site: Site) -> None:
        self._core = core
        self._site = site
        self._answers = dict(OPENAI_PATHS) | (dict(NATIVE_PATHS) if site.native_generate else {})
        self._server = web.Server(
            self._respond,
            handler_cancellation=True,
            access_log=None,
            logger=_LOG,
            keepalive_timeout=KEEPALIVE_S,
        )

    async def start(self) -> None:
        """Nothing is needed before the first connection."""

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol for one accepted connection."""
        return self._server()

    def drop_connections(self) -> None:
        """Close every open connection at once, whatever it is doing."""
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def stop(self) -> None:
        """Close what is left open; an answer on its way out gets a moment."""
        await self._server.shutdown(timeout=CLOSING_S)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        self._core.ledger.called(request.path)
        await self._core.pause()
        if self._path(request) == "/server_info":
            await self._core.collect_info()
        tell = TELLERS.get(self._core.behaviour.lie)
        if tell is not None:
            return await tell(request, _encode(self._page(request).body))
        if self._guards(request.path) and not self._core.admits(request.headers.get("Authorization")):
            return self._send(Page({"error": "Unauthorized"}, 401))
        if request.method == "POST" and self._path(request) in self._answers:
            return await self._infer(request)
        return self._send(self._page(request))

    def _path(self, request: web.BaseRequest) -> str:
        """The path as it would be without a prefix of the engine's own; no path of an engine for others below `/v1`."""
        prefix = self._core.spec.prefix
        below = request.path.startswith(f"{prefix}/")
        return f"/v1{request.path.removeprefix(prefix)}" if below else request.path.replace("/v1/", "/", 1)

    def _guards(self, path: str) -> bool:
        return self._core.behaviour.guard_all or self._site.guards(path)

    def _page(self, request: web.BaseRequest) -> Page:
        if request.method not in ("GET", "HEAD"):
            return self._site.not_found
        make = self._site.pages.get(self._path(request))
        return self._site.not_found if make is None else make(self._core)

    async def _infer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            ask = json.loads(await request.content.read())
        except ValueError:
            ask = None
        if not isinstance(ask, dict):
            return self._send(Page({"error": {"message": "the body is not a JSON object", "code": 400}}, 400))
        answer = self._answers[self._path(request)](self._core, ask)
        try:
            with self._core.ledger.inference(RecordedRequest(request.path, ask)):
                self._core.begin_inference()
                await self._core.meet(Rendezvous.of_json(ask))
                response = await respond(answer, request, self._signature)
                self._core.ledger.spent(answer.usage["prompt_tokens"], answer.usage["completion_tokens"])
                return response
        except InferenceError as failure:
            return self._send(Page({"error": {"message": str(failure), "code": 500}}, 500))

    def _send(self, page: Page) -> web.Response:
        content_type = "text/plain" if isinstance(page.body, str) else "application/json"
        return web.Response(
            body=_encode(page.body), status=page.status, content_type=content_type, headers=self._signature
        )

    @property
    def _signature(self) -> dict[str, str]:
        return {"x-simulated-engine": self._core.spec.name}


def _encode(body: object) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()
