"""Watches every occupant of one service: when to ask it, what to ask, and what its answers and its silence prove. An
engine is asked what it is once, and again only when something happened to it. In between, its health is asked now and
then, and the liveness connection shows at once when it ends.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.liveness import connect_liveness, is_refused
from gateway_sidecar.control.replicas.probe_turns import ProbeTurns
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.lifecycle import (
    Against,
    Crowd,
    EvidencePolicy,
    against,
    loading_delay_s,
    suspect_delay_s,
)
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    Dead,
    EngineFacts,
    Foreign,
    Loading,
    ProbeResult,
    Ready,
    Unknown,
)
from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.domain.progress import Answers
from gateway_sidecar.domain.tunnels import PathState, PathStatus, Tunnel
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks, survived
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_PROBES_AT_ONCE = 32
_TURN_OF_THE_SILENT_S = 0.5
"""Far more than an answer takes, but a tenth of a time-out: with it some 320 silent ones are asked at the same time."""
_TOUCH_GAP_S = 0.4
_SLOTS = 5
_LEAST_GAPS_S = {Foreign: 5.0, Unknown: 1.0}
_UNASKED_INTERVALS = 3
"""An engine that answers requests is asked for its health once in so many intervals."""
_OWES = 0.25
"""Of its time-out: an engine that has not answered for so long may be busy, and what it sends to clients is watched."""
_QUESTIONS_AT_ONCE = 512
"""Under way without a task: to send one takes 50 us."""
_RELIST_S = 30.0
_COUNT_GAP_S = 0.2
_FAILED_GAP_S = 0.25
"""Each failed request has its engine asked, but not more often than this."""
_CHANCE_S = 60.0
"""An engine whose requests proved it dead, and that says it is well, gets requests again after so long."""
_TURN_S = 0.05
_TOUCHED_AT_ONCE = 50
"""With the turns: a thousand touches a second, which is 3 % of one CPU."""
_LATEST = 10


PathOf = Callable[[Tunnel], PathStatus]
"""How a tunnel is."""


def far_end_of(tenure: Tenure, path_of: PathOf) -> PathStatus | None:
    """How a tenure's tunnel is, and what came of the last question through it; None if it has no tunnel."""
    tunnel = tenure.sighting.tunnel
    return (
        None
        if tunnel is None
        else _with_far_end(path_of(tunnel), tunnel, tenure.probe.result if tenure.probe.asked else None)
    )


def _with_far_end(path: PathStatus, tunnel: Tunnel, result: ProbeResult | None) -> PathStatus:
    if not path.is_up or not isinstance(result, Loading) or not result.refused:
        return path
    if path.reason:
        return PathStatus(PathState.FORBIDDEN, path.reason)
    return PathStatus(PathState.REMOTE_CLOSED, f"the tunnel is up, but nothing listens on {tunnel}")


class Question(Protocol):
    """A question for health that was sent; `is_well` is None while nothing was said to it."""

    def is_well(self) -> bool | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class KnownUrls:
    """The URLs of workers, and the bridges of engines that have not said yet which names they have."""

    said: Container[str]
    unsaid: Container[str]

    def __contains__(self, url: object) -> bool:
        return url in self.said or (isinstance(url, str) and base_of(url) in self.unsaid)


class Probe(Protocol):
    """Asks engines what they are. Never raises; what cannot be told is Unknown."""

    async def identify(self, address: str, *, timeout_s: float, access: Access) -> ProbeResult: ...

    def ask_health(self, address: str, facts: EngineFacts, *, access: Access) -> Question | None: ...

    async def check_health(
        self, address: str, facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
    ) -> ProbeResult: ...


