"""Where requests wait while a service cannot answer: bounded in number and time, and never with their bodies.

nginx keeps the request and asks here whether it may go on. Nothing of it is read, stored or changed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from hashlib import md5
from typing import Protocol

from gateway_sidecar.config import HoldSettings
from gateway_sidecar.control.workqueue import Key, Part, WorkQueue
from gateway_sidecar.domain.planning import Missing
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_MOMENT_S = 0.05  # A choice: a dying router's sockets live on for a moment, and clients hardly notice it.
_SLOWER = 4
"""A request that is refused again waits so many times longer than before: its tries are few."""
_MOST_LOST = 1
"""How often a request is sent again that a dying router had taken: it may be what routers die of."""
_MOST_TRIES = 4
"""How often a request may be let go on. nginx gives one up, with an error page of its own, at its fifth return."""


class Verdict(StrEnum):
    """What becomes of a request that waited."""

    GO_ON = "went_on"
    FULL = "full"
    TOO_LONG = "too_long"
    LOST = "lost"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict, with words for the client and the seconds after which a new try is worth while."""

    verdict: Verdict
    message: str = ""
    code: str = ""
    retry_after_s: int = 1


_GO_ON = Answer(Verdict.GO_ON)

_CODES = {
    Missing.ROUTER: "router_unavailable",
    Missing.REPLICA: "no_replica",
    Missing.PREFILL: "waiting_for_prefill",
    Missing.DECODE: "waiting_for_decode",
}

_WORDS = {
    Missing.ROUTER: "the router of service {} is away",
    Missing.REPLICA: "no replica of service {} serves",
    Missing.PREFILL: "service {} is waiting for prefill: it has decode replicas only",
    Missing.DECODE: "service {} is waiting for decode: it has prefill replicas only",
}


@dataclass(frozen=True, slots=True)
class History:
    """What became of a request so far.

    tries: how often it was sent to a router.
    accepted: whether the last one had taken it, and so may have begun to work on it. lost: how many had, and ended.
    answered: whether the last one had begun to answer: with more than nginx takes, or it ended in the midst of it.
    released: how often it was let go on from here. waited_s: for how long it was kept here.
    """

    tries: int = 0
    accepted: bool = False
    lost: int = 0
    answered: bool = False
    released: int = 0
    waited_s: float = 0.0

    @property
    def refused(self) -> bool:
        """Whether the last router did not even take the connection."""
        return self.tries > 0 and not self.accepted


@dataclass(frozen=True, slots=True)
class Doubt:
    """A router refused a connection at `since` (awake seconds), and is to be asked after `pause_s` whether it does."""

    since: float
    pause_s: float

    @property
    def for_s(self) -> float:
        """How long it has refused them, though it may run and answer on old ones."""
        return awake.now() - self.since


def digest_of(model: str) -> str:
    """What nginx knows a model by, whatever is in its name. No secret, and nobody's to choose: two that are the same
    would only wait for each other.
    """
    return md5(model.encode("utf-8", "backslashreplace"), usedforsecurity=False).hexdigest()


class Gates(Protocol):
    """nginx's switch for each service.

    reads_models: whether nginx can tell which model a request is for.
    """

    @property
    def reads_models(self) -> bool: ...

    def close_gate(self, service: str) -> None: ...

    def open_gate(self, service: str) -> None: ...

    def is_closed(self, service: str) -> bool: ...

    def mark_asleep(self, service: str, *, asleep: bool) -> None: ...

    def is_asleep(self, service: str) -> bool: ...

    def mark_lost(self, service: str, models: Mapping[str, str]) -> None: ...

    def lost(self, service: str) -> Mapping[str, str]: ...


