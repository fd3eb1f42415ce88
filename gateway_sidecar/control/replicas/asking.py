"""One question to an engine in full: when it is its turn, what it is asked, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.probe_turns import ProbeTurns
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.replicas.tunnel_ends import TunnelEnds
from gateway_sidecar.domain.lifecycle import against
from gateway_sidecar.domain.model import Access, EngineFacts, Loading, ProbeResult, Unknown
from gateway_sidecar.supervision import awake

_AT_ONCE = 32
_TURN_OF_THE_SILENT_S = 0.5
"""Far more than an answer takes, but a tenth of a time-out: with it some 320 silent ones are asked at the same time."""


class Question(Protocol):
    """A question for health that was sent; `is_well` is None while nothing was said to it."""

    def is_well(self) -> bool | None: ...

    def close(self) -> None: ...


class Probe(Protocol):
    """Asks engines what they are. Never raises; what cannot be told is Unknown."""

    async def identify(self, address: str, *, timeout_s: float, access: Access) -> ProbeResult: ...

    def ask_health(self, address: str, facts: EngineFacts, *, access: Access, relist: bool) -> Question | None: ...

    async def check_health(
        self, address: str, facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
    ) -> ProbeResult: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    to: what was asked; "tunnel" where the way there is down, so that nobody was.
    asked_at: when (awake seconds).
    took_s: how long the engine took, whether the daemon ran or not.
    """

    to: Literal["tunnel", "identify", "health"]
    result: ProbeResult
    asked_at: float
    took_s: float


class Asking:
    """Asks the engines of one service, a bounded number at a time."""

    def __init__(self, settings: ServiceSettings, probe: Probe, tunnels: TunnelEnds) -> None:
        self._probe = probe
        self._tunnels = tunnels
        self._turns = ProbeTurns(_AT_ONCE, most_s=_TURN_OF_THE_SILENT_S)
        self._patient_turns = ProbeTurns(_AT_ONCE, most_s=math.inf)
        self.reconfigure(settings)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new time-outs."""
        self._settings = settings

    async def ask(self, tenure: Tenure, address: str) -> Answer:
        """What the engine is, or how it does if it is known what it is."""
        # Those that did not answer last time have a queue of their own: they must not hold up the others.
        turns = self._patient_turns if isinstance(tenure.probe.result, Unknown) else self._turns
        async with turns.turn():
            while True:
                stalls = awake.stalls()
                answer = await self._ask_once(tenure, address)
                if against(answer.result) is None or awake.stalls() == stalls:
                    return answer  # Else: what was asked across a stall proves nothing, and is asked again.

    async def _ask_once(self, tenure: Tenure, address: str) -> Answer:
        probe, began, asked_at = tenure.probe, awake.monotonic(), awake.now()
        refusal = self._tunnels.refusal_of(tenure)
        if refusal is not None:
            return Answer("tunnel", refusal, asked_at, 0.0)
        known = probe.facts or (probe.result.facts if isinstance(probe.result, Loading) else None)
        to: Literal["identify", "health"]
        if probe.identify_next or known is None:
            to, timeout_s = "identify", self._settings.probe.timeout_s
            result = await self._probe.identify(address, timeout_s=timeout_s, access=probe.access)
        else:
            # One that loads has no use for its names yet, and a crowd that does is asked a lot.
            to, timeout_s, relist = "health", self._settings.health.timeout_s, not isinstance(probe.result, Loading)
            result = await self._probe.check_health(
                address, known, timeout_s=timeout_s, access=probe.access, relist=relist
            )
        return Answer(to, self._tunnels.as_seen_through(tenure, result), asked_at, awake.monotonic() - began)
