"""An HTTP server that no client can fill: the number of connections is bounded, and a slow client is cut.

aiohttp bounds neither the number of connections nor the time for a request, and keeps an idle connection for an hour.
So this module accepts connections itself and cuts a client that keeps it waiting too long: for a request, for the rest
of a body, to take the answer, or for the next request. If there are too many connections, the one that has kept the
server waiting longest is cut, so prompt clients get through beside thousands of idle ones.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from contextlib import ExitStack, suppress
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.typedefs import Handler
from multidict import CIMultiDict, CIMultiDictProxy

from gateway_sidecar.config import Endpoint
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import get_logger

MOST_CONNECTIONS = 512
"""On one listener. A Prometheus keeps one for each page that it reads, and makes a new one where that was cut."""

REQUEST_S = 10.0
"""From the connection, or TLS handshake, to the end of the request's headers; and as long again for its body."""

ANSWER_S = 30.0  # A choice: a client that takes nothing for so long is gone, or holds the room of others.
IDLE_S = 75.0
"""nginx's, for connections that are kept."""

_MOST_UNTAKEN_BYTES = 64 * 1024 * 1024
"""Large answers that clients are taking at the same time; beyond it the one that was begun first is cut."""

_PIECE_BYTES = 64 * 1024  # A choice: between two of them others have their turn.
_QUEUE = 128
"""Connections that the kernel has made and that are not taken in yet. With 1,024 whoever asked beside a crowd that came
again and again waited behind it for 3 s, with 128 for some milliseconds."""

_AT_ONCE = 64  # connections that are taken in before the event loop goes on
_REST_S = 0.5  # while the kernel has no descriptor for a new one
_SWEEP_S = 1.0  # A tenth of the shortest patience with a client (`REQUEST_S`).
_CLIENTS_OWN = (HttpProcessingError, web.RequestPayloadError, ConnectionResetError)
"""It sent what is no HTTP, or left before it was told to go on with its body, or before all of its body had come."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def tcp_listener(listen: Endpoint) -> socket.socket:
    """A socket that listens there. Raises OSError if the address is taken."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    return socket.create_server((listen.host, listen.port), family=family, backlog=_QUEUE)


