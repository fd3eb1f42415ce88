"""What etcd's JSON gateway answers, taken apart. Whatever it is, it is no reason to fail in another way than these."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import aiohttp
import orjson

from gateway_sidecar.domain.printable import printable

MOST_BYTES = 64 * 1024 * 1024
"""Of one answer: as much as a record of the daemon's own may have."""


class Failed(Exception):
    """etcd's own no, with gRPC's code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


async def read_whole(answer: aiohttp.ClientResponse) -> bytes:
    """The body. Raises ValueError for one that is too long."""
    parts, size = [], 0
    async for part in answer.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"its answer has more than {MOST_BYTES >> 20} MiB")
    return b"".join(parts)


def raise_failure(content: bytes) -> None:
    said = mapping(parsed(content))
    said = mapping(said.get("error")) or said  # A watch wraps it.
    code = said.get("code", said.get("grpc_code"))
    raise Failed(code if isinstance(code, int) else 0, str(said.get("message") or said.get("error") or said))


def parsed(content: bytes) -> object:
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise ValueError(f"its answer is not JSON ({printable(content[:60].decode('utf-8', 'replace'))})") from error


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: object) -> int:
    """etcd's JSON has 64-bit numbers as texts, and leaves out those that are 0."""
    if value is None:
        return 0
    try:
        return int(str(value))
    except ValueError as error:
        raise ValueError("its answer has no number where one belongs") from error


def encoded(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def decoded(value: object) -> str:
    try:
        return base64.b64decode(str(value)).decode("utf-8", "replace")
    except binascii.Error as error:
        raise ValueError("its answer has a key or a value that is not in base64") from error


def reason(error: BaseException) -> str:
    """aiohttp's own words, or those of what it wraps."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    text = getattr(inner, "strerror", None) or str(inner)
    return printable(str(text), 200)
