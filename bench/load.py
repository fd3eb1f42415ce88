"""Steady load on a service address: many clients, each asking again as soon as it was answered, for as long as wanted.

Every answer is read to its end and checked. A failed request keeps what is needed to explain it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from bench.chat import PATH, chat, flaw
from bench.wire import Connection, ExchangeFailed

_LONG = 80  # tokens; how long such an answer ran is kept
_WORDS = ("river", "stone", "lamp", "cloud", "paper", "green", "seven", "winter", "copper", "garden", "signal", "motor")


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request: how many tokens, in one piece or streamed, and how often among all."""

    name: str
    tokens: int
    stream: bool
    weight: int


SHAPES = (
    Shape("whole", tokens=3, stream=False, weight=50),
    Shape("streamed", tokens=8, stream=True, weight=45),
    Shape("long stream", tokens=80, stream=True, weight=5),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered as it should be; instants are monotonic seconds."""

    shape: str
    sent_at: float
    failed_at: float
    reason: str


class Load:
    """`clients` clients until the end of the `async with`. `long_ones` holds (sent, ended) of each long answer."""

    def __init__(self, host: str, port: int, *, clients: int, shapes: Sequence[Shape] = SHAPES) -> None:
        self._address = host, port
        self._shapes = shapes
        self._count = clients
        self._ending = False
        self.answered: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.long_ones: list[tuple[float, float]] = []

    async def __aenter__(self) -> Self:
        self.began = time.monotonic()
        self._clients = [asyncio.create_task(self._client(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Every request under way is still answered, and counts."""
        self._ending = True
        await asyncio.gather(*self._clients)

    @property
    def requests(self) -> int:
        """Requests that ended so far, well or not."""
        return self.answered.total() + len(self.failures)

    async def until(self, requests: int, *, within_s: float) -> None:
        """Returns when so many requests have ended. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while self.requests < requests:
                await asyncio.sleep(0.05)

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        weights = [shape.weight for shape in self._shapes]
        async with Connection(*self._address) as connection:
            while not self._ending:
                (shape,) = chance.choices(self._shapes, weights)
                # Always another beginning: a router that keeps prefixes together is to use all replicas.
                text = " ".join(chance.choices(_WORDS, k=12))
                await self._ask(connection, shape, text)

    async def _ask(self, connection: Connection, shape: Shape, text: str) -> None:
        sent_at = time.monotonic()
        try:
            answer = await connection.ask("POST", PATH, chat(text, tokens=shape.tokens, stream=shape.stream))
            reason = flaw(answer, tokens=shape.tokens, stream=shape.stream)
        except ExchangeFailed as error:
            reason = f"{error}; got {error.got[-200:]!r}"
        if reason is None:
            self.answered[shape.name] += 1
            if shape.tokens >= _LONG:
                self.long_ones.append((sent_at, time.monotonic()))
        else:
            self.failures.append(Failure(shape.name, sent_at, time.monotonic(), reason))
