"""Data-parallel engines in SMG: with `--dp-aware` it lists one worker for each rank, `URL@rank`; here they are one.

Measured on smg 1.13: the id that a registration was answered with is gone once the ranks are there; each rank has an
id of its own, and removing one removes no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway_sidecar.domain.model import Registered, WorkerStatus

_PATIENCE_S = 5.0
_LEAST_READY_FIRST = (
    WorkerStatus.FAILED,
    WorkerStatus.DRAINING,
    WorkerStatus.PENDING,
    WorkerStatus.NOT_READY,
    WorkerStatus.READY,
)


@dataclass(frozen=True, slots=True)
class Rank:
    """One row of SMG's list. `of` is how many ranks the engine has; None for a worker that is not split."""

    worker: Registered
    number: int = 0
    of: int | None = None


class RankBook:
    """What belongs together: the ranks of each engine, and the id that it goes by.

    An engine goes by the id that its registration was answered with, or, registered before our time, by that of its
    first rank.
    """

    def __init__(self) -> None:
        self._submitted: dict[str, str] = {}
        self._ids: dict[str, tuple[str, ...]] = {}
        self._partial_since: dict[str, float] = {}

    def submitted(self, url: str, worker_id: str) -> None:
        """A registration was accepted."""
        self._submitted[url] = worker_id
        self._ids.pop(worker_id, None)

    def url_of(self, worker_id: str) -> str | None:
        """The URL that was registered under this id, if it was by us."""
        return next((url for url, submitted in self._submitted.items() if submitted == worker_id), None)

    def ids_of(self, worker_id: str) -> Sequence[str]:
        """All that has to be removed to remove this worker."""
        return self._ids.get(worker_id, (worker_id,))

    def join(self, url: str, ranks: Sequence[Rank], now: float) -> tuple[Registered, bool]:
        """One worker for the rows of one URL, the least ready of them; and whether that may rest until the rows change.

        An engine that some ranks are missing of, for seconds on end, has failed: it has to be registered anew.
        """
        first = min(ranks, key=lambda rank: rank.number)
        if first.of is None:
            return min(ranks, key=_readiness).worker, True
        worker_id = self._submitted.get(url, first.worker.worker_id)
        self._ids[worker_id] = tuple(rank.worker.worker_id for rank in ranks)
        worker = replace(min(ranks, key=_readiness).worker, worker_id=worker_id)
        missing = first.of - len({rank.number for rank in ranks})
        if missing <= 0 or worker.status is WorkerStatus.DRAINING:
            self._partial_since.pop(url, None)
            return worker, True
        since = self._partial_since.setdefault(url, now)
        status = WorkerStatus.FAILED if now - since >= _PATIENCE_S else WorkerStatus.NOT_READY
        note = f"{missing} of {first.of} data-parallel ranks are missing"
        return replace(worker, status=status, note=note), False


def _readiness(rank: Rank) -> int:
    return _LEAST_READY_FIRST.index(rank.worker.status)