class HoldQueue:
    """One service's waiting requests. Its gate is closed while it cannot answer; `missing` says what it lacks.

    lost: models that it does not answer for, though it answers for others. Its gate is closed for these alone.
    """

    def __init__(
        self, service: str, settings: HoldSettings, gates: Gates, metrics: Metrics, queue: WorkQueue[Key]
    ) -> None:
        self._service = service
        self._gates = gates
        self._metrics = metrics
        self._logger = get_logger(service=service)
        self._changed = asyncio.Event()
        self._queue = queue
        self._doubt: Doubt | None = None
        self._is_switched = False  # How an earlier daemon left the gate is not known.
        self._asleep: bool | None = None
        """What is said of it to shared addresses; None until that is known. A router that is away leaves it as it was:
        who is behind it is not known then."""
        self._lost: Mapping[str, str] | None = None
        """What nginx is told to let wait; None while that is not known."""
        self.missing: Missing | None = Missing.ROUTER
        self.lost: Mapping[str, str] = {}
        self.waiting = 0
        self._settings = settings
        for each in Missing:
            metrics.service_missing.labels(service, each.value).set_function(partial(self._lacks, each))
        metrics.waiting_requests.labels(service).set_function(self._count)

    def reconfigure(self, settings: HoldSettings) -> None:
        """Takes new bounds; who waits already waits by them, too."""
        self._settings = settings

    @property
    def is_open(self) -> bool:
        """Whether requests go straight to the router."""
        return self.missing is None

    @property
    def is_asleep(self) -> bool:
        """Whether shared addresses take it to have no replica."""
        return bool(self._asleep)

    @property
    def doubt(self) -> Doubt | None:
        """That the router refused a connection and has not been seen to take one since."""
        return self._doubt

    def trust(self) -> None:
        """The router takes connections."""
        self._doubt = None
        self._queue.add(Part.HOLD)

    @property
    def waiting_for_models(self) -> int:
        """How many requests wait for a model, while others are answered."""
        return self.waiting if self.is_open and self.lost else 0

    def left_behind(self) -> Collection[str]:
        """The models that an earlier daemon let requests wait for."""
        return set(self._gates.lost(self._service).values())

    def describe(self) -> str | None:
        """What the service lacks, in words; None if it lacks nothing."""
        return None if self.missing is None else _WORDS[self.missing].format(self._service)

    def close(self, missing: Missing) -> None:
        """New requests wait from now on."""
        self.lost = {}
        if self.missing is None or not self._is_switched or self._lost != {}:
            self._set_gate(open_=False)
        if missing is not Missing.ROUTER:
            self._say_asleep(asleep=True)
        if self.missing is not missing:
            self._change(missing)

    def open(self, lost: Collection[str] = ()) -> None:
        """Requests are answered: all that waited go on, new ones go straight to the router, but for those of models
        that are lost.

        Not while the router refuses them.
        """
        if not self._gates.reads_models:
            lost = ()
        is_new = self.missing is not None or set(self.lost.values()) != set(lost)
        if self._doubt is None and (is_new or not self._is_switched):
            self.lost = {digest_of(model): model for model in lost}
            # The gate first: who is let go on must not come back.
            self._set_gate(open_=True)
            self._change(None)
        if self.missing is None:
            self._say_asleep(asleep=False)

    def repair(self) -> bool:
        """Switches the gate again if somebody else did; whether that was needed."""
        repaired = self._asleep is not None and self._gates.is_asleep(self._service) is not self._asleep
        if repaired:
            asleep, self._asleep = bool(self._asleep), None
            self._say_asleep(asleep=asleep)
        is_shut = self._gates.is_closed(self._service)
        is_right = is_shut is (not self.is_open or bool(self.lost))
        if not self._is_switched or (is_right and self._gates.lost(self._service).keys() == self.lost.keys()):
            return repaired
        self._lost = None
        self._set_gate(open_=self.is_open)
        return True

    async def wait(
        self,
        so_far: History,
        *,
        only_for_router: bool = False,
        repeatable: bool = False,
        alone: bool = False,
        model: str = "",
    ) -> Answer:
        """Returns when the request may go on, or why it may not.

        only_for_router: it needs no replica, and waits for none. repeatable: it does no harm to send it twice.
        alone: nginx is the router, and whoever is refused was refused by replicas: others need not wait for that.
        model: the digest of the one that it is for, if nginx has found one.
        """
        missing = self.missing or (Missing.REPLICA if alone or model in self.lost else Missing.ROUTER)
        answer = await self._wait(
            so_far, only_for_router=only_for_router, repeatable=repeatable, alone=alone, model=model
        )
        self._metrics.waited_requests.labels(self._service, missing.value, answer.verdict.value).inc()
        return answer

    async def _wait(
        self, so_far: History, *, only_for_router: bool, repeatable: bool, alone: bool, model: str
    ) -> Answer:
        if so_far.answered:
            return Answer(
                Verdict.UNREADABLE,
                "The head of the answer cannot be passed on: it is no HTTP, or longer than 64 KiB.",
                "answer_not_readable",
            )
        may_repeat = repeatable and self._settings.retry_in_flight and so_far.lost <= _MOST_LOST
        if so_far.accepted:
            # A dying router's sockets live on for a moment. Neither this request nor a client that tries again at once
            # shall meet them.
            await asyncio.sleep(2 * _MOMENT_S)
        if so_far.accepted and not may_repeat:
            who = "replica" if alone else "router"
            return Answer(Verdict.LOST, f"The {who} ended while it worked on this request.", f"{who}_lost")
        if self.waiting >= self._settings.max_waiting:
            return self._refusal(Verdict.FULL, "and too many requests are waiting", model)
        if so_far.released >= _MOST_TRIES:
            if alone:
                return Answer(Verdict.TOO_LONG, "No replica takes a connection now; try again later.", "no_replica", 5)
            return self._refusal(Verdict.TOO_LONG, f"and the request was refused {so_far.tries} times")
        pause_s = _MOMENT_S * _SLOWER**so_far.released if so_far.refused and self.is_open else 0.0
        if pause_s and not alone:
            self._begin_to_doubt(pause_s)
        self.waiting += 1
        try:
            if pause_s and alone:
                await asyncio.sleep(pause_s * (0.5 + random.random()))  # Not all that are refused come back at once.
            came = awake.now() - so_far.waited_s
            return await self._until_open(came, only_for_router=only_for_router, model=model)
        finally:
            self.waiting -= 1

    async def _until_open(self, came: float, *, only_for_router: bool, model: str) -> Answer:
        while (
            self.missing is Missing.ROUTER
            or (self.missing is not None and not only_for_router)
            or (self.missing is None and model in self.lost)
        ):
            patience_s = self._patience_s()
            try:
                async with within(came + patience_s - awake.now()):
                    await self._changed.wait()
            except TimeoutError:
                return self._refusal(Verdict.TOO_LONG, f"and the request has waited for {patience_s:g} s", model)
        return _GO_ON

    def _patience_s(self) -> float:
        return self._settings.timeout_s if self.missing is Missing.ROUTER else self._settings.asleep_s

    def _refusal(self, verdict: Verdict, more: str, model: str = "") -> Answer:
        lost = self.lost.get(model) if self.is_open else None
        missing = self.missing or (Missing.ROUTER if lost is None else Missing.REPLICA)
        words = _WORDS[missing].format(self._service)
        if lost is not None:
            words += f" model {printable(lost)} now"
        return Answer(verdict, f"{words[0].upper()}{words[1:]}, {more}; try again later.", _CODES[missing], 5)

    def _begin_to_doubt(self, pause_s: float) -> None:
        """A router that refuses is gone, which will be noticed in a moment, or is not what it seems.

        One that takes our connections and not nginx's is on ports that nginx has not heard of yet.
        """
        self._doubt = Doubt(awake.now(), pause_s)
        self.close(Missing.ROUTER)
        self._queue.add(Part.HOLD)

    def _count(self) -> int:
        return self.waiting

    def _lacks(self, what: Missing) -> bool:
        return self.missing is what

    def _change(self, missing: Missing | None) -> None:
        self.missing = missing
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _say_asleep(self, *, asleep: bool) -> None:
        if self._asleep is asleep:
            return
        try:
            self._gates.mark_asleep(self._service, asleep=asleep)
        except OSError as error:
            self._asleep = None
            self._logger.error("gate.not_switched", reason=str(error))
        else:
            self._asleep = asleep

    def _set_gate(self, *, open_: bool) -> None:
        """Has nginx let requests through or wait: all of them, or those for a model that is lost.

        Which models these are stands there before the gate is closed for them, and goes after it was opened.
        """
        self._is_switched = True
        lost = self.lost if open_ else {}
        try:
            if open_ and not lost:
                self._gates.open_gate(self._service)
            if lost != self._lost:
                self._gates.mark_lost(self._service, lost)
                self._lost = lost
            if lost or not open_:
                self._gates.close_gate(self._service)
        except OSError as error:
            self._is_switched, self._lost = False, None
            self._logger.error("gate.not_switched", reason=str(error))
