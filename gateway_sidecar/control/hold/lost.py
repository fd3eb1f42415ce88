"""Which of a service's models requests wait for, while others are answered: those that its router would refuse at once,
and that it answered for a moment ago, or has half a pair of.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway_sidecar.control.hold.queue import HoldQueue
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.domain.lost_models import LostModels
from gateway_sidecar.domain.model import Registered
from gateway_sidecar.routers.base import RouterRules
from gateway_sidecar.supervision import awake

_NAMELESS = "-"


class LostWatch:
    """One service's."""

    def __init__(self, hold: HoldQueue, tenures: Registry) -> None:
        self._hold = hold
        self._tenures = tenures
        self._models = LostModels()
        self._halves: frozenset[str] = frozenset()
        self._staying: Mapping[str, Registered] | None = None

    def look(self, router: RouterRules, staying: Mapping[str, Registered]) -> frozenset[str]:
        """Those models, where the router has these workers, by URL, and keeps them."""
        if not router.refuses_unknown:
            return frozenset()
        before, self._staying = self._staying, staying
        now = awake.now()
        if before is None:
            self._models.recall(self._hold.left_behind(), now)
        if self._staying != before:  # 1,000 that are the same: 0.01 ms.
            self._halves = frozenset(router.unanswered(self._staying.values())) - {_NAMELESS}
            answered = router.models_of(self._staying.values()) - self._halves - {_NAMELESS}
            self._models.note(frozenset(answered), self._dropped(before or {}), now)
        if self._models.any_lost:
            return self._models.remembered(self._had(), now) | self._halves
        return self._halves

    def _dropped(self, before: Mapping[str, Registered]) -> set[str]:
        """Models that an engine has no more which serves on: an adapter was unloaded."""
        found = set()
        for url, worker in before.items():
            if worker.model_id and url not in (self._staying or {}):
                tenure = self._tenures.at_base(url)
                if tenure is not None and tenure.leaving is None and url not in tenure.urls:
                    found.add(worker.model_id)
        return found

    def _had(self) -> set[str]:
        """What the engines have, or had, that are not gone."""
        said = ((t.probe.facts, t.notes.overrides) for t in self._tenures if not t.gone)
        return {
            name
            for facts, overrides in said
            for name in (overrides.model, *overrides.names, *((facts.model, *facts.names) if facts else ()))
            if name is not None
        }
