"""The questions to engines: one in full, when it is its turn, or one for health alone, which needs no task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.lifecycle import against
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Loading, ProbeResult, Ready, Unknown
from gateway_sidecar.domain.tunnels import PathOf, PathStatus, far_end
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import survived
from gateway_sidecar.telemetry.metrics import Metrics

_AT_ONCE = 32
"""Questions in full."""
_TURN_OF_THE_SILENT_S = 0.5
"""Far more than an answer takes, but a tenth of a time-out: with it some 320 silent ones are asked at the same time."""
_SENT_AT_ONCE = 1024
"""Questions for health without a task; to send one takes 30 us."""
_MOMENT_S = 0.1  # A fiftieth of the time-out (5 s by default): answers are taken in crowds.
_RELIST_S = 30.0  # A choice: an adapter that an engine has loaded is routed within it.


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

    def path_of(self, tenure: Tenure) -> PathStatus | None:
        """How a tenure's tunnel itself is; None if it has no tunnel."""
        tunnel = tenure.sighting.tunnel
        return None if tunnel is None else self._path_of(tunnel)

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


OnAnswer = Callable[[bool | None], None]
"""Takes what the engine said: whether it is well. None for its silence, which lasted and which no stall explains."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """until: how long an answer is waited for (awake seconds). stalls: how often the daemon had stalled before."""

    question: Question
    until: float
    stalls: int
    on_answer: OnAnswer


class HealthQuestions:
    """Questions for health that are asked without a task: nearly all of those to engines that are well.

    They are sent at once, and their answers are looked for together, a moment later. A fault of ours with one tenure
    has that tenure looked at again.
    """

    def __init__(self, service: str, probe: Probe, queue: WorkQueue[Key], metrics: Metrics) -> None:
        self._service = service
        self._probe = probe
        self._queue = queue
        self._metrics = metrics
        self._sent: dict[Tenure, _Sent] = {}
        self._reading: asyncio.TimerHandle | None = None

    def __contains__(self, tenure: Tenure) -> bool:
        return tenure in self._sent

    def close(self) -> None:
        """Takes back all of them."""
        if self._reading is not None:
            self._reading.cancel()
        for tenure in list(self._sent):
            self._take_back(tenure)

    def ask(self, tenure: Tenure, address: str, facts: EngineFacts, *, timeout_s: float, on_answer: OnAnswer) -> bool:
        """Whether the question could be sent. If so, `on_answer` is called once, unless the answer matters no more."""
        if len(self._sent) >= _SENT_AT_ONCE:
            return False
        # Adapters are loaded and unloaded. Only HTTP tells of them.
        is_http = facts.connection_mode is ConnectionMode.HTTP
        relist = is_http and awake.now() // _RELIST_S != tenure.probe.health_asked_at // _RELIST_S
        question = self._probe.ask_health(address, facts, access=tenure.probe.access, relist=relist)
        if question is None:
            return False
        self._sent[tenure] = _Sent(question, awake.now() + timeout_s, awake.stalls(), on_answer)
        if self._reading is None:
            self._read_soon()
        return True

    def withdraw(self, tenure: Tenure) -> bool:
        """Takes back a question whose answer would not matter any more; whether none is under way now."""
        is_moot = tenure.gone or tenure.drain.requested or tenure.address is None or tenure.probe.identify_next
        if is_moot:
            self._take_back(tenure)
        return tenure not in self._sent

    def _read_all(self) -> None:
        now = awake.now()
        for tenure in list(self._sent):
            with survived(self._service, self._read.__qualname__, self._metrics):
                self._read(tenure, now)
                continue
            self._take_back(tenure)
            self._queue.add(tenure.key)
        self._reading = None
        if self._sent:
            self._read_soon()

    def _read_soon(self) -> None:
        self._reading = asyncio.get_running_loop().call_later(_MOMENT_S, self._read_all)

    def _read(self, tenure: Tenure, now: float) -> None:
        sent = self._sent[tenure]
        if self.withdraw(tenure):
            self._queue.add(tenure.key)
            return
        is_well = sent.question.is_well()
        if is_well is None and now < sent.until:
            return
        self._take_back(tenure)
        is_silent = is_well is None and awake.stalls() == sent.stalls
        sent.on_answer(None if is_silent else bool(is_well))

    def _take_back(self, tenure: Tenure) -> None:
        sent = self._sent.pop(tenure, None)
        if sent is not None:
            sent.question.close()
