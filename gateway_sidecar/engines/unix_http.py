"""GET requests over a Unix socket: one connection for all of them, as long as the server keeps it open.

The lean way (httptools on a bare socket) for two reasons besides its cost: connect errors reach us as they are, and
the first bytes show which protocol the server speaks. Redirects are not followed, no proxy is looked up, nothing
is decompressed, and one budget limits the bytes of all answers together.
"""

from __future__ import annotations

from functools import lru_cache

import httptools

from gateway_sidecar.domain.discovery import Failure, HttpAnswer, NoAnswer, Protocol, protocol_of
from gateway_sidecar.domain.model import Access
from gateway_sidecar.engines.unix_socket import UnixConnection, connect

_MOST_PIECES = 10_000
"""Pieces of one answer, as they come. A body in chunks of one byte would keep the event loop busy for seconds."""

_MOST_FIELDS = 1000
"""Header fields, before the body and behind it."""

_MOST_INTERIM = 100  # A choice: no server has cause for more than a few answers such as `100 Continue` before its own.
_LONGEST_HEAD_BYTES = 65536  # A choice: eight times what nginx takes of one header line by default.
_LONGEST_DETAIL = 80  # The parser's words, of a line.
_HEADERS = "Host: localhost\r\nAccept: application/json\r\nUser-Agent: gateway-sidecar\r\n"
_SIZED = frozenset((b"content-length", b"transfer-encoding"))


_TOO_MANY_PIECES = NoAnswer(Failure.TOO_LARGE, "in too many pieces")
_TOO_MANY_FIELDS = NoAnswer(Failure.MALFORMED, "headers without an end")


class BoundError(Exception):
    """Raised out of the parser to stop it."""

    def __init__(self, bound: NoAnswer) -> None:
        super().__init__(bound)
        self.bound = bound


