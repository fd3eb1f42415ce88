"""Steady clients of the service addresses: streamed and plain chats, some long, some with a large body."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from tests.chaos.history import Request

PATIENCE_S = 45.0
_LARGE = 400_000
_DETAIL = 400
_GATEWAY = "x-gateway"
"""By which HAProxy says who answered: examples/balancers/haproxy.cfg."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client asks, and for which model. via: what this way in is called, where there are several."""

    service: str
    url: str
    model: str
    via: str = ""


class WrongAnswer(Exception):
    """An answer with status 200 that cannot be right."""


class Load:
    """So many clients; each asks, waits a moment, and asks again. Every chat is reported once it is over."""

    def __init__(
        self,
        targets: Mapping[Target, int],
        report: Callable[[Request], None],
        *,
        seed: int,
        pause_s: float = 0.2,
        long_share: float = 0.1,
        connector: Callable[[], aiohttp.BaseConnector | None] = lambda: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._report = report
        self._connector = connector
        self._headers = headers
        self._numbers = itertools.count(1)
        self._stop = asyncio.Event()
        self._pause_s = pause_s
        self._long_share = long_share
        self._random = random.Random(seed)
        self._clients = [asyncio.create_task(self._client(t)) for t, count in targets.items() for _ in range(count)]

    async def stop(self) -> None:
        """Lets every chat end, and stops."""
        self._stop.set()
        await asyncio.gather(*self._clients)

    async def ask_once(self, target: Target) -> Request:
        """One chat beside the clients', reported like theirs."""
        async with self._session() as session:
            request = await self._ask(session, target)
        self._report(request)
        return request

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        return aiohttp.ClientSession(timeout=timeout, connector=self._connector(), headers=self._headers)

    async def _client(self, target: Target) -> None:
        while not self._stop.is_set():
            # A connection that is kept for a while, as clients do.
            async with self._session() as session:
                for _ in range(self._random.choice((1, 5, 50))):
                    self._report(await self._ask(session, target))
                    await asyncio.sleep(self._random.uniform(0, 2 * self._pause_s))
                    if self._stop.is_set():
                        break

    async def _ask(self, session: aiohttp.ClientSession, target: Target) -> Request:
        number, draw = next(self._numbers), self._random
        stream = draw.random() < 0.6
        tokens = 100 if draw.random() < self._long_share else draw.randint(2, 12)
        padding = "x" * (_LARGE if target.model == "calm" and draw.random() < 0.02 else 40)
        prompt = f"{draw.random()} [q{number}]"
        body = {
            "model": target.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": stream,
            "user": padding,
        }
        began = time.monotonic()
        answer = _Answer()
        outcome, status, detail, gateway = "ok", None, "", None
        try:
            async with session.post(f"{target.url}/v1/chat/completions", json=body) as response:
                status, gateway = response.status, response.headers.get(_GATEWAY)
                if status != 200:
                    outcome, detail = "status", await response.text()
                elif stream:
                    await answer.read_stream(response)
                    answer.judge(tokens)
                else:
                    answer.read_whole(await response.json())
                    answer.judge(tokens)
        except TimeoutError:
            outcome = "timeout"
        except aiohttp.ClientConnectorError as error:
            outcome, detail = "refused", repr(error)
        except (WrongAnswer, ValueError, KeyError, IndexError, TypeError, aiohttp.ContentTypeError) as error:
            outcome, detail = "wrong", repr(error)
        except aiohttp.ClientError as error:
            outcome, detail = "broken", repr(error)
        if outcome == "ok" and not answer.done:
            outcome, detail = "broken", "the stream ended before [DONE]"
        return Request(
            number, target.service, target.model, stream, began, time.monotonic(), outcome, status, detail[:_DETAIL],
            answer.engine, len(padding) == _LARGE, target.via, gateway,
        )  # fmt: skip


class _Answer:
    """A text as it comes in. Its first token is the engine's name, then the numbers from 1 on."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False

    @property
    def engine(self) -> str | None:
        return self.text.split(" ", 1)[0] or None

    async def read_stream(self, response: aiohttp.ClientResponse) -> None:
        async for raw in response.content:
            line = raw.decode().strip()
            if not line.startswith("data:"):
                if line and not line.startswith(":"):  # A comment, which keeps a silent stream open.
                    raise WrongAnswer(f"not an event: {line[:100]}")
                continue
            payload = line.removeprefix("data:").strip()
            if payload == "[DONE]":
                self.done = True
                continue
            event = json.loads(payload)
            if "error" in event:
                raise WrongAnswer(f"an error in the stream: {payload[:300]}")
            for choice in event["choices"]:
                self.text += choice["delta"].get("content") or ""

    def read_whole(self, answer: Mapping[str, list[dict[str, dict[str, str]]]]) -> None:
        self.text = answer["choices"][0]["message"]["content"]
        self.done = True

    def judge(self, tokens: int) -> None:
        words = self.text.split(" ")
        if self.done and words[1:] != [str(number) for number in range(1, tokens)]:
            raise WrongAnswer(f"{tokens} tokens were asked for, the answer is {self.text[:200]!r}")
