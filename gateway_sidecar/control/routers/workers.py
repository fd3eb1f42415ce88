"""What one router says of its workers, and the operations in progress on them. One operation at a time per worker URL.
The router's answer to an operation is newer than a list that was requested before it; a failed list changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, replace
from heapq import nsmallest

from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.workqueue import Key, Part, WorkerAt, WorkQueue
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.model import Registered, WorkerSpec, WorkerStatus
from gateway_sidecar.domain.planning import Deregister, Register, Why, WorkerView
from gateway_sidecar.errors import RouterError, RouterUnavailable, WorkerExists
from gateway_sidecar.routers.base import RouterClient
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks, beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RETRIES = Backoff(first_s=0.25, most_s=15.0)
_MOST_OVERDUE_S = 300.0
"""A worker that stays unready however often it is registered: SMG may load a tokenizer for minutes."""
_FEW = 8  # A choice: so many are asked for by name, one after the other; for more, the list.
_LEAST_POLL_S = 0.005  # SMG has a worker ready some 19 ms after it was told: that is seen within a quarter of it.
_PAUSE_FOR_EACH = 3.0
"""Between two lists, times what the first took: a list of hundreds keeps the router and us busy, and little is news."""
_MOST_PAUSE_S = 0.2
"""So long that pause is at the most if something was told to the router meanwhile: its list may be slow, and short.
Where few are awaited they are asked for by name, at once."""
_PATIENCE_S = 1.0  # SMG adds a hundred workers in 1.3 s: for about so long one may be missing from its list.
_NAMED = 2
"""Workers asked for by name after a list, in turn: the router takes seconds to add a crowd, and lists none of it."""
_AT_ONCE = 32  # SMG takes some 12 ms for each of a crowd: more at once would only wait there.
_OVERDUE_S = 1.0  # Requests wait from then on; the router is given up later (`api_timeout_s`).


@dataclass(slots=True)
class _Submission:
    """A registration that the router accepted.

    looked_at: when it was accepted, or asked for by name since.
    """

    worker_id: str
    spec: WorkerSpec
    looked_at: float
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    """Operations that failed in a row, and until when (monotonic seconds) the next one waits."""

    count: int
    until: float
    reason: str
    removing: bool


class WorkerSync:
    """The workers of one router process.

    Each whole list, each worker whose entry changed, and an answer that is overdue is a key in the queue.
    """

    def __init__(
        self,
        router: Router,
        queue: WorkQueue[Key],
        metrics: Metrics,
        *,
        rescan_interval_s: float,
        api_timeout_s: float,
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._interval_s = rescan_interval_s
        self._mute_s = api_timeout_s
        self._queue = queue
        self._silent_since: float | None = None
        self._logger = get_logger(service=router.service)
        self._epoch = -1
        self._listed = False
        self._listed_at = 0.0
        self.workers: dict[str, Registered] = {}
        self._submissions: dict[str, _Submission] = {}
        self._late_until: dict[str, float] = {}
        self._proven: set[str] = set()
        self._told_before_until = 0.0
        self._answered_at: dict[str, float] = {}
        self._still_listed: dict[str, float] = {}
        self._not_ready_since: dict[str, float] = {}
        self._tasks = Tasks(router.service, metrics)
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._hurry = asyncio.Event()

    def reconfigure(self, api_timeout_s: float) -> None:
        """Takes a new bound for how long the router may be silent."""
        self._mute_s = api_timeout_s

    @property
    def most_silence_s(self) -> float:
        """For how long the router may owe an answer."""
        return self._mute_s

    @property
    def listed(self) -> bool:
        """Whether the router's list of workers is known."""
        return self._listed and self._epoch == self._router.epoch and self._router.up

    @property
    def listed_epoch(self) -> int | None:
        """Which process of the router the list is of; None while it is not known."""
        return self._epoch if self.listed else None

    @property
    def list_age_s(self) -> float | None:
        """How long ago the list was asked for; None while it is not known."""
        return awake.monotonic() - self._listed_at if self.listed else None

    @property
    def is_silent(self) -> bool:
        """Whether an answer is overdue, so that the router may hang: long before that is certain."""
        return self._silent_since is not None and awake.now() - self._silent_since >= self._overdue_s

    @property
    def _overdue_s(self) -> float:
        return min(_OVERDUE_S, self._mute_s / 2)

    def view(self, url: str | None) -> WorkerView:
        """One worker for the planner."""
        if url is None:
            return WorkerView(listed=self.listed)
        submission = self._submissions.get(url)
        held = self.held_for_s(url) > 0
        return WorkerView(
            listed=self.listed,
            worker=self.workers.get(url),
            registered_as=submission.spec if submission else None,
            busy=url in self._busy,
            held=held,
            held_leaving=held and self._failures[url].removing,
            overdue=self._overdue_in_s(url) == 0,
        )

    def held_for_s(self, url: str) -> float:
        """How long the next try has to wait."""
        failure = self._failures.get(url)
        return max(0.0, failure.until - awake.monotonic()) if failure else 0.0

    def due_in_s(self, url: str) -> float | None:
        """In how many seconds this worker is to be looked at again, though nothing happens before."""
        held_for_s = self.held_for_s(url)
        return held_for_s if held_for_s > 0 else self._overdue_in_s(url)

    def _overdue_in_s(self, url: str) -> float | None:
        since, within_s = self._not_ready_since.get(url), self._router.setup.ready_within_s
        if since is None or within_s is None:
            return None
        failure = self._failures.get(url)
        most_s = Backoff(within_s, _MOST_OVERDUE_S).delay_s(1 + failure.count if failure else 1)
        return max(0.0, since + most_s - awake.now())

    def trouble(self, url: str) -> str | None:
        """Why the last operation on this worker failed, if the last one did."""
        failure = self._failures.get(url)
        return failure.reason if failure else None

    def late_until(self, url: str | None) -> float:
        """Until when (awake seconds) a worker that was taken back before it was ready may yet appear; 0 if none.

        What an earlier daemon told the router is not known: as if it had been told just before this one came. The URL
        is None where it is not known which of two it is.
        """
        late_until = self._late_until.pop(url, 0.0) if url is not None else 0.0
        return late_until if url in self._proven else max(late_until, self._told_before_until)

    def forget(self, url: str) -> None:
        """The URL's owner is gone for good."""
        self._submissions.pop(url, None)
        self._failures.pop(url, None)
        self._answered_at.pop(url, None)
        self._still_listed.pop(url, None)
        self._not_ready_since.pop(url, None)
        self._proven.discard(url)

    def start(self, action: Register | Deregister) -> None:
        """Begins an operation; its worker's key follows when the router has answered."""
        url = action.spec.url if isinstance(action, Register) else action.url
        work = self._register(action.spec) if isinstance(action, Register) else self._deregister(action)
        self._busy[url] = self._tasks.spawn(self._operate(url, work, isinstance(action, Deregister)))

    async def run(self) -> None:
        """Observes the router until cancelled."""
        failing_since: float | None = None
        while True:
            heartbeat()
            if not self._router.up or self._epoch != self._router.epoch:
                self._lose()
                self._silent_since = failing_since = None
                if not self._router.up:
                    await self._pause(0.0, 0.1)
                    continue
                self._epoch = self._router.epoch
                self._told_before_until = awake.now() + self._router.setup.late_s if self._router.is_adopted else 0.0
            began, asked, stalls = awake.monotonic(), awake.now(), awake.stalls()
            overdue = asyncio.get_running_loop().call_later(self._overdue_s, self._on_silence)
            try:
                await beating(self._observe())
                self._silent_since = failing_since = None
            except RouterError as error:
                if failing_since is None:
                    failing_since = asked if self._silent_since is None else self._silent_since
                if not isinstance(error, RouterUnavailable):
                    self._silent_since = None
                self._metrics.router_errors.labels(self._router.service).inc()
                self._logger.warning("router.not_answering", reason=str(error))
                # What was asked across a stall proves nothing: it is asked again before anybody is judged.
                if awake.now() - failing_since >= self._mute_s and awake.stalls() == stalls:
                    self._router.report_unresponsive()
                    failing_since = None
                await asyncio.sleep(0.2)
                continue
            finally:
                overdue.cancel()
            took, pending = awake.monotonic() - began, self._pending()
            least_s = min(_PAUSE_FOR_EACH * took, _MOST_PAUSE_S) if len(pending) > _FEW else 0.0
            await self._pause(least_s, self._next_gap_s(took, pending))

    async def close(self) -> None:
        """Ends the operations under way."""
        await self._tasks.close()

    def hurry(self) -> None:
        """Look again soon."""
        self._hurry.set()

    def _on_change(self, url: str) -> None:
        self._queue.add(WorkerAt(url))

    def _on_silence(self) -> None:
        self._queue.add(Part.HOLD, urgent=True)

    async def _pause(self, least_s: float, most_s: float) -> None:
        """Until the next look, sooner if somebody hurries, but not before `least_s`: a crowd hurries all the time."""
        await asyncio.sleep(least_s)
        await awake.until_set(self._hurry, most_s - least_s)
        self._hurry.clear()

    def _next_gap_s(self, took_s: float, pending: Collection[str]) -> float:
        """How soon to look again: at once while something is about to change, and ever later while it does not."""
        if not pending:
            return self._interval_s
        age_s = awake.monotonic() - max(self._answered_at.get(url, 0.0) for url in pending)
        if age_s > 10:
            return min(1.0, self._interval_s)
        return min(max(_LEAST_POLL_S if age_s < 1 else 0.1, _PAUSE_FOR_EACH * took_s), self._interval_s)

    def _pending(self) -> list[str]:
        """URLs whose next word from the router is awaited."""
        ready = WorkerStatus.READY  # Nearly all are, and Python takes longer to find this than to compare it.
        unready = ((url, worker.status) for url, worker in self.workers.items() if worker.status is not ready)
        return [
            url
            for url, status in unready
            if status in (WorkerStatus.PENDING, WorkerStatus.DRAINING)
            or (status is WorkerStatus.NOT_READY and url in self._submissions)
        ]

    def _lose(self) -> None:
        """Another process, or none: what the last one said is void."""
        lost = list(self.workers)
        self._listed = False
        for book in (
            self.workers, self._submissions, self._answered_at, self._still_listed, self._failures, self._late_until,
            self._not_ready_since,
        ):  # fmt: skip
            book.clear()
        self._proven.clear()
        for url in lost:
            self._on_change(url)

    async def _observe(self) -> None:
        client, epoch = self._router.client, self._router.epoch
        assert client is not None
        pending = self._pending()
        asked_at = awake.monotonic()
        if self._silent_since is None:
            self._silent_since = awake.now()
        if self._listed and 0 < len(pending) <= _FEW and self._hurry_only():
            for url in pending:
                asked_at = awake.monotonic()
                self._silent_since = awake.now()
                found = await client.find(self.workers[url].worker_id) if url in self.workers else None
                if epoch == self._router.epoch and self._learn(url, found, asked_at):
                    self._queue.add(Part.WORKERS)
            return
        listed = await client.list_workers()
        if epoch != self._router.epoch:
            return
        self._listed_at = asked_at
        missing: list[tuple[str, _Submission]] = []
        for url in self.workers.keys() - listed.keys():
            submission = self._submissions.get(url)
            if submission is None or submission.confirmed:
                self._learn(url, None, asked_at)
            elif asked_at - submission.looked_at > _PATIENCE_S:
                missing.append((url, submission))
        for url, submission in nsmallest(_NAMED, missing, key=lambda it: it[1].looked_at):
            # A worker that is being added may be missing from the list: ask for it by name.
            submission.looked_at, self._silent_since = asked_at, awake.now()
            found = await client.find(submission.worker_id)
            if epoch == self._router.epoch:
                self._learn(url, found, asked_at)
        for url, worker in listed.items():
            if worker is not self.workers.get(url):  # At rest all are known: a thousand take 0.1 ms in place of 1.
                self._learn(url, worker, asked_at)
        for url in [u for u, at in self._answered_at.items() if at < asked_at and u not in self.workers]:
            del self._answered_at[url]
        self._listed = True
        self._queue.add(Part.WORKERS)

    def _is_still_listed(self, url: str, asked_at: float) -> bool:
        until = self._still_listed.get(url)
        if until is not None and until <= asked_at:
            del self._still_listed[url]
            return False
        return until is not None

    def _hurry_only(self) -> bool:
        """Whether the whole list is fresh enough to ask only for what is pending."""
        return awake.monotonic() - self._listed_at < self._interval_s

    def _learn(self, url: str, worker: Registered | None, asked_at: float) -> bool:
        """Takes note of what an answer says; whether that is news for anybody."""
        if self._answered_at.get(url, -math.inf) >= asked_at or url in self._busy:
            return False  # An operation of ours is newer than this answer.
        if worker is not None and worker.status is not WorkerStatus.DRAINING and self._is_still_listed(url, asked_at):
            return False  # A removal that was accepted shows in the list a moment later.
        before = self.workers.get(url)
        if worker == before:
            if worker is not None:
                self.workers[url] = worker  # Lists that say the same are the same: the next one is known by that.
            return False
        submission = self._submissions.get(url)
        if submission is not None and worker is not None and submission.worker_id != worker.worker_id:
            del self._submissions[url]  # Not the one that we registered: what we told of that one proves nothing.
        self._note_readiness(url, worker)
        if worker is None:
            self.workers.pop(url, None)
            submission = self._submissions.pop(url, None)
            if submission is not None and not submission.confirmed:
                self._late_until[url] = awake.now() + self._router.setup.late_s
                self._fail(url, "the router dropped the registration")
        else:
            self.workers[url] = worker
            submission = self._submissions.get(url)
            if worker.status is WorkerStatus.READY:
                self._proven.add(url)
                self._failures.pop(url, None)
                if submission is not None and not submission.confirmed:
                    submission.confirmed = True
                    self._metrics.registrations.labels(self._router.service, "ready").inc()
            elif worker.status is WorkerStatus.FAILED and (before is None or before.status is not worker.status):
                removing = before is not None and before.status is WorkerStatus.DRAINING
                self._fail(url, worker.note or "the router gave it up", removing=removing)
        if before is not None and worker is not None and before.status is worker.status is WorkerStatus.PENDING:
            return False  # It is still being added: nothing follows from what else is said of it.
        self._on_change(url)
        return True

    def _note_readiness(self, url: str, worker: Registered | None) -> None:
        """Since when it is listed, and not ready."""
        if worker is not None and worker.status is WorkerStatus.NOT_READY:
            self._not_ready_since.setdefault(url, awake.now())
        else:
            self._not_ready_since.pop(url, None)

    async def _operate(self, url: str, work: Coroutine[None, None, None], removing: bool) -> None:
        try:
            async with self._slots:
                await work
        except RouterError as error:
            self._fail(url, str(error), removing=removing)
        except Exception as fault:
            self._fail(url, f"a fault of the daemon's own: {fault!r}", removing=removing)
            raise
        finally:
            del self._busy[url]
            self._answered_at[url] = awake.monotonic()
            self._hurry.set()
            self._on_change(url)

    def _fail(self, url: str, reason: str, *, removing: bool = False) -> None:
        before = self._failures.get(url)
        count = before.count + 1 if before else 1
        delay = _RETRIES.delay_s(count)
        self._failures[url] = _Failure(count, awake.monotonic() + delay, reason, removing)
        self._metrics.registrations.labels(self._router.service, "failed").inc()
        self._logger.warning(
            "worker.operation_failed",
            worker_url=url,
            reason=reason,
            failures=count,
            retry_in_s=round(delay, 2),
        )

    async def _register(self, spec: WorkerSpec) -> None:
        epoch, client = self._router.epoch, self._client()
        try:
            worker_id = await client.register(spec)
        except WorkerExists as exists:
            # The list did not show it: a leftover that is still pending, or one that drains. Take it out; the next
            # plan registers it anew.
            if exists.worker_id is None:
                raise
            found = await client.find(exists.worker_id)
            if found is not None and found.status is not WorkerStatus.DRAINING:
                await client.deregister(exists.worker_id)
            if found is not None and epoch == self._router.epoch:
                self.workers[spec.url] = replace(found, status=WorkerStatus.DRAINING)
            return
        if epoch != self._router.epoch:
            return
        self._submissions[spec.url] = _Submission(worker_id, spec, awake.monotonic())
        self.workers[spec.url] = Registered(
            worker_id=worker_id,
            url=spec.url,
            status=WorkerStatus.PENDING,
            worker_type=spec.worker_type,
            connection_mode=spec.connection_mode,
            runtime_type=spec.runtime_type,
        )

    async def _deregister(self, action: Deregister) -> None:
        epoch = self._router.epoch
        await self._client().deregister(action.worker_id)
        self._metrics.deregistrations.labels(self._router.service, action.why.name.lower()).inc()
        if epoch != self._router.epoch:
            return
        submission = self._submissions.pop(action.url, None)
        if submission is not None and not submission.confirmed:
            self._late_until[action.url] = awake.now() + self._router.setup.late_s
        self._still_listed[action.url] = awake.monotonic() + self._router.setup.still_listed_s
        since = self._not_ready_since.pop(action.url, None)
        if action.why is Why.OVERDUE and since is not None:
            self._fail(action.url, f"{action.why.value} within {awake.now() - since:.0f} s")
        worker = self.workers.get(action.url)
        if worker is not None and worker.worker_id == action.worker_id:
            self.workers[action.url] = replace(worker, status=WorkerStatus.DRAINING)

    def _client(self) -> RouterClient:
        if self._router.client is None or not self._router.up:
            raise RouterUnavailable("the router is not up")
        return self._router.client
