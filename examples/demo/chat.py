"""A client of the service address: chats with plain HTTP, one at a time or as a steady load."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Self

import aiohttp

PLEASE = "Count, please."
_PAUSE_S = 0.02


class ChatRefused(Exception):
    """The service answered, and the answer is no."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status} {error.get('code') or error.get('type')}: {error.get('message')}")
        self.status = status


class Failure(NamedTuple):
    """A request of a `Load` that failed."""

    kind: str
    error: str
    began: float
    """By the monotonic clock."""
    gateway: str | None
    """Which one had begun to answer, if a load balancer said so."""


def question(model: str, tokens: int, text: str = PLEASE, *, stream: bool = True) -> dict[str, Any]:
    """The body of a request."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "stream": stream, "max_tokens": tokens, "temperature": 0, "messages": messages}


def _nothing(_response: aiohttp.ClientResponse) -> None: ...


async def chat(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    tokens: int,
    text: str = PLEASE,
    *,
    stream: bool = True,
    begun: Callable[[aiohttp.ClientResponse], None] = _nothing,
) -> AsyncIterator[str]:
    """The answer's tokens as they come, or all at once without `stream`; `begun` is told when its headers are there.

    Raises ChatRefused, aiohttp.ClientError, or ValueError for a cut stream.
    """
    body = question(model, tokens, text, stream=stream)
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        begun(response)
        if response.status != 200:
            text = await response.text()
            error = json.loads(text).get("error", {}) if text.startswith("{") else {"message": text[:200]}
            raise ChatRefused(response.status, error)
        if not stream:
            yield (await response.json())["choices"][0]["message"]["content"]
            return
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

    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str, *, clients: int, without_stream: int = 0
    ) -> None:
        self._session = session
        self._ask = (url, model, 10)
        self._streams = [number >= without_stream for number in range(clients)]
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self.answered = 0
        self.failures: list[Failure] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(stream)) for stream in self._streams]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def more(self, answers: int) -> None:
        """Waits until so many more were answered."""
        wanted = self.answered + answers
        while self.answered < wanted:
            await asyncio.sleep(_PAUSE_S)

    async def _client(self, stream: bool) -> None:
        while not self._ending:
            await self._once(stream)
            await asyncio.sleep(_PAUSE_S)

    async def _once(self, stream: bool) -> None:
        began, gateways = time.monotonic(), list[str | None]()

        def begun(response: aiohttp.ClientResponse) -> None:
            gateways.append(response.headers.get("x-gateway"))

        try:
            async for _ in chat(self._session, *self._ask, stream=stream, begun=begun):
                pass
        except ChatRefused as refused:
            self.failures.append(Failure(f"answered {refused.status}", str(refused), began, *gateways))
        except (aiohttp.ClientError, ValueError, TimeoutError) as error:
            kind, by = ("cut", gateways[0]) if gateways else ("no answer", None)
            self.failures.append(Failure(kind, repr(error), began, by))
        else:
            self.answered += 1