class Prober:
    """Probes the tenures of one service: writes down what is known of each, and enqueues its key."""

    def __init__(
        self,
        settings: ServiceSettings,
        probe: Probe,
        tenures: Registry,
        queue: WorkQueue[Key],
        path_of: PathOf,
        metrics: Metrics,
    ) -> None:
        self._probe = probe
        self._queue = queue
        self._metrics = metrics
        self._tenures = tenures
        self.path_of = path_of
        self._logger = get_logger(service=settings.name)
        self._turns = ProbeTurns(_PROBES_AT_ONCE, most_s=_TURN_OF_THE_SILENT_S)
        self._patient_turns = ProbeTurns(_PROBES_AT_ONCE, most_s=math.inf)
        self._tasks = Tasks(settings.name, metrics)
        self._is_refused = asyncio.Event()
        self._counted_at = 0.0
        self._counts: Counter[Against | None] = Counter()
        self._asked_at: dict[Tenure, float] = {}
        self._questions: dict[Tenure, tuple[Question, int]] = {}
        """Under way without a task, and how often the daemon had stalled before."""
        self._reading: asyncio.TimerHandle | None = None
        self.reconfigure(settings)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new time-outs and thresholds."""
        self._settings = settings
        self._usual_access = settings.health.access()
        self._policy = EvidencePolicy(
            settings.refused.failures, settings.refused.over_s, settings.health.failures, settings.health.timeout_s
        )

    async def close(self) -> None:
        """Ends the probes under way, and begins no more."""
        for tenure in self._tenures:
            if tenure.probe.timer is not None:
                tenure.probe.timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
        for question, _ in self._questions.values():
            question.close()
        self._questions.clear()
        await self._tasks.close()

    def look_after(self, tenure: Tenure) -> None:
        """Begins whatever is due for this tenure, and comes back when the next question is."""
        self._heed_access(tenure)
        if tenure.drain.requested:
            tenure.probe.due = math.inf
            tenure.probe.liveness.disconnect()
            return
        if tenure.probe.due == math.inf:
            # It was not asked while it was drained, and may be down by now.
            tenure.probe.result, tenure.probe.identify_next, tenure.probe.due = None, True, 0.0
        if tenure.gone or tenure.address is None or tenure.probe.task is not None:
            return
        if tenure in self._questions and not self._withdraw_question(tenure):
            return
        if tenure.probe.facts is None and not tenure.can_be_described:
            return  # Its notes may hold the key that the engine wants.
        now = awake.now()
        if isinstance(tenure.probe.result, Ready) and self._is_dead(tenure) is not None:
            tenure.probe.due = 0.0
        if now >= tenure.probe.due and self._answers_requests(tenure, now):
            self._trust_since(tenure, tenure.probe.answers.answered_at)
        if now >= tenure.probe.due:
            if not self._ask_in_passing(tenure, tenure.address, now):
                self._spawn_ask(tenure, tenure.address)
            return
        self._come_back(tenure, tenure.probe.due - now)
        if isinstance(tenure.probe.result, Ready) and tenure.bridge.linked:
            self._connect_liveness(tenure, tenure.probe.result.facts, now)

    def _heed_access(self, tenure: Tenure) -> None:
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
            self._tasks.guarded(partial(self.look_after, tenure), again=partial(self._queue.add, tenure.key)),
        )

    def is_proven_ill(self, tenure: Tenure) -> bool:
        """Whether the evidence against its engine is strong now."""
        return tenure.probe.evidence.is_strong(awake.now(), self._policy)

    def suspect(self, tenure: Tenure) -> None:
        """Something happened to the engine: ask it again who it is, now."""
        tenure.probe.identify_next = True
        self._ask_soon(tenure)
        self._queue.add(tenure.key)

    def known_urls(self) -> KnownUrls:
        """The URLs that workers of tenures have, or may turn out to have."""
        unsaid: set[str] = set()
        for tenure in self._tenures:
            if tenure.leaving is not None or not (tenure.probe.facts is None or not tenure.can_be_described):
                continue
            if not self.is_proven_ill(tenure):
                # It has not said what it is: either kind of worker there may be this replica's, of an earlier daemon,
                # under whatever name. One that leaves needs none, whichever it is.
                unsaid.update(self._tenures.urls_unsaid(tenure))
        return KnownUrls(self._tenures.urls, frozenset(unsaid))

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
        now = awake.now()
        tenure.probe.answers = tenure.probe.answers.failed(now)
        if isinstance(tenure.probe.result, Ready) and now - tenure.probe.health_asked_at >= _FAILED_GAP_S:
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
            interval_s = max(interval_s, self._crowd_of(None, now).least_gap_s)
        slot_s = interval_s / _SLOTS
        due = well_at + interval_s * (0.9 + 0.2 * random.random())
        tenure.probe.due = math.ceil(due / slot_s) * slot_s

    def tunnels_changed(self) -> None:
        """Tunnels came up or went down: the occupants behind them are asked again now."""
        for tenure in self._tenures:
            tunnel = tenure.sighting.tunnel
            if tunnel is not None and self.path_of(tunnel).is_up is not isinstance(tenure.probe.result, Ready):
                self.suspect(tenure)

    def measure_tunnels(self) -> None:
        """Brings the metric of the tunnels' states up to date."""
        for tenure in self._tenures.current.values():
            path = far_end_of(tenure, self.path_of)
            if path is not None:
                self._metrics.note_tunnel(self._settings.name, tenure.replica, path.state)

    def _ask_anew(self, tenure: Tenure) -> None:
        """Its probe ended with a fault of ours, which says nothing of the engine."""
        tenure.probe.task = None
        self._queue.add(tenure.key)

    def _ask_in_passing(self, tenure: Tenure, address: str, now: float) -> bool:
        """Asks an engine that was well for its health, without a task; whether that could be done."""
        probe = tenure.probe
        was_well = isinstance(probe.result, Ready) and probe.facts is not None and not probe.identify_next
        is_suspect = probe.answers.failures or self._is_dead(tenure) is not None
        if (
            not was_well
            or is_suspect
            or self._is_list_due(tenure)
            or self._tunnel_down(tenure) is not None
            or len(self._questions) >= _QUESTIONS_AT_ONCE
        ):
            return False
        assert probe.facts is not None
        question = self._probe.ask_health(address, probe.facts, access=probe.access)
        if question is None:
            return False
        probe.health_asked_at = now
        self._asked_at.setdefault(tenure, now)
        self._questions[tenure] = question, awake.stalls()
        if self._reading is None:
            self._reading = awake.at_next_tick(self._read_answers)
        return True

    def _read_answers(self) -> None:
        """What was asked without a task. A fault with one tenure has that one looked at again."""
        now = awake.now()
        for tenure in list(self._questions):
            with survived(self._settings.name, self._read_answer.__qualname__, self._metrics):
                self._read_answer(tenure, now)
                continue
            self._drop_question(tenure)
            self._queue.add(tenure.key)
        self._reading = awake.at_next_tick(self._read_answers) if self._questions else None

    def _read_answer(self, tenure: Tenure, now: float) -> None:
        """Who is well is left alone until the next question; whatever else comes of it is for `_ask`."""
        if self._withdraw_question(tenure):
            self.look_after(tenure)
            return
        question, stalls = self._questions[tenure]
        is_well, timeout_s = question.is_well(), self._settings.health.timeout_s
        waited_s = now - tenure.probe.health_asked_at
        if is_well is None and waited_s < timeout_s:
            return
        if is_well and self._is_dead(tenure) is None:
            self._drop_question(tenure)
            self._note_probe("health", "ready", waited_s)
            self.trust_until_next(tenure)
            self.look_after(tenure)
            return
        question.close()
        del self._questions[tenure]
        silence = Unknown(f"no answer about its health within {timeout_s:g} s")
        if tenure.address is not None:
            proves = is_well is None and awake.stalls() == stalls
            self._spawn_ask(tenure, tenure.address, silence if proves else None)

    def _withdraw_question(self, tenure: Tenure) -> bool:
        """Takes back a question whose answer would not matter any more; whether that was so."""
        if not (tenure.gone or tenure.drain.requested or tenure.address is None or tenure.probe.identify_next):
            return False
        self._drop_question(tenure)
        return True

    def _drop_question(self, tenure: Tenure) -> None:
        question, _ = self._questions.pop(tenure)
        question.close()
        self._asked_at.pop(tenure, None)

    def _spawn_ask(self, tenure: Tenure, address: str, silence: Unknown | None = None) -> None:
        tenure.probe.task = self._tasks.spawn(
            self._ask(tenure, address, silence), again=partial(self._ask_anew, tenure)
        )

    def _note_probe(self, kind: str, outcome: str, took_s: float) -> None:
        self._metrics.probe_seconds.labels(self._settings.name, kind).observe(took_s)
        self._metrics.probes.labels(self._settings.name, kind, outcome).inc()

    async def _ask(self, tenure: Tenure, address: str, silence: Unknown | None = None) -> None:
        """Asks it; `silence` is what came of a question that was asked in passing."""
        known = tenure.probe.facts or (tenure.probe.result.facts if isinstance(tenure.probe.result, Loading) else None)
        access = tenure.probe.access
        # Those that did not answer last time have a queue of their own: they must not hold up the others.
        async with (self._patient_turns if isinstance(tenure.probe.result, Unknown) else self._turns).turn():
            while True:
                began, stalls = awake.monotonic(), awake.stalls()
                asked_at = awake.now()
                self._asked_at.setdefault(tenure, asked_at)
                if (down := self._tunnel_down(tenure)) is not None:
                    kind, result = "tunnel", down
                elif silence is not None:
                    kind, result, asked_at = "health", silence, tenure.probe.health_asked_at
                    began -= awake.now() - asked_at
                elif tenure.probe.identify_next or known is None:
                    kind = "identify"
                    result = await self._probe.identify(
                        address, timeout_s=self._settings.probe.timeout_s, access=access
                    )
                else:
                    kind, relist = "health", self._is_list_due(tenure)
                    tenure.probe.health_asked_at = asked_at
                    result = await self._probe.check_health(
                        address, known, timeout_s=self._settings.health.timeout_s, access=access, relist=relist
                    )
                if against(result) is None or awake.stalls() == stalls:
                    break  # What was asked across a stall proves nothing: it is asked again.
        self._note_probe(kind, type(result).__name__.lower(), awake.monotonic() - began)
        tenure.probe.task = None
        if against(result) is not Against.SILENT or tenure.gone:
            self._asked_at.pop(tenure, None)
        if tenure.gone:
            return
        tenure.probe.asked = kind != "tunnel"
        if tenure.probe.asked:
            result = self._as_seen_through(tenure, result)
        if isinstance(result, Ready) and (dead := self._is_dead(tenure)) is not None:
            result = dead
        if against(result) is Against.SILENT and tenure.probe.facts is not None and self._is_busy(tenure, asked_at):
            # What it was asked, it is asked again.
            self._learn(tenure, Ready(tenure.probe.facts), identified=False)
            self._trust_since(tenure, tenure.probe.answers.answered_at)
            tenure.probe.identify_next = kind == "identify"
            self._queue.add(tenure.key, urgent=True)
            return
        is_as_before = isinstance(result, Ready) and known is not None and result.facts.names == known.names
        if kind == "health" and is_as_before and isinstance(tenure.probe.result, Ready):
            # Well as before, the usual case by far: nothing to plan.
            self.trust_until_next(tenure)
            self.look_after(tenure)
            return
        self._learn(tenure, result, identified=kind == "identify")
        self._queue.add(tenure.key, urgent=True)

    def _is_dead(self, tenure: Tenure) -> Dead | None:
        """What its requests say against an engine that says it is well."""
        now, probe, work = awake.now(), tenure.probe, tenure.traffic.work
        if isinstance(probe.result, Dead):
            gets_chance = now - probe.ejected_at >= _CHANCE_S and work.busy_since is None
            return None if gets_chance or work.alive_at > probe.ejected_at else probe.result
        if probe.facts is None or not (probe.answers.failures or work.is_suspect(now)):
            return None
        others_at = max((t.probe.answers.answered_at for t in self._tenures if t is not tenure), default=-math.inf)
        if probe.answers.prove_it(others_at):
            failures = counted(probe.answers.failures, "request")
            return Dead(f"it says it is well, but {failures} in a row failed while other replicas answered")
        if (hung_s := work.hung_for_s(now, self._settings.health.hung_after_s, others_at)) is not None:
            return Dead(
                f"it says it is well, but its requests wait and its own counters stand still for {hung_s:.0f} s"
            )
        return None

    def _tunnel_down(self, tenure: Tenure) -> ProbeResult | None:
        """A tunnel that is down refuses connections, and knows better than the kernel why."""
        if tenure.sighting.tunnel is None:
            return None
        path = self.path_of(tenure.sighting.tunnel)
        return None if path.is_up else Loading(f"tunnel: {path}", refused=True)

    def _as_seen_through(self, tenure: Tenure, result: ProbeResult) -> ProbeResult:
        """What a refusal means at the end of a tunnel that is up."""
        tunnel = tenure.sighting.tunnel
        if tunnel is None or not isinstance(result, Loading) or not result.refused:
            return result
        return Loading(f"{_with_far_end(self.path_of(tunnel), tunnel, result)}", refused=True)

    def _learn(self, tenure: Tenure, result: ProbeResult, *, identified: bool) -> None:
        now = awake.now()
        tenure.probe.evidence = tenure.probe.evidence.after(result, now)
        if isinstance(result, Ready):
            if identified and tenure.probe.facts is not None:
                if not tenure.probe.facts.is_same_engine(result.facts):
                    tenure.probe.other = result
                    return
                result = Ready(result.facts.called(tenure.probe.facts.model))
            self._note_names(tenure, result.facts)
            tenure.probe.result = result
            tenure.probe.ejected = None
            tenure.probe.facts = result.facts
            self.trust_until_next(tenure)
            return
        tenure.probe.result = result
        if against(result) is Against.REFUSED:
            self._is_refused.set()
        # One word of its own is enough where requests have failed since it last answered one.
        is_proven = against(result) is Against.NOT_READY and tenure.probe.answers.failures > 0
        is_strong = is_proven or tenure.probe.evidence.is_strong(now, self._policy)
        if isinstance(result, Foreign) and is_strong and tenure.was_engine:
            tenure.probe.other = result
            return
        if tenure.probe.ejected is not None:
            if against(result) is Against.REFUSED:
                tenure.probe.ejected = Against.REFUSED
        elif tenure.probe.facts is not None and is_strong:
            tenure.probe.ejected = against(result)
            tenure.probe.ejected_at = now
            tenure.probe.answers = Answers(tenure.probe.answers.answered_at)
            self._logger.warning(
                "replica.ejected",
                replica=tenure.replica,
                worker_url=tenure.url,
                reason=result.reason,
                failures=tenure.probe.evidence.failures,
                over_s=round(now - tenure.probe.evidence.since, 2),
            )
        if against(result) is Against.REFUSED or tenure.probe.ejected is not None or tenure.probe.facts is None:
            # Whoever answers next may be somebody else, unless this answer was the engine's own.
            tenure.probe.identify_next = not (
                isinstance(result, Dead) or (isinstance(result, Loading) and result.facts is not None)
            )
        tenure.probe.due = now + self._next_gap_s(tenure, result, now)

    def _is_list_due(self, tenure: Tenure) -> bool:
        """Whether it is time to see which names the engine has: adapters are loaded and unloaded."""
        return awake.now() // _RELIST_S != tenure.probe.health_asked_at // _RELIST_S

    def _note_names(self, tenure: Tenure, facts: EngineFacts) -> None:
        """An engine with other names than before is no other engine."""
        before = tenure.probe.facts
        if before is not None and before.names != facts.names:
            came, went = sorted({*facts.names} - {*before.names}), sorted({*before.names} - {*facts.names})
            self._logger.info("replica.names", replica=tenure.replica, came=came, went=went)

    def _next_gap_s(self, tenure: Tenure, result: ProbeResult, now: float) -> float:
        if tenure.probe.facts is not None and tenure.probe.ejected is None:
            return suspect_delay_s(tenure.probe.evidence, self._policy)
        if isinstance(result, Foreign) and tenure.was_engine:
            return suspect_delay_s(tenure.probe.evidence, self._policy)
        age_s = now - (tenure.seen_at if tenure.probe.ejected is None else tenure.probe.ejected_at)
        crowd = self._crowd_of(against(result), now)
        return max(loading_delay_s(result, age_s, crowd), _LEAST_GAPS_S.get(type(result), 0.0))

    def _crowd_of(self, kind: Against | None, now: float) -> Crowd:
        """How many give answers of one kind; with None, how many are ready and have no port.

        Each kind is a crowd of its own: dead sockets hold up no engine that loads.
        """
        if now >= self._counted_at + _COUNT_GAP_S:
            self._counted_at = now
            counted = ((t.probe.result, t.bridge.port) for t in self._tenures if not t.gone)
            self._counts = Counter(
                against(result)
                for result, port in counted
                if result is not None and not (isinstance(result, Ready) and port is not None)
            )
        return Crowd(max(self._counts[kind], 1))

    async def touch_refused(self) -> None:
        """Runs until cancelled. Where many sockets refuse, each is asked seldom: they are touched in between.

        All of them in turn, and the latest to come each time, as an engine binds its socket a moment before it listens.
        """
        turn = 0
        while True:
            await self._is_refused.wait()  # At rest nobody is.
            tenures = list(self._tenures)
            batch = tenures[turn : turn + _TOUCHED_AT_ONCE]
            turn = turn + _TOUCHED_AT_ONCE if batch else 0
            now = awake.now()
            if turn == 0 and not any(self._waits_refused(tenure, now) for tenure in tenures):
                self._is_refused.clear()
            for tenure in {t.key: t for t in (*batch, *tenures[-_LATEST:])}.values():
                if self._waits_refused(tenure, now) and tenure.address and not is_refused(tenure.address):
                    self.suspect(tenure)
            await asyncio.sleep(_TURN_S if len(tenures) > _TOUCHED_AT_ONCE else _TOUCH_GAP_S)

    def _waits_refused(self, tenure: Tenure, now: float) -> bool:
        """Whether nothing listened there when it was last asked, so that the next question comes later."""
        result = tenure.probe.result
        refused = isinstance(result, Loading) and result.refused and not result.closed
        at_rest = tenure.gone or tenure.drain.requested or tenure.probe.task is not None
        return refused and not at_rest and tenure.sighting.tunnel is None and tenure.probe.due > now + _TOUCH_GAP_S

    def _connect_liveness(self, tenure: Tenure, facts: EngineFacts, now: float) -> None:
        """Makes sure that the engine's end will be noticed at once, or within a moment."""
        liveness = tenure.probe.liveness
        if tenure.probe.access.tls:
            return  # A connection without a handshake is an error to it, or holds up a server of one thread.
        if liveness.connection is not None or tenure.address is None or liveness.is_connecting:
            return
        if now < liveness.due:
            self._queue.add_after(tenure.key, liveness.due - now)
        else:
            liveness.is_connecting = True
            opening = self._open_liveness(tenure, tenure.address, facts)
            self._tasks.spawn(opening, again=partial(self._queue.add, tenure.key))

    async def _open_liveness(self, tenure: Tenure, address: str, facts: EngineFacts) -> None:
        liveness, grpc = tenure.probe.liveness, facts.connection_mode is ConnectionMode.GRPC
        in_line = ENGINES[facts.runtime_type].single_connection
        ended = self._left_the_line if in_line else partial(self._liveness_ended, opened=awake.now())
        try:
            async with within(self._settings.health.timeout_s):
                connection = await connect_liveness(
                    address,
                    self._tasks.guarded(partial(ended, tenure), again=partial(self.suspect, tenure)),
                    grpc=grpc,
                    in_line=in_line,
                )
        except BlockingIOError:  # Its queue is full: it is busy, and somebody listens.
            self._left_the_line(tenure)
            return
        except (OSError, TimeoutError):
            liveness.due = awake.now() + _TOUCH_GAP_S
            self.suspect(tenure)
            return
        finally:
            liveness.is_connecting = False
        if tenure.address is None or tenure.drain.requested:
            connection.abort()
        else:
            liveness.connection = connection

    def _left_the_line(self, tenure: Tenure) -> None:
        """The engine has taken the connection, or has ended: the next one will show which."""
        tenure.probe.liveness.connection = None
        if tenure.address is not None and not tenure.drain.requested:
            tenure.probe.liveness.due = awake.now() + _TOUCH_GAP_S
            self._queue.add_after(tenure.key, _TOUCH_GAP_S)

    def _liveness_ended(self, tenure: Tenure, *, opened: float) -> None:
        if tenure.address is None or tenure.drain.requested:
            return  # We closed it ourselves.
        now, liveness = awake.now(), tenure.probe.liveness
        liveness.connection = None
        life_s, usual_s = now - opened, liveness.life_s
        liveness.life_s = life_s
        if life_s >= 2 and abs(life_s - usual_s) < 0.2 * usual_s:
            liveness.due = now  # The server closes idle connections after this time: no news.
            self._queue.add(tenure.key)
            return
        liveness.due = now + (0 if life_s >= 2 else _TOUCH_GAP_S)
        self.suspect(tenure)
