"""Asks routers over HTTP: over connections that are closed for good, and with answers read within a bound, so that a
faulty router cannot fill our memory. Most have a REST API with one key for all of it, JSON (`RestApi`), and all a page
of metrics (`MetricsPages`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import aiohttp
import orjson
from yarl import URL

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import MetricsError, RouterRefused, RouterUnavailable
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within

MOST_ANSWER_BYTES = 5 * 1024 * 1024
"""SMG says some 1.5 KiB of each worker, and of each data-parallel rank: 3,400 of them. To read so much JSON takes less
than 50 ms, in which nothing else is done."""
_READ_BYTES = 8 * 1024
"""What is read in one go. In chunks of one byte each, all that had come held everything up for 70 ms (aiohttp 3.14)."""
_TURN_S = 0.001
"""After so long others have their turn. To give it after each piece made 50 turns of 30 us of a list of 1,000."""
_MOST_PAGE_BYTES = 16 * 1024 * 1024
"""SMG's page has about 3 KiB for each worker."""


class Connections:
    """Connections to routers, opened as they are needed. `headers` go with every question."""

    def __init__(self, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ask(
        self, method: str, url: str, timeout_s: float, most: int, body: Mapping[str, object] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Raises RouterUnavailable if there is none within `timeout_s` seconds, or one
        of more than `most` bytes, and after `close`: nobody would close what is opened then.

        url: as it is to be sent, all that needs it quoted.
        """
        what = f"{method} {url}"
        if self._closed:
            raise RouterUnavailable(f"{what}: the connections to it are closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(),  # `within` is the one.
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=64),
                json_serialize=lambda body: orjson.dumps(body).decode(),
            )
        try:
            async with (
                within(timeout_s),
                self._session.request(method, URL(url, encoded=True), json=body) as response,
            ):
                raw, status = await body_within(response, most), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterUnavailable(f"{what}: {printable(str(error)) or type(error).__name__}") from error
        if raw is None:
            raise RouterUnavailable(f"{what}: the answer is larger than {most} bytes")
        return status, raw

    async def close(self) -> None:
        """Closes them, for good."""
        self._closed = True
        if self._session is not None:
            await self._session.close()


async def body_within(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The whole body, or None for one of more than `most` bytes. Raises what aiohttp raises."""
    body, began = bytearray(), awake.monotonic()
    while chunk := await response.content.read(_READ_BYTES):
        body += chunk
        if len(body) > most:
            return None
        if awake.monotonic() - began >= _TURN_S:
            await asyncio.sleep(0)
            began = awake.monotonic()
    return bytes(body)


class MetricsPages:
    """The metrics pages of all routers."""

    def __init__(self) -> None:
        self._connections = Connections()

    async def read(self, url: str, timeout_s: float) -> bytes:
        """One page, of 16 MiB at the most. Raises MetricsError, also after `close`."""
        try:
            status, page = await self._connections.ask("GET", url, timeout_s, _MOST_PAGE_BYTES)
        except RouterUnavailable as error:
            raise MetricsError(str(error)) from error
        if status != 200:
            raise MetricsError(f"{url} answers {status}")
        return page

    async def close(self) -> None:
        """Closes the connections, for good."""
        await self._connections.close()


class RestApi:
    """One router's API. An empty key is not sent; `headers` go with every question."""

    def __init__(self, url: str, key: str, timeout_s: float, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._connections = Connections({**headers, **({"Authorization": f"Bearer {key}"} if key else {})})

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The object of a good answer. Raises as `ask_raw` does."""
        return as_object(await self.ask_raw(method, path, body), f"{method} {self.url}{path}")

    async def ask_raw(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """The body of a good answer. Raises RouterRefused for a 4xx, RouterUnavailable for anything else.

        path: as it is to be sent, all that needs it quoted.
        """
        what = f"{method} {self.url}{path}"
        status, raw = await self._connections.ask(method, self.url + path, self._timeout_s, MOST_ANSWER_BYTES, body)
        if status in (401, 403):
            raise RouterUnavailable(f"{what}: {status}, this is not the router with our key")
        if status >= 500:
            raise RouterUnavailable(f"{what}: {status}: {_error_text(raw)}")
        if status >= 400:
            raise RouterRefused(f"{method} {path}: {status}: {_error_text(raw)}", status)
        return raw

    async def close(self) -> None:
        """Closes the connections, for good: a later question raises RouterUnavailable."""
        await self._connections.close()


def as_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object; `what` answered with it. Raises RouterUnavailable for anything else."""
    try:
        answer = orjson.loads(raw) if raw else {}
    except ValueError as error:
        raise RouterUnavailable(f"{what}: no JSON: {raw[:200]!r}") from error
    if not isinstance(answer, dict):
        raise RouterUnavailable(f"{what}: not a JSON object: {raw[:200]!r}")
    return answer


def rows_of(answer: Mapping[str, Any], url: str) -> list[dict[str, Any]]:
    """The workers that a router lists. Raises RouterUnavailable where there is no list of objects."""
    rows = answer.get("workers")
    if not isinstance(rows, list):
        raise RouterUnavailable(f"{url}/workers: no list of workers in the answer")
    for row in rows:
        if not isinstance(row, dict):
            raise RouterUnavailable(f"a worker that is not an object: {row!r:.200}")
    return rows


def text_or_none(value: object) -> str | None:
    """A text that says something."""
    return value if isinstance(value, str) and value else None


def malformed(error: Exception, row: object) -> RouterUnavailable:
    """What a row of the list that cannot be read is answered with."""
    return RouterUnavailable(f"a worker of an unknown form: {printable(str(error))}: {row!r:.300}")


def _error_text(raw: bytes) -> str:
    """What an error answer says: `{"error": TEXT}` on the admin routes, `{"error": {"message": TEXT}}` elsewhere."""
    try:
        answer = orjson.loads(raw)
    except ValueError:
        return printable(raw[:200].decode("utf-8", "replace"))
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return printable(str(error.get("message", error) if isinstance(error, dict) else error), 500)
