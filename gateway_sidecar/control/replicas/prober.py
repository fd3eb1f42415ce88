"""Watches every occupant of one service: when to ask it, and what its answers and its silence prove. An engine is asked
what it is once, and again only when something happened to it. In between, its health is asked now and then: without a
task where that is all, else in full (`asking.py`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from functools import partial

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.asking import Answer, Asking, HealthQuestions, Probe, TunnelEnds
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.lifecycle import Against, Crowd, EvidencePolicy, against, loading_delay_s, suspect_delay_s
from gateway_sidecar.domain.model import Dead, EngineFacts, Foreign, Loading, ProbeResult, Ready, Unknown
from gateway_sidecar.domain.progress import Answers, found_dead, stays_dead
from gateway_sidecar.domain.tunnels import PathOf
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_SLOTS = 5  # Engines are asked in crowds, which costs less than one by one, and small ones: a fifth of them at a time.
_LEAST_GAPS_S = {Foreign: 5.0, Unknown: 1.0}
_UNASKED_INTERVALS = 3
"""An engine that answers requests is asked for its health once in so many intervals."""
_OWES = 0.25
"""Of its time-out: an engine that has not answered for so long may be busy, and what it sends to clients is watched."""
_FAILED_GAP_S = 0.25
"""Each failed request has its engine asked, but not more often than this."""
_COUNT_GAP_S = 0.2
"""To count a thousand takes a millisecond or two."""


class Prober:
    """Probes the tenures of one service: writes down what is known of each, and enqueues its key.

    refusals: set when nothing listened at a socket that was asked.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        probe: Probe,
        tenures: Registry,
        queue: WorkQueue[Key],
        path_of: PathOf,
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._tenures = tenures
        self._logger = get_logger(service=settings.name)
        self._tasks = Tasks(settings.name, metrics)
        self._crowds = Crowds(tenures)
        self.tunnels = TunnelEnds(settings.name, tenures, path_of, metrics)
        self._asking = Asking(settings, probe, self.tunnels)
        self._questions = HealthQuestions(settings.name, probe, queue, metrics)
        self._asked_at: dict[Tenure, float] = {}
        """Since when a question waits for an answer."""
        self.refusals = asyncio.Event()
        self.reconfigure(settings)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new time-outs and thresholds."""
        self._settings = settings
        self._asking.reconfigure(settings)
        self._usual_access = settings.access()
        self._policy = EvidencePolicy(
            settings.refused.failures, settings.refused.over_s, settings.health.failures, settings.health.timeout_s
        )

    async def close(self) -> None:
        """Ends the probes under way, and begins no more."""
        for tenure in self._tenures:
            if tenure.probe.timer is not None:
                tenure.probe.timer.cancel()
        self._questions.close()
        await self._tasks.close()

    def look_after(self, tenure: Tenure) -> None:
        """Begins whatever is due for this tenure, and comes back when the next question is."""
        self._read_access(tenure)
        self._look(tenure)

    def _look(self, tenure: Tenure) -> None:
        probe, now = tenure.probe, awake.now()
        if tenure.drain.requested:
            probe.due = math.inf
            self._asked_at.pop(tenure, None)
            return
        if probe.due == math.inf:
            # It was not asked while it was drained, and may be down by now.
            probe.result, probe.identify_next, probe.due = None, True, 0.0
        if tenure.gone or tenure.address is None or probe.task is not None or not self._questions.withdraw(tenure):
            return
        if probe.facts is None and not tenure.can_be_described:
            return  # Its notes may hold the key that the engine wants.
        if isinstance(probe.result, Ready) and self._is_dead(tenure) is not None:
            probe.due = 0.0
        if now >= probe.due and self._answers_requests(tenure, now):
            self._trust_since(tenure, probe.answers.answered_at)
        if now < probe.due:
            self._come_back(tenure, probe.due - now)
        elif not self._ask_in_passing(tenure, tenure.address, now):
            self._spawn_ask(tenure, tenure.address)

    def _read_access(self, tenure: Tenure) -> None:
        """Who is to be asked in another way is asked again, now."""
        access = tenure.notes.overrides.access(self._usual_access)
        if tenure.can_be_described and access != tenure.probe.access:
            tenure.probe.access, tenure.probe.identify_next = access, True
            self._ask_soon(tenure)

    def _ask_soon(self, tenure: Tenure) -> None:
        """As soon as it is looked at, or as it does not rest any more."""
        tenure.probe.due = math.inf if tenure.probe.due == math.inf else 0.0

    def _come_back(self, tenure: Tenure, delay_s: float) -> None:
        """Not by way of the queue: what follows is a question, and only its answer may have to be planned for.

        Of 1,000 replicas that are well a hundred questions a second are due; a plan takes some 35 us.
        """
        if tenure.probe.timer is not None:
            tenure.probe.timer.cancel()
        tenure.probe.timer = asyncio.get_running_loop().call_later(
            delay_s,
            self._tasks.guarded(partial(self._look, tenure), again=partial(self._queue.add, tenure.key)),
        )

    @property
    def policy(self) -> EvidencePolicy:
        """How much evidence takes an engine out of rotation."""
        return self._policy

    def is_proven_ill(self, tenure: Tenure) -> bool:
        """Whether the evidence against its engine is strong now."""
        return tenure.probe.evidence.is_strong(awake.now(), self._policy)

    def suspect(self, tenure: Tenure) -> None:
        """Something happened to the engine: ask it again who it is, now."""
        tenure.probe.identify_next = True
        self._ask_soon(tenure)
        self._queue.add(tenure.key)

    def trust_until_next(self, tenure: Tenure) -> None:
        """The engine is known to be well; the next question comes after the usual interval, spread a little.

        Questions are asked in small crowds, a few times an interval: twenty in a row cost a third of twenty one by
        one, each with cold caches.
        """
        self._trust_since(tenure, awake.now())

    def note_answer(self, tenure: Tenure) -> None:
        """It has just answered a request, or a part of one, which proves as much as an answer about its health."""
        tenure.probe.answers = Answers(awake.now())

    def note_failure(self, tenure: Tenure) -> None:
        """A request to it has failed just now: that may be the request's fault, so it is asked."""
        now, probe = awake.now(), tenure.probe
        probe.answers = probe.answers.failed(now)
        was_just_asked = probe.task is not None or now - probe.health_asked_at < _FAILED_GAP_S
        if isinstance(probe.result, Ready) and not was_just_asked:
            self._ask_soon(tenure)
            self._queue.add(tenure.key, urgent=True)

    def owing(self) -> list[Tenure]:
        """Whose engines owe an answer, or did not give their last one: traffic may show that they are busy."""
        now, owes_s = awake.now(), _OWES * self._settings.health.timeout_s
        for tenure in [tenure for tenure in self._asked_at if tenure.gone]:
            del self._asked_at[tenure]
        return [
            tenure
            for tenure, asked_at in self._asked_at.items()
            if now - asked_at >= owes_s and tenure.leaving is None and tenure.bridge.port is not None
        ]

    def _answers_requests(self, tenure: Tenure, now: float) -> bool:
        """Whether requests show that it is well. It is asked all the same now and then: others say who answered."""
        return (
            isinstance(tenure.probe.result, Ready)
            and not tenure.probe.identify_next
            and not tenure.probe.answers.failures
            and now - tenure.probe.answers.answered_at < self._settings.health.interval_s
            and now - tenure.probe.health_asked_at < _UNASKED_INTERVALS * self._settings.health.interval_s
        )

    def _is_busy(self, tenure: Tenure, asked_at: float) -> bool:
        """Whether traffic shows that an engine that was asked at `asked_at`, and is silent, is busy and not hung."""
        least_at = min(asked_at, awake.now() - self._settings.health.interval_s)
        return tenure.probe.ejected is None and tenure.probe.answers.answered_at >= least_at

    def _trust_since(self, tenure: Tenure, well_at: float) -> None:
        tenure.probe.identify_next = False
        now = awake.now()
        interval_s = self._settings.health.interval_s
        if tenure.bridge.port is None:
            # It has just been found or it waits for a port, and of those there may be any number.
            interval_s = max(interval_s, self._crowds.of(None, now).least_gap_s)
        slot_s = interval_s / _SLOTS
        due = well_at + interval_s * (0.9 + 0.2 * random.random())
        tenure.probe.due = math.ceil(due / slot_s) * slot_s

    def tunnels_changed(self) -> None:
        """Tunnels came up or went down: the occupants behind them are asked again now."""
        for tenure in self.tunnels.outdated():
            self.suspect(tenure)

    def _ask_in_passing(self, tenure: Tenure, address: str, now: float) -> bool:
        """Asks an engine that was well for its health, without a task; whether that could be done."""
        probe = tenure.probe
        was_well = isinstance(probe.result, Ready) and not probe.identify_next
        if probe.facts is None or not was_well or probe.answers.failures or self.tunnels.refusal_of(tenure) is not None:
            return False
        timeout_s, on_answer = self._settings.health.timeout_s, partial(self._on_answer, tenure)
        if not self._questions.ask(tenure, address, probe.facts, timeout_s=timeout_s, on_answer=on_answer):
            return False
        probe.health_asked_at = now
        self._asked_at.setdefault(tenure, now)
        return True

    def _on_answer(self, tenure: Tenure, is_well: bool | None) -> None:
        """Who is well is left alone until the next question. What else it may have to say it is asked in full."""
        asked_at, before = tenure.probe.health_asked_at, tenure.probe.result
        took_s = awake.now() - asked_at
        if is_well and isinstance(before, Ready):
            self._take(tenure, Answer("health", before, asked_at, took_s))
        elif is_well is None and self.tunnels.refusal_of(tenure) is None:
            silence = Unknown(f"no answer about its health within {self._settings.health.timeout_s:g} s")
            self._take(tenure, Answer("health", silence, asked_at, took_s))
        elif tenure.address is not None:
            self._spawn_ask(tenure, tenure.address)

    def stop(self, tenure: Tenure) -> None:
        """Its engine is gone: an answer that it owes is awaited no more."""
        if tenure.probe.task is not None:
            tenure.probe.task.cancel()

    def _spawn_ask(self, tenure: Tenure, address: str) -> None:
        asking = self._ask(tenure, address)
        tenure.probe.task = self._tasks.spawn(asking, again=partial(self._ask_anew, tenure))

    def _ask_anew(self, tenure: Tenure) -> None:
        """Its probe ended with a fault of ours, which says nothing of the engine."""
        tenure.probe.task = None
        self._queue.add(tenure.key)

    async def _ask(self, tenure: Tenure, address: str) -> None:
        self._asked_at.setdefault(tenure, awake.now())
        answer = await self._asking.ask(tenure, address)
        tenure.probe.task = None
        self._take(tenure, answer)

    def _take(self, tenure: Tenure, answer: Answer) -> None:
        """What follows from an answer, or from silence: the next question, and a plan if it is news."""
        probe, result = tenure.probe, answer.result
        service, outcome = self._settings.name, type(result).__name__.lower()
        self._metrics.probe_seconds.labels(service, answer.to).observe(answer.took_s)
        self._metrics.probes.labels(service, answer.to, outcome).inc()
        if against(result) is not Against.SILENT or tenure.gone:
            self._asked_at.pop(tenure, None)
        if tenure.gone or tenure.drain.requested:
            # One that is drained is asked again when it is resumed. Whoever answers here may be the engine that the
            # drain means, if another one had taken its place by then: it is no next one, which would serve.
            return
        probe.asked = answer.to != "tunnel"
        if probe.asked:
            probe.health_asked_at = answer.asked_at
        if isinstance(result, Ready):
            result = self._is_dead(tenure) or result
        if against(result) is Against.SILENT and probe.facts is not None and self._is_busy(tenure, answer.asked_at):
            # What it was asked, it is asked again.
            self._learn(tenure, Ready(probe.facts), identified=False)
            self._trust_since(tenure, probe.answers.answered_at)
            probe.identify_next = answer.to == "identify"
        elif answer.to == "health" and isinstance(result, Ready) and self._is_as_before(tenure, result):
            self.trust_until_next(tenure)  # The usual case by far: nothing to plan.
            self._come_back(tenure, probe.due - awake.now())
            return
        else:
            self._learn(tenure, result, identified=answer.to == "identify")
        self._queue.add(tenure.key, urgent=True)

    def _is_as_before(self, tenure: Tenure, result: Ready) -> bool:
        before = tenure.probe.result
        return isinstance(before, Ready) and before.facts.names == result.facts.names

    def _is_dead(self, tenure: Tenure) -> Dead | None:
        """What its requests say against an engine that says it is well."""
        now, probe, work = awake.now(), tenure.probe, tenure.traffic.work
        if isinstance(probe.result, Dead):
            return probe.result if stays_dead(work, probe.ejected_at, now) else None
        if probe.facts is None or not (probe.answers.failures or work.is_suspect(now)):
            return None
        others_at = max((t.probe.answers.answered_at for t in self._tenures if t is not tenure), default=-math.inf)
        return found_dead(probe.answers, work, others_at, self._settings.health.hung_after_s, now)

    def _learn(self, tenure: Tenure, result: ProbeResult, *, identified: bool) -> None:
        now, probe = awake.now(), tenure.probe
        probe.evidence = probe.evidence.after(result, now)
        if isinstance(result, Ready):
            if identified and probe.facts is not None:
                if not probe.facts.is_same_engine(result.facts):
                    probe.other = result
                    return
                result = Ready(result.facts.called(probe.facts.model))
            self._note_names(tenure, result.facts)
            probe.result, probe.facts, probe.ejected = result, result.facts, None
            self.trust_until_next(tenure)
            return
        probe.result = result
        if against(result) is Against.REFUSED:
            self.refusals.set()
        # One word of its own is enough where requests have failed since it last answered one.
        is_proven = against(result) is Against.NOT_READY and probe.answers.failures > 0
        is_strong = is_proven or probe.evidence.is_strong(now, self._policy)
        if isinstance(result, Foreign) and is_strong and tenure.was_engine:
            probe.other = result
            return
        if probe.ejected is not None:
            if against(result) is Against.REFUSED:
                probe.ejected = Against.REFUSED
        elif probe.facts is not None and is_strong:
            probe.ejected, probe.ejected_at = against(result), now
            probe.answers = Answers(probe.answers.answered_at)
            self._logger.warning(
                "replica.ejected",
                replica=tenure.replica,
                worker_url=tenure.url,
                reason=result.reason,
                failures=probe.evidence.failures,
                over_s=round(now - probe.evidence.since, 2),
            )
        if against(result) is Against.REFUSED or probe.ejected is not None or probe.facts is None:
            # Whoever answers next may be somebody else, unless this answer was the engine's own.
            probe.identify_next = not (isinstance(result, Dead) or _is_its_own(result, probe.facts))
        probe.due = now + self._next_gap_s(tenure, result, now)

    def _note_names(self, tenure: Tenure, facts: EngineFacts) -> None:
        """An engine with other names than before is no other engine."""
        before = tenure.probe.facts
        if before is not None and before.names != facts.names:
            came, went = sorted({*facts.names} - {*before.names}), sorted({*before.names} - {*facts.names})
            self._logger.info("replica.names", replica=tenure.replica, came=came, went=went)

    def _next_gap_s(self, tenure: Tenure, result: ProbeResult, now: float) -> float:
        probe = tenure.probe
        may_stay = probe.facts is not None and probe.ejected is None
        if may_stay or (isinstance(result, Foreign) and tenure.was_engine):
            return suspect_delay_s(probe.evidence, self._policy)
        age_s = now - (tenure.seen_at if probe.ejected is None else probe.ejected_at)
        crowd = self._crowds.of(against(result), now)
        return max(loading_delay_s(result, age_s, crowd), _LEAST_GAPS_S.get(type(result), 0.0))


def _is_its_own(result: ProbeResult, known: EngineFacts | None) -> bool:
    """Whether this was said by the engine that is known, or by one of which nothing is known yet.

    An engine that has taken the place of another is not ready at first, and says already who it is.
    """
    said = result.facts if isinstance(result, Loading) else None
    return said is not None and (known is None or known.is_same_engine(said))


class Crowds:
    """How many replicas of a service are not ready: the more there are, the less often each is asked.

    Each kind of answer is a crowd of its own: dead sockets hold up no engine that loads.
    """

    def __init__(self, tenures: Registry) -> None:
        self._tenures = tenures
        self._counted_at = 0.0
        self._counts: Counter[Against | None] = Counter()

    def of(self, kind: Against | None, now: float) -> Crowd:
        """How many give answers of one kind; with None, how many are ready and have no port."""
        if now >= self._counted_at + _COUNT_GAP_S:
            self._counted_at = now
            counted = ((t.probe.result, t.bridge.port) for t in self._tenures if not t.gone)
            self._counts = Counter(
                against(result)
                for result, port in counted
                if result is not None and not (isinstance(result, Ready) and port is not None)
            )
        return Crowd(max(self._counts[kind], 1))
