"""One question to an engine in full: when it is its turn, what it is asked, what its tunnel makes of that, and what
came of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.domain.lifecycle import against
from gateway_sidecar.domain.model import Access, EngineFacts, Loading, ProbeResult, Ready, Unknown
from gateway_sidecar.domain.tunnels import PathOf, PathStatus, far_end
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics

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


class TunnelEnds:
    """What the tunnels of one service's replicas make of questions through them; a tenure may have none."""

    def __init__(self, service: str, tenures: Registry, path_of: PathOf, metrics: Metrics) -> None:
        self._service = service
        self._tenures = tenures
        self._path_of = path_of
        self._metrics = metrics

    def far_end_of(self, tenure: Tenure) -> PathStatus | None:
        """How a tenure's tunnel is, and what came of the last question through it; None if it has no tunnel."""
        tunnel, probe = tenure.sighting.tunnel, tenure.probe
        return None if tunnel is None else far_end(tunnel, self._path_of(tunnel), probe.result if probe.asked else None)

    def refusal_of(self, tenure: Tenure) -> Loading | None:
        """A tunnel that is down refuses connections, and knows better than the kernel why; None while it is up."""
        tunnel = tenure.sighting.tunnel
        path = None if tunnel is None else self._path_of(tunnel)
        return None if path is None or path.is_up else Loading(f"tunnel: {path}", refused=True)

    def as_seen_through(self, tenure: Tenure, result: ProbeResult) -> ProbeResult:
        """What a refusal means at the end of a tunnel that is up."""
        tunnel = tenure.sighting.tunnel
        if tunnel is None or not isinstance(result, Loading) or not result.refused:
            return result
        return Loading(f"{far_end(tunnel, self._path_of(tunnel), result)}", refused=True)

    def outdated(self) -> Iterator[Tenure]:
        """Whose last answers do not fit how their tunnels are now."""
        for tenure in self._tenures:
            tunnel = tenure.sighting.tunnel
            if tunnel is not None and self._path_of(tunnel).is_up is not isinstance(tenure.probe.result, Ready):
                yield tenure

    def measure(self) -> None:
        """Brings the metric of the tunnels' states up to date."""
        for tenure in self._tenures.current.values():
            path = self.far_end_of(tenure)
            if path is not None:
                self._metrics.note_tunnel(self._service, tenure.replica, path.state)


class ProbeTurns:
    """Which engines may be asked now: a bounded number at a time, of which a silent one delays the others only briefly.

    A turn lasts until the probe ends, or `most_s` seconds if it takes longer: it goes on without.

    Of those that wait the latest goes first: a crowd that came before may be silent, each of it for its whole time-out.
    """

    def __init__(self, at_once: int, *, most_s: float) -> None:
        self._free = at_once
        self._most_s = most_s
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Begins when it is one's turn."""
        await self._take()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._pass_on()

        timer = asyncio.get_running_loop().call_later(self._most_s, end)
        try:
            yield
        finally:
            timer.cancel()
            end()

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._pass_on()  # Its turn came at the same moment.
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            latest = self._waiting.pop()
            if not latest.done():  # Else it waits no more.
                latest.set_result(None)
                return
        self._free += 1