class BoundedServer:
    """Serves an application on one listening socket at a time.

    tasks: guard a connection's beginning, and end with the server.
    most: how many connections there may be; None where only those of one's own connect.
    """

    def __init__(
        self,
        app: web.Application,
        tasks: Tasks,
        *,
        most: int | None = MOST_CONNECTIONS,
        handler_cancellation: bool = False,
    ) -> None:
        app.middlewares.insert(0, self._keeping_time)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_logger(),
            shutdown_timeout=0.5,
            lingering_time=1.0,
            handler_cancellation=handler_cancellation,
        )
        self._tasks = tasks
        self._most = most
        self._listening: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._connections: dict[_Connection, None] = {}
        self._by_transport: dict[asyncio.BaseTransport, _Connection] = {}
        self._untaken: dict[_Connection, int] = {}
        self._resting: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Takes connections of this socket in from now on, and of no other."""
        loop = asyncio.get_running_loop()
        if self._runner.server is None:
            await self._runner.setup()
            assert self._runner.server is not None
            make = self._runner.server.request_factory
            self._runner.server.request_factory = lambda message, *rest: make(_expecting_nothing_odd(message), *rest)
            self._sweep()
        self.leave()
        self._listening, self._tls = listening, tls
        listening.setblocking(False)
        loop.add_reader(listening, self._accept)

    def use_tls(self, tls: ssl.SSLContext) -> None:
        """Uses this TLS context for new connections; connections of the earlier context end after their answer."""
        self._tls = tls
        for connection in [one for one in self._connections if one.transport is None]:
            connection.cut()
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()

    def leave(self) -> None:
        """Closes the listening socket. Who is connected stays."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    async def close(self) -> None:
        """Ends all connections."""
        self.leave()
        await self._tasks.close()
        await self._runner.cleanup()
        if self._sweeping is not None:
            self._sweeping.cancel()

    # -- connections

    def _accept(self) -> None:
        listening = self._listening
        assert listening is not None
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # It has left already.
            except OSError:  # No descriptor is left, or no memory: whoever comes waits.
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                self._resting = loop.call_later(_REST_S, self._go_on)
                return
            sock.setblocking(False)
            if self._has_room():
                self._begin(sock)
            else:
                sock.close()

    def _go_on(self) -> None:
        self._resting = None
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _has_room(self) -> bool:
        """Whether there is room for one more, or somebody who is waited for can make it."""
        if self._most is None or len(self._connections) < self._most:
            return True
        waited_for = [one for one in self._connections if one.patience_s is not None]
        if not waited_for:
            return False
        oldest = min(waited_for, key=lambda one: one.since)
        oldest.cut()
        self._forget(oldest)
        return True

    def _begin(self, sock: socket.socket) -> None:
        server = self._runner.server
        assert server is not None
        connection = _Connection(self, sock, server())
        self._connections[connection] = None
        self._tasks.spawn(self._connect(connection, sock))

    async def _connect(self, connection: _Connection, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # Who hangs in the handshake is cut as anybody is.
        patience_s = {"ssl_handshake_timeout": 2 * REQUEST_S, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        with ExitStack() as unless_made:
            unless_made.callback(sock.close)
            unless_made.callback(self._forget, connection)
            with suppress(OSError):  # It left, or its handshake failed: ssl's errors are OSErrors.
                await loop.connect_accepted_socket(lambda: connection, sock, ssl=self._tls, **patience_s)
                unless_made.pop_all()

    def made(self, connection: _Connection, transport: asyncio.BaseTransport) -> None:
        """A connection can be talked to."""
        self._by_transport[transport] = connection

    def lost(self, connection: _Connection) -> None:
        """A connection is no more."""
        self._forget(connection)
        if connection.transport is not None:
            self._by_transport.pop(connection.transport, None)

    def _forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        self._untaken.pop(connection, None)

    def _sweep(self) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(awake.to_tick_s(_SWEEP_S), self._sweep)
        now = awake.now()
        for one in list(self._connections):
            if one.patience_s is not None and now - one.since > one.patience_s:
                one.cut()

    # -- requests

    @web.middleware
    async def _keeping_time(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = self._by_transport.get(request.transport) if request.transport is not None else None
        if connection is None:
            return web.Response()  # To nobody: the client has left.
        connection.wait_for_client(ANSWER_S)
        try:
            await request.writer.drain()  # Who asks on and on, and takes no answer, gets no more.
        except ConnectionError:
            return web.Response()
        request.content.on_eof(partial(connection.work, connection.wait_for_client(REQUEST_S)))
        try:
            response = await handler(request)
        except web.RequestPayloadError as error:
            response = web.Response(status=400, text=f"the body is not valid HTTP: {error}\n")
            response.force_close()
        connection.wait_for_client(ANSWER_S)
        if isinstance(response, web.Response) and request.method != "HEAD":
            body = response.body
            if isinstance(body, bytes | bytearray) and len(body) > _PIECE_BYTES:
                return await self._in_pieces(request, connection, response, bytes(body))
        connection.wait_for_client(IDLE_S)
        return response

    async def _in_pieces(
        self, request: web.Request, connection: _Connection, response: web.Response, body: bytes
    ) -> web.StreamResponse:
        """Sends a large answer as its client takes it, without a copy for each of many clients."""
        self._untaken[connection] = len(body)
        while sum(self._untaken.values()) > _MOST_UNTAKEN_BYTES:
            oldest = next(iter(self._untaken))
            if oldest is connection:
                break
            oldest.cut()
            self._forget(oldest)
        pieces = web.StreamResponse(status=response.status, reason=response.reason, headers=response.headers)
        pieces.content_length = len(body)
        try:
            await pieces.prepare(request)
            for begin in range(0, len(body), _PIECE_BYTES):
                await pieces.write(body[begin : begin + _PIECE_BYTES])
            await pieces.write_eof()
        except ConnectionError:
            pass  # It has left, or was cut: aiohttp finds that out for itself.
        finally:
            self._untaken.pop(connection, None)
        connection.wait_for_client(IDLE_S)
        return pieces


class _Connection(asyncio.Protocol):
    """One connection: what comes is passed on to aiohttp's own protocol.

    patience_s: how many awake seconds its client is waited for, since `since`; None while it waits for us.
    """

    def __init__(self, server: BoundedServer, sock: socket.socket, inner: web.RequestHandler) -> None:
        self._server = server
        self._sock = sock
        self._inner = inner
        self.transport: asyncio.BaseTransport | None = None
        self.since = awake.now()
        self.patience_s: float | None = REQUEST_S
        self._turn = 0

    def wait_for_client(self, patience_s: float) -> int:
        """From now on it is the client's turn; its number."""
        self.since, self.patience_s = awake.now(), patience_s
        self._turn += 1
        return self._turn

    def work(self, after: int) -> None:
        """The client's turn with this number is over, if it still was: it is ours."""
        if after == self._turn:
            self.patience_s = None

    def cut(self) -> None:
        """Ends it, whatever state it is in, TLS handshake and untaken answer included."""
        with suppress(OSError):
            # The kernel does not keep what the client has not taken.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._sock.shutdown(socket.SHUT_RDWR)

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.wait_for_client(REQUEST_S)
        self._server.made(self, transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lost(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _expecting_nothing_odd(message: RawRequestMessage) -> RawRequestMessage:
    """Ignores what a server need not know (RFC 9110, 10.1.1): aiohttp would quote it, and fails where it is no text."""
    if message.headers.get("Expect", "100-continue").lower() == "100-continue":
        return message
    headers = CIMultiDict(message.headers)
    headers.popall("Expect")
    return message._replace(headers=CIMultiDictProxy(headers))


def _logger() -> logging.Logger:
    """Receives aiohttp's log records: faults of the daemon are logged, errors of clients are only answered."""
    logger = logging.getLogger("gateway_sidecar.api")
    logger.propagate = False
    logger.handlers = [_Faults()]
    return logger


class _Faults(logging.Handler):
    """Logs what a handler raised, in the daemon's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, _CLIENTS_OWN):
            get_logger().error("daemon.request_failed", reason=record.getMessage(), exc_info=error)
