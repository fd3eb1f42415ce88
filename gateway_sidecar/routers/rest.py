"""Asks a router's REST API, as most routers have one: JSON over HTTP, one key for all of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import RouterRefused, RouterUnavailable
from gateway_sidecar.routers.answers import Connections

MOST_ANSWER_BYTES = 5 * 1024 * 1024
"""SMG says some 1.5 KiB of each worker, and of each data-parallel rank: 3,400 of them. To read so much JSON takes less
than 50 ms, in which nothing else is done."""


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
