"""The least of an HTTP/1.1 client: one kept connection, so that what is measured is not the client.

A failed exchange says how far it got, which tells the layer that failed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self


class ExchangeFailed(Exception):
    """No whole answer. `phase` is connect, send, head or body; `got` is what came of the answer."""

    def __init__(self, phase: str, reason: str, got: bytes = b"") -> None:
        super().__init__(f"{phase}: {reason}")
        self.phase = phase
        self.got = got


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        content: dict[str, Any] = json.loads(self.body)
        return content


class Connection:
    """A kept connection to one address; opened at first use, and anew after a failure."""

    def __init__(self, host: str, port: int, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._host = host
        self._port = port
        self._authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One exchange; `body` is JSON, or bytes as they are. Raises ExchangeFailed; every status is an answer."""
        phase, got = "connect", bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                phase = "send"
                writer.write(self._request(method, path, body))
                await writer.drain()
                phase = "head"
                status, length, closes = _read_head(await reader.readuntil(b"\r\n\r\n"))
                phase = "body"
                await _read_body(reader, length, got)
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError)):
                raise ExchangeFailed(phase, repr(error), bytes(got)) from error
            raise
        if closes:
            self.close()
        return Answer(status, bytes(got))

    def _request(self, method: str, path: str, body: object) -> bytes:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{self._authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


def _read_head(head: bytes) -> tuple[int, int | None, bool]:
    """Status, length of the body (None: chunked), whether the connection ends with it."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(":") for line in lines)}
    closes = fields.get("connection") == "close"
    if fields.get("transfer-encoding") == "chunked":
        return int(first.split()[1]), None, closes
    return int(first.split()[1]), int(fields.get("content-length", "0")), closes


async def _read_body(reader: asyncio.StreamReader, length: int | None, got: bytearray) -> None:
    if length is not None:
        got += await reader.readexactly(length)
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        got += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
