"""A web application behind a Unix socket: `python -m tests.system.web_app SOCKET NAME`. It names itself in answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import WSMsgType, web


class WebApp:
    """Pages, a stream, a WebSocket. `name` tells it from others; `health` is what `/healthz` answers."""

    def __init__(self, socket: Path, name: str, *, backlog: int = 128) -> None:
        self.name = name
        self.health = 200
        self.asked: list[str] = []
        self.let_go = asyncio.Event()
        self._socket = socket
        self._backlog = backlog
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/socket", self._socket_of)
        app.router.add_get("/stream", self._stream)
        app.router.add_route("*", "/die", self._die)
        app.router.add_route("*", "/{path:.*}", self._page)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> WebApp:
        """Listens."""
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket), backlog=self._backlog).start()
        return self

    async def stop(self) -> None:
        """Ends at once, as an application that was killed, and removes its socket."""
        await self._runner.cleanup()
        self._socket.unlink(missing_ok=True)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=self.health, text="fine")

    async def _page(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.raw_path}")
        body = await request.read()
        headers = {"Set-Cookie": "seen=yes", "X-Name": self.name, "Location": "http://elsewhere.example/"}
        shown = {"name": self.name, "cookie": request.headers.get("Cookie"), "body": body.decode(),
                 "headers": sorted(name.lower() for name in request.headers)}  # fmt: skip
        return web.json_response(shown, headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Its name at once, and the rest when it is let go on."""
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"{self.name}\n".encode())
        await self.let_go.wait()
        await response.write(b"end\n")
        return response

    async def _socket_of(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"{self.name}: {message.data}")
        return socket

    async def _die(self, request: web.Request) -> web.Response:
        """Takes the request, and ends the connection without a word."""
        self.asked.append(f"{request.method} /die")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def _main() -> None:
    app = await WebApp(Path(sys.argv[1]), sys.argv[2]).start()
    await app.let_go.wait()


if __name__ == "__main__":
    asyncio.run(_main())
