"""An engine without its protocol: its health, its pace, and the tokens it makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from examples.simulated.bootstrap import Bootstrap, Rendezvous, TransferError
from examples.simulated.latencies import Latencies
from examples.simulated.ledger import Ledger
from examples.simulated.options import Behaviour, EngineSpec, checked_changes

DEFAULT_MAX_TOKENS = 8
NIXL_SIDE_CHANNEL_PORT = 5600


class Health(Enum):
    """What the engine's health check goes by."""

    SERVING = auto()
    LOADING = auto()
    DEAD = auto()
    STOPPING = auto()


class InferenceError(Exception):
    """The engine cannot answer this request: not healthy, `fail_rate` says so, or its peer was not met."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Requests that run, tokens made so far, and the metrics page."""

    running: int
    tokens: int
    page: str


class EngineCore:
    """What HTTP and gRPC engines have in common. Uses the running event loop's clock."""

    def __init__(self, spec: EngineSpec, behaviour: Behaviour) -> None:
        self.spec = spec
        self.behaviour = behaviour
        self.ledger = Ledger()
        self.bootstrap = Bootstrap(spec, self.ledger)
        self.latencies = Latencies(
            f"{spec.kind.value.partition('-')[0]}:", spec.model, has_nixl=spec.kv_connector == "NixlConnector"
        )
        self.stopping = False
        self.started_at = time.monotonic()
        self._loaded_at = 0.0
        self._info_asked_at: float | None = None
        self.load()
        self._failures_due = 0.0
        self.running = 0
        self.generated = 0
        self._said: Counters | None = None
        self._moving = asyncio.Event()
        self._working = asyncio.Event()
        self._heed_hang()

    def behave(self, **changes: object) -> None:
        """Change some of the behaviour, from now on.

        Raises:
            ValueError: a name is not a behaviour's, or a value does not fit.
        """
        typed: dict[str, Any] = checked_changes(changes)
        self.behaviour = replace(self.behaviour, **typed)
        if "load_s" in typed:
            self.load()
        self._heed_hang()

    def load(self) -> None:
        """Begin to load, now."""
        self._loaded_at = time.monotonic() + self.behaviour.load_s

    @property
    def health(self) -> Health:
        if self.stopping:
            return Health.STOPPING
        if self.behaviour.dead_core:
            return Health.DEAD
        if time.monotonic() < self._loaded_at:
            return Health.LOADING
        return Health.SERVING

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def instance(self) -> int:
        """Another number with each start."""
        return int(self.started_at * 1e6) % 2**30

    async def pause(self) -> None:
        """The time before any answer: for ever while hanging, then `slow_s`."""
        await self.moving()
        if self.behaviour.slow_s:
            await asyncio.sleep(self.behaviour.slow_s)

    async def collect_info(self) -> None:
        """What vLLM does when it is first asked for its `/server_info`, whether or not the client stays."""
        now = time.monotonic()
        self._info_asked_at = self._info_asked_at or now
        await asyncio.sleep(self._info_asked_at + self.behaviour.first_info_s - now)

    async def moving(self) -> None:
        """Return when the engine does not hang."""
        await self._moving.wait()

    async def working(self) -> None:
        """Return when its core does not hang."""
        await self._moving.wait()
        await self._working.wait()

    @property
    def counters(self) -> Counters:
        """What its core says of its work; the last that it said, while it hangs."""
        return self._said or Counters(self.running, self.generated, self.latencies.page())

    def admits(self, authorization: str | None) -> bool:
        """Whether an `Authorization` value opens the engine."""
        key = self.behaviour.require_key
        return key is None or authorization == f"Bearer {key}"

    def begin_inference(self) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            InferenceError: the engine is loading or dead, or it is this request's turn to fail.
        """
        if self.health in (Health.LOADING, Health.DEAD):
            raise InferenceError(f"{self.spec.name} is {self.health.name.lower()}")
        if self.behaviour.asleep:
            raise InferenceError(f"{self.spec.name} sleeps")
        self._failures_due += self.behaviour.fail_rate
        if self._failures_due >= 1:
            self._failures_due -= 1
            raise InferenceError(f"{self.spec.name} fails this request, as told")

    async def meet(self, where: Rendezvous | None) -> None:
        """Wait for the other half of a disaggregated pair.

        Raises:
            InferenceError: it was not met in time.
        """
        try:
            await self.bootstrap.meet(where)
        except TransferError as failure:
            raise InferenceError(str(failure)) from failure

    def kv_handover(self, params: Mapping[str, Any], request_id: str) -> dict[str, Any] | None:
        """vLLM's NIXL: where the KV blocks are, if a prefill is told to leave decoding to another engine.

        One that decodes for another counts the transfer.
        """
        if params.get("do_remote_prefill") and self.latencies.transfers is not None:
            self.latencies.transfers.observe(0.001)
        if not params.get("do_remote_decode"):
            return None
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.spec.kv_engine_id,
            "remote_request_id": request_id,
            "remote_block_ids": [1, 2],
            "remote_host": "127.0.0.1",
            "remote_port": NIXL_SIDE_CHANNEL_PORT,
            "tp_size": 1,
        }

    async def tokens(self, count: int) -> AsyncIterator[str]:
        """The answer, token by token; the first one is the engine's name."""
        await self.working()
        with self._runs():
            before = time.monotonic()
            for number in range(count):
                await asyncio.sleep(self.behaviour.token_interval_s)
                await self.working()
                now = time.monotonic()
                (self.latencies.itl if number else self.latencies.ttft).observe(now - before)
                self.latencies.tokens.inc()
                self.generated += 1
                before = now
                yield f" {number}" if number else self.spec.name

    @contextmanager
    def _runs(self) -> Iterator[None]:
        self.running += 1
        try:
            with self.latencies.running.track_inprogress():
                yield
        finally:
            self.running -= 1

    def _heed_hang(self) -> None:
        self._said = self.counters if self.behaviour.hung_core else None
        for event, stands_still in ((self._moving, self.behaviour.hang), (self._working, self.behaviour.hung_core)):
            if stands_still:
                event.clear()
            else:
                event.set()
