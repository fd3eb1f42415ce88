"""How many replicas of a service are not ready: the more there are, the less often each is asked."""

from __future__ import annotations

from collections import Counter

from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.domain.lifecycle import Against, Crowd, against
from gateway_sidecar.domain.model import Ready

_COUNT_GAP_S = 0.2


class Crowds:
    """Those of one service. Each kind of answer is a crowd of its own: dead sockets hold up no engine that loads."""

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
