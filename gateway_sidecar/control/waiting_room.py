"""Where requests wait while a service's router is away: bounded in number and time, and never with their bodies.

nginx keeps the request and asks here whether it may go on. Nothing of it is read, stored or changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway_sidecar.config import HoldSettings
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_MOMENT_S = 0.05


class Verdict(StrEnum):
    """What becomes of a request that waited."""

    GO_ON = "went_on"
    FULL = "full"
    TOO_LONG = "too_long"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict, with words for the client and the seconds after which a new try is worth while."""

    verdict: Verdict
    message: str = ""
    retry_after_s: int = 1


class Gates(Protocol):
    """nginx's switch for each service."""

    def close_gate(self, service: str) -> None: ...

    def open_gate(self, service: str) -> None: ...


class WaitingRoom:
    """One service's waiting room. Its gate is closed while the router cannot take requests."""

    def __init__(self, service: str, settings: HoldSettings, gates: Gates, metrics: Metrics) -> None:
        self._service = service
        self._gates = gates
        self._metrics = metrics
        self._logger = get_logger(service=service)
        self._open = asyncio.Event()
        self.waiting = 0
        self.settings = settings
        metrics.waiting_requests.labels(service).set_function(lambda: self.waiting)

    @property
    def is_open(self) -> bool:
        """Whether requests go straight to the router."""
        return self._open.is_set()

    def close(self) -> None:
        """The router is away: new requests wait."""
        self._open.clear()
        self._switch(self._gates.close_gate)

    def open(self) -> None:
        """The router takes requests: all that waited go on, new ones go straight there."""
        if not self._open.is_set():
            # The gate first: who is let go on must not come back.
            self._switch(self._gates.open_gate)
            self._open.set()

    async def wait(self, *, accepted: bool) -> Answer:
        """Returns when the request may go on, or why it may not.

        `accepted` says that a router had taken the request before it was lost: it may have begun to work on it.
        """
        answer = await self._wait(accepted)
        self._metrics.waited_requests.labels(self._service, answer.verdict.value).inc()
        return answer

    async def _wait(self, accepted: bool) -> Answer:
        if accepted and not self.settings.retry_in_flight:
            # A dying router's sockets live on for a moment. A client that tries again at once shall not meet them.
            await asyncio.sleep(2 * _MOMENT_S)
            return Answer(Verdict.LOST, "The router ended while it worked on this request.")
        if self.waiting >= self.settings.max_waiting:
            return Answer(Verdict.FULL, "Too many requests are waiting for the router.")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                if self._open.is_set():
                    # It came because the router refused it: that it is gone will be noticed in a moment.
                    await asyncio.sleep(_MOMENT_S)
                await self._open.wait()
        except TimeoutError:
            return Answer(Verdict.TOO_LONG, f"The router was not back within {self.settings.timeout_s:g} s.", 5)
        finally:
            self.waiting -= 1
        return Answer(Verdict.GO_ON)

    def _switch(self, switch: Callable[[str], None]) -> None:
        try:
            switch(self._service)
        except OSError as error:
            self._logger.error("gate.not_switched", reason=str(error))
