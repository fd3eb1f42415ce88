"""Reads a router's HTTP answers within a bound, so that a faulty router cannot fill our memory."""

from __future__ import annotations

import aiohttp

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import MetricsError
from gateway_sidecar.supervision.awake import within

_MOST_PAGE_BYTES = 16 * 1024 * 1024
"""SMG's page has about 3 KiB for each worker."""


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
        self._session: aiohttp.ClientSession | None = None

    async def read(self, url: str, timeout_s: float) -> bytes:
        """One page, of 16 MiB at the most. Raises MetricsError."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), trust_env=False)
        try:
            async with within(timeout_s), self._session.get(url, timeout=aiohttp.ClientTimeout()) as response:
                page, status = await body_within(response, _MOST_PAGE_BYTES), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MetricsError(f"{url}: {printable(str(error)) or type(error).__name__}") from error
        if page is None:
            raise MetricsError(f"{url}: more than {_MOST_PAGE_BYTES} bytes")
        if status != 200:
            raise MetricsError(f"{url} answers {status}")
        return page

    async def close(self) -> None:
        """Closes the connections. Another `read` opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None
