"""What an engine saw: counters and the last requests, with a way to wait for them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

REQUESTS_KEPT = 256


class RequestAbortedError(Exception):
    """The client asked the engine to give up this request."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One inference request as it came in: the HTTP path or RPC, and the JSON body or protobuf message."""

    call: str
    content: dict[str, Any] | Message

    @property
    def body(self) -> dict[str, Any]:
        """The request as plain data; protobuf fields keep their names."""
        if isinstance(self.content, dict):
            return self.content
        return MessageToDict(self.content, preserving_proto_field_name=True)


@dataclass
class Ledger:
    """Counters of one engine.

    Attributes:
        connections: Connections accepted.
        calls: Everything asked, by HTTP path or by RPC (`vllm.grpc.engine.VllmEngine/Generate`).
        received: Inference requests begun. Each ends as exactly one of the next three.
        completed: Answered to the end.
        aborted: Its connection went, it was cancelled, or an Abort RPC named it.
        failed: Refused by the engine: loading, dead, or `fail_rate`.
        in_flight: Begun and not yet ended.
        tokens_in: Of the prompts of those that were completed.
        tokens_out: Of their answers.
        transfers: Meetings of a prefill and a decode engine, by the address of the other one.
        requests: The last inference requests, newest last.
        on_inference: Told of each inference request when it begins ("begun") and ends (as what it ended).
    """

    connections: int = 0
    received: int = 0
    completed: int = 0
    aborted: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    transfers: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    requests: deque[RecordedRequest] = field(default_factory=lambda: deque(maxlen=REQUESTS_KEPT))
    on_inference: Callable[[RecordedRequest, str], None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def connected(self) -> None:
        self.connections += 1
        self._tell()

    def called(self, call: str) -> None:
        self.calls[call] += 1
        self._tell()

    def transferred(self, peer: str) -> None:
        self.transfers[peer] += 1
        self._tell()

    def spent(self, tokens_in: int, tokens_out: int) -> None:
        """An answer is complete, and took so many tokens."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    @contextmanager
    def inference(self, request: RecordedRequest) -> Iterator[None]:
        """Count one inference request from its first to its last byte."""
        self.received += 1
        self.in_flight += 1
        self.requests.append(request)
        self._tell(request, "begun")
        outcome = "failed"
        try:
            yield
            outcome = "completed"
        except (asyncio.CancelledError, ConnectionError, RequestAbortedError):
            outcome = "aborted"
            raise
        finally:
            self.in_flight -= 1
            setattr(self, outcome, getattr(self, outcome) + 1)
            self._tell(request, outcome)

    async def until(self, condition: Callable[[Ledger], bool], *, within_s: float = 60.0) -> None:
        """Wait until the counters are as wanted.

        Raises:
            TimeoutError: they were not, within the time.
        """
        async with asyncio.timeout(within_s):
            while not condition(self):
                await self._changed.wait()

    def as_dict(self) -> dict[str, Any]:
        """The counters as the control API shows them."""
        return {
            "connections": self.connections,
            "received": self.received,
            "completed": self.completed,
            "aborted": self.aborted,
            "failed": self.failed,
            "in_flight": self.in_flight,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "transfers": dict(self.transfers),
            "calls": dict(self.calls),
        }

    def _tell(self, request: RecordedRequest | None = None, what: str = "") -> None:
        if request is not None and self.on_inference is not None:
            self.on_inference(request, what)
        self._changed.set()
        self._changed = asyncio.Event()
