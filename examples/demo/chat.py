"""A client of the service address: streamed chats with plain HTTP, one at a time or as a steady load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

PLEASE = "Count, please."
_PAUSE_S = 0.02


class ChatRefused(Exception):
    """The service answered, and the answer is no."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status} {error.get('code') or error.get('type')}: {error.get('message')}")
        self.status = status


def question(model: str, tokens: int, text: str = PLEASE) -> dict[str, Any]:
    """The body of a request."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "stream": True, "max_tokens": tokens, "temperature": 0, "messages": messages}


async def chat(
    session: aiohttp.ClientSession, url: str, model: str, tokens: int, text: str = PLEASE
) -> AsyncIterator[str]:
    """The answer's tokens as they come. Raises ChatRefused, aiohttp.ClientError, or ValueError for a cut stream."""
    async with session.post(f"{url}/v1/chat/completions", json=question(model, tokens, text)) as response:
        if response.status != 200:
            answer = await response.json(content_type=None)
            raise ChatRefused(response.status, answer.get("error", {}))
        async for line in response.content:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if data:
                piece = json.loads(data)
                if "error" in piece:  # in the middle of a stream, whose status was 200
                    raise ChatRefused(response.status, piece["error"])
                for choice in piece["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text
    raise ValueError("the stream ended without [DONE]")


class Load:
    """Clients that ask again and again, as long as the `async with` block runs; counts what came of it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, *, clients: int) -> None:
        self._session = session
        self._ask = (url, model, 10)
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self.answered = 0
        self.failures: list[str] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _client(self) -> None:
        while not self._ending:
            try:
                async for _ in chat(self._session, *self._ask):
                    pass
                self.answered += 1
            except (ChatRefused, aiohttp.ClientError, ValueError, TimeoutError) as error:
                self.failures.append(repr(error))
            await asyncio.sleep(_PAUSE_S)
