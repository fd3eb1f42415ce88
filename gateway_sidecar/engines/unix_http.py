"""GET requests over a Unix socket: one connection for all of them, as long as the server keeps it open.

The lean way (h11 on a bare socket) for two reasons besides its cost: connect errors reach us as they are, and
the first bytes show which protocol the server speaks. Redirects are not followed, no proxy is looked up, nothing
is decompressed, and one budget limits the bytes of all answers together.
"""

from __future__ import annotations

import asyncio
import socket

import h11

from gateway_sidecar.domain.discovery import Failure, HttpAnswer, NoAnswer, Protocol, protocol_of
from gateway_sidecar.engines.unix_socket import connect, receive, send

_MOST_EVENTS = 10_000
"""Pieces of one answer. A body in chunks of one byte would keep the event loop busy for seconds."""

_LONGEST_DETAIL = 80
_HEADERS = (("Host", "localhost"), ("Accept", "application/json"), ("User-Agent", "gateway-sidecar"))


class UnixHttp:
    """A conversation with one server. Questions are answered with values; only cancellation is raised.

    `protocol` is set by the first bytes that the server sends, or to None where it sends nothing that tells.
    `asked` is the path of the latest question.
    """

    def __init__(self, address: str, sock: socket.socket, *, api_key: str | None, budget_bytes: int) -> None:
        self.protocol: asyncio.Future[Protocol | None] = asyncio.get_running_loop().create_future()
        self._address = address
        self._sock: socket.socket | None = sock
        self._http = h11.Connection(h11.CLIENT)
        self._used = False
        self.asked = ""
        self._budget_bytes = budget_bytes
        self._headers = list(_HEADERS)
        if api_key is not None:
            self._headers.append(("Authorization", f"Bearer {api_key}"))

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def get(self, path: str, *, last: bool = False) -> HttpAnswer | NoAnswer:
        """GET a path; `last` tells the server that nothing follows on this connection."""
        self.asked = path
        was_used = self._sock is not None and self._used
        answer = await self._exchange(path, last)
        if was_used and isinstance(answer, NoAnswer) and answer.failure is Failure.CLOSED:
            answer = await self._exchange(path, last)  # it may end a kept connection any time; that says nothing
        return answer

    async def _exchange(self, path: str, last: bool) -> HttpAnswer | NoAnswer:
        if self._sock is None:
            connected = await connect(self._address)
            if isinstance(connected, NoAnswer):
                return connected
            self._sock, self._http, self._used = connected, h11.Connection(h11.CLIENT), False
        headers = [*self._headers, ("Connection", "close")] if last else self._headers
        request = self._http.send(h11.Request(method="GET", target=path, headers=headers))
        self._http.send(h11.EndOfMessage())
        await send(self._sock, request or b"")
        answer = await self._read(self._sock)
        if not self.protocol.done():
            self.protocol.set_result(None)
        both_done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if isinstance(answer, HttpAnswer) and both_done and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
            self._used = True
        else:
            self.close()
        return answer

    async def _read(self, sock: socket.socket) -> HttpAnswer | NoAnswer:
        """Read one response."""
        status, body = 0, bytearray()
        started = ended = False
        for _ in range(_MOST_EVENTS):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                failure = Failure.CUT if ended else Failure.MALFORMED
                return NoAnswer(failure, str(error)[:_LONGEST_DETAIL])
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return HttpAnswer(status, bytes(body))
            elif event is h11.NEED_DATA:
                received = await self._receive(sock, first=not started)
                if isinstance(received, NoAnswer):
                    return received
                started, ended = True, not received
                self._http.receive_data(received)
        return NoAnswer(Failure.TOO_LARGE, "in too many pieces")

    async def _receive(self, sock: socket.socket, *, first: bool) -> bytes | NoAnswer:
        """Receive what there is; b"" is the end. The first bytes of all show the protocol."""
        chunk = await receive(sock)
        if first:
            if not chunk:
                return NoAnswer(Failure.CLOSED)
            while (protocol := protocol_of(chunk)) is None:
                more = await receive(sock)
                if not more:
                    return NoAnswer(Failure.CUT)
                chunk += more
            if not self.protocol.done():
                self.protocol.set_result(protocol)
            if protocol is not Protocol.HTTP1:
                return NoAnswer(Failure.OTHER_PROTOCOL, repr(chunk[:20]))
        self._budget_bytes -= len(chunk)
        return chunk if self._budget_bytes >= 0 else NoAnswer(Failure.TOO_LARGE)
