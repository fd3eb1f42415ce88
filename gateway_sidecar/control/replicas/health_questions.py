"""Questions for health that are asked without a task: nearly all of those to engines that are well.

They are sent at once, and their answers are looked for together, a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway_sidecar.control.replicas.asking import Probe, Question
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import survived
from gateway_sidecar.telemetry.metrics import Metrics

_AT_ONCE = 1024
"""To send one takes 30 us."""
_MOMENT_S = 0.1
_RELIST_S = 30.0

Heed = Callable[[bool | None], None]
"""Takes what the engine said: whether it is well. None for its silence, which lasted and which no stall explains."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """until: how long an answer is waited for (awake seconds). stalls: how often the daemon had stalled before."""

    question: Question
    until: float
    stalls: int
    heed: Heed


class HealthQuestions:
    """Those to the engines of one service. A fault of ours with one tenure has that tenure looked at again."""

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

    def ask(self, tenure: Tenure, address: str, facts: EngineFacts, *, timeout_s: float, heed: Heed) -> bool:
        """Whether the question could be sent. If so, `heed` is called once, unless the answer matters no more then."""
        if len(self._sent) >= _AT_ONCE:
            return False
        # Adapters are loaded and unloaded. Only HTTP tells of them.
        is_http = facts.connection_mode is ConnectionMode.HTTP
        relist = is_http and awake.now() // _RELIST_S != tenure.probe.health_asked_at // _RELIST_S
        question = self._probe.ask_health(address, facts, access=tenure.probe.access, relist=relist)
        if question is None:
            return False
        self._sent[tenure] = _Sent(question, awake.now() + timeout_s, awake.stalls(), heed)
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
        sent.heed(None if is_silent else bool(is_well))

    def _take_back(self, tenure: Tenure) -> None:
        sent = self._sent.pop(tenure, None)
        if sent is not None:
            sent.question.close()
