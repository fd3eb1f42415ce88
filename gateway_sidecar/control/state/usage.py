"""What clients use, taken from nginx every few seconds: for `usage`, metrics and quotas. No request waits for it.

A disk that hangs, is full or damaged delays nothing else: nginx counts on, and what it has counted is taken in later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from gateway_sidecar.control.state.usage_store import Asked, Change, UsageStore
from gateway_sidecar.domain.usage import NamedSeries
from gateway_sidecar.errors import StateError
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem

EVERY_S = 10.0  # nginx counts in files that outlive it, so nothing is lost in between; figures are of hours and days.
MOST_SERIES = 200
"""With labels of their own: 1,400 lines of the page."""
_PATIENCE_S = 10.0  # A look over a month of 10,000 keys takes seconds (`quotas.py`), and no request waits for it.
_LAST_S = 2.0  # The end of the daemon waits for it; what is not taken in now the next daemon takes in.

T = TypeVar("T")


class UsageCollector:
    """All usage of a daemon."""

    def __init__(self, store: UsageStore, problem: Problem, metrics: Metrics) -> None:
        self._store = store
        self._problem = problem
        self._metrics = metrics
        self._logger = get_logger()
        self._thread = OwnThread("usage")
        self._series = NamedSeries(MOST_SERIES)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self.collect()
            await awake.rest(EVERY_S)

    async def collect(self, patience_s: float = _PATIENCE_S) -> None:
        """Takes in what nginx has counted by now. Never raises for a disk: `status` says what is amiss."""
        try:
            self._export(await self._run(self._collect, patience_s))
        except (StateError, OSError) as error:
            self._tell(str(error))
            return
        aside = self._store.aside
        if aside is not None:
            self._tell(f"usage was damaged on disk, and is counted anew; the damaged file is {aside}")
        elif self._store.overflows:
            self._tell("nginx has more keys and models to count than it can tell apart; some count as (others)")
        else:
            self._tell("")

    async def collect_last(self) -> None:
        """The same, when the daemon or nginx is about to end: what is not written now is there for the next daemon."""
        await self.collect(_LAST_S)

    async def usage(self, asked: Asked) -> Sequence[Change]:
        """What was used until now. Raises StateError."""
        await self.collect()
        return await self._run(partial(self._store.usage, asked))

    async def tokens_since(self, service: str, unix_s: float) -> Mapping[str, int]:
        """The tokens, in and out, that each key has used at a service's own frontend, or a shared address's, since the
        hour of a time; as of the last few seconds. Raises StateError.
        """
        return await self._run(partial(self._store.tokens_since, service, unix_s))

    def _collect(self) -> Sequence[Change]:
        before = self._store.aside
        try:
            return self._store.collect()
        except StateError:
            if self._store.aside == before:
                raise
            return self._store.collect()  # With a new file.

    async def _run(self, work: Callable[[], T], patience_s: float = _PATIENCE_S) -> T:
        try:
            return await self._thread.run(work, patience_s=patience_s)
        except TimeoutError as error:
            raise StateError(f"usage: the disk of state_dir did not answer within {patience_s:g} s") from error

    def _tell(self, text: str) -> None:
        if self._problem.set(text) and text:
            self._logger.error("usage.not_kept", reason=text)

    def _export(self, changes: Sequence[Change]) -> None:
        added, gone = self._series.note(changes)
        for series in gone:
            labels = dict(zip(("service", "key", "model"), series, strict=True))
            for metric in (self._metrics.usage_requests, self._metrics.usage_tokens, self._metrics.usage_unknown):
                metric.remove_by_labels(labels)
        for series, usage in added:
            done = usage.requests - usage.refused - usage.failed - usage.aborted
            outcomes = {"answered": done, "refused": usage.refused, "failed": usage.failed, "aborted": usage.aborted}
            for outcome, count in outcomes.items():
                self._metrics.usage_requests.labels(*series, outcome).inc(max(0, count))
            self._metrics.usage_tokens.labels(*series, "in").inc(usage.tokens_in)
            self._metrics.usage_tokens.labels(*series, "out").inc(usage.tokens_out)
            self._metrics.usage_unknown.labels(*series).inc(usage.unknown)
