"""Detects models that have workers but cannot be answered: half a prefill-decode pair."""

from __future__ import annotations

from collections.abc import Container, Mapping

from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.domain.model import Registered, WorkerStatus
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_PATIENCE_S = 2.0  # A choice: both halves of a pair that starts are there within it, and nobody is told in vain.


class Pairing:
    """One service's. `lacking` is model -> why no worker answers for it; logged after two seconds."""

    def __init__(self, slots: RouterSlots, metrics: Metrics) -> None:
        service = slots.service
        self._slots = slots
        self._gauge = metrics.unanswered_models.labels(service)
        self._logger = get_logger(service=service)
        self._seen: dict[str, Registered] = {}
        self.lacking: Mapping[str, str] = {}
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def look(self, now: float) -> float | None:
        """Takes note of the workers that the router in service lists now (awake seconds).

        In how many seconds to look again, if a model that lacks something is to be told of by then.
        """
        workers = self._slots.active.book.workers
        if workers != self._seen:  # 1,000 that are the same: 0.01 ms; to look at them: 0.3 ms.
            self._seen = dict(workers)
            self.lacking = self._slots.active.router.setup.unanswered(self._ready())
            self._gauge.set(len(self.lacking))
        for model, reason in self.lacking.items():
            since = self._since.setdefault(model, now)
            if now - since >= _PATIENCE_S and model not in self._told:
                self._told.add(model)
                self._logger.warning("service.half_pair", model=model, reason=reason)
        for model in self._since.keys() - self.lacking.keys():
            since = self._since.pop(model)
            if model in self._told:
                self._told.discard(model)
                self._logger.info("service.whole", model=model, for_s=round(now - since, 1))
        untold = [since for model, since in self._since.items() if model not in self._told]
        return _PATIENCE_S - (now - min(untold)) if untold else None

    def unanswered_without(self, urls: Container[str]) -> dict[str, str]:
        """Model -> why no worker can answer for it, of models that lose these workers and are answered now."""
        ready, router = self._ready(), self._slots.active.router.setup
        left = [worker for worker in ready if worker.url not in urls]
        alone = router.models_of(ready) - router.models_of(left)
        lost = {**dict.fromkeys(alone, "it is the model's only replica"), **router.unanswered(left)}
        return {model: reason for model, reason in sorted(lost.items()) if model not in self.lacking}

    def _ready(self) -> list[Registered]:
        return [w for w in self._slots.active.book.workers.values() if w.status is WorkerStatus.READY]