class Response:
    """What httptools finds in the bytes of one response."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.has_headers = self.is_sized = self.is_complete = self.has_more = self.is_kept = False
        self._pieces = self._fields = self._begun = 0

    def on_message_begin(self) -> None:
        """Another one after the first is nothing that was asked for."""
        self.has_more = self.is_complete
        self._begun += 1
        if self._begun > _MOST_INTERIM:
            raise BoundError(_TOO_MANY_PIECES)

    def feed(self, received: bytes) -> None:
        """Read on. Raises BoundError, and what httptools raises."""
        self._count_piece()
        try:
            self.parser.feed_data(received)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None

    def _count_piece(self) -> None:
        self._pieces += 1
        if self._pieces > _MOST_PIECES:
            raise BoundError(_TOO_MANY_PIECES)

    def on_header(self, name: bytes, _value: bytes) -> None:
        """Whether anything but the end of the connection tells where the body ends."""
        self._fields += 1
        if self._fields > _MOST_FIELDS:
            raise BoundError(_TOO_MANY_FIELDS)
        self.is_sized = self.is_sized or name.lower() in _SIZED

    def on_headers_complete(self) -> None:
        """From here on the status is known."""
        # An interim answer (100, 103) is followed by the real one.
        self.has_headers = self.parser.get_status_code() >= 200

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._count_piece()
        self.body += piece

    def on_message_complete(self) -> None:
        """The whole of a response, unless it was an interim one."""
        self.is_complete = self.has_headers
        self.is_kept = self.parser.should_keep_alive()  # Afterwards the parser has forgotten what this one said.

    def answer(self) -> HttpAnswer:
        """The response as a value."""
        return HttpAnswer(self.parser.get_status_code(), bytes(self.body))


@lru_cache(maxsize=64)
def request_for(path: str, api_key: str | None, *, last: bool) -> bytes:
    """A GET on the wire; `last` tells the server that nothing follows on this connection."""
    key = "" if api_key is None else f"Authorization: Bearer {api_key}\r\n"
    closing = "Connection: close\r\n" if last else ""
    return f"GET {path} HTTP/1.1\r\n{_HEADERS}{key}{closing}\r\n".encode("ascii")


class UnixHttp:
    """A conversation with one server. Questions are answered with values; only cancellation is raised.

    `protocol` is what the first bytes of the server showed; None until then.
    `asked` is the path of the latest question.
    """

    def __init__(self, address: str, connection: UnixConnection, access: Access, *, budget_bytes: int) -> None:
        self.protocol: Protocol | None = None
        self._address = address
        self._connection: UnixConnection | None = connection
        self._used = False
        self._begun: str | None = None
        self.asked = ""
        self._budget_bytes = budget_bytes
        self._tls = access.tls is True
        self._api_key = access.api_key

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def begin(self, path: str, within_s: float) -> bool:
        """Send the first question, for the next `get` to answer; whether something comes within so many seconds."""
        assert self._connection is not None
        self.asked = self._begun = path
        await self._connection.send(request_for(path, self._api_key, last=False))
        return await self._connection.is_readable(within_s)

    async def get(self, path: str, *, last: bool = False) -> HttpAnswer | NoAnswer:
        """GET a path; `last` tells the server that nothing follows on this connection."""
        self.asked = path
        was_used = self._connection is not None and self._used
        answer = await self._exchange(path, last)
        if was_used and isinstance(answer, NoAnswer) and answer.failure is Failure.CLOSED:
            answer = await self._exchange(path, last)  # it may end a kept connection any time; that says nothing
        return answer

    async def _exchange(self, path: str, last: bool) -> HttpAnswer | NoAnswer:
        if self._connection is None:
            connected = await connect(self._address, tls=self._tls)
            if isinstance(connected, NoAnswer):
                return connected
            self._connection, self._used = connected, False
        if self._begun != path:
            await self._connection.send(request_for(path, self._api_key, last=last))
        self._begun = None
        response = Response()
        answer = await self._read(self._connection, response)
        kept = response.is_complete and response.is_kept and not response.has_more and not last
        if isinstance(answer, HttpAnswer) and kept:
            self._used = True
        else:
            self.close()
        return answer

    async def _read(self, connection: UnixConnection, response: Response) -> HttpAnswer | NoAnswer:
        """Read one response."""
        started, head_bytes = False, 0
        while not response.is_complete:
            received = await self._receive(connection, first=not started)
            if isinstance(received, NoAnswer):
                return received
            started = True
            if not received:
                # The end of the connection is the end of a body that nothing else ends.
                whole = response.has_headers and not response.is_sized
                return response.answer() if whole else NoAnswer(Failure.CUT)
            try:
                response.feed(received)
            except BoundError as error:
                return error.bound
            except httptools.HttpParserUpgrade:
                return NoAnswer(Failure.MALFORMED, "an upgrade that nobody asked for")
            except httptools.HttpParserError as error:
                if not response.is_complete:
                    return NoAnswer(Failure.MALFORMED, str(error)[:_LONGEST_DETAIL])
                response.has_more = True
            if not response.has_headers:
                head_bytes += len(received)
                if head_bytes > _LONGEST_HEAD_BYTES:
                    return _TOO_MANY_FIELDS
        return response.answer()

    async def _receive(self, connection: UnixConnection, *, first: bool) -> bytes | NoAnswer:
        """Receive what there is; b"" is the end. The first bytes of all show the protocol."""
        chunk = await connection.receive()
        if first:
            if not chunk:
                return NoAnswer(Failure.CLOSED)
            while (protocol := protocol_of(chunk)) is None:
                more = await connection.receive()
                if not more:
                    return NoAnswer(Failure.CUT)
                chunk += more
            self.protocol = self.protocol or protocol
            if protocol is not Protocol.HTTP1:
                return NoAnswer(Failure.OTHER_PROTOCOL, repr(chunk[:20]))
        self._budget_bytes -= len(chunk)
        return chunk if self._budget_bytes >= 0 else NoAnswer(Failure.TOO_LARGE)
