"""Asks routers over HTTP, over connections that are closed for good, and reads what they answer within a bound, so that
a faulty router cannot fill our memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import aiohttp
import orjson
from yarl import URL

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import MetricsError, RouterUnavailable
from gateway_sidecar.supervision.awake import within

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
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > most:
            return None
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
