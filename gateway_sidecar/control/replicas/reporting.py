"""Tells the operator where each replica stands: one log event for each change of state, and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway_sidecar.control.replicas.tenure import Presence, Tenure
from gateway_sidecar.control.routers.unit import RouterUnit
from gateway_sidecar.domain.lifecycle import state_of
from gateway_sidecar.domain.model import Ready, Registered, ReplicaState, WorkerStatus
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_TROUBLED = (ReplicaState.UNREACHABLE, ReplicaState.FOREIGN)
_NAMELESS = "it names no model, so no request for one reaches it; say `model: NAME` in its .yaml or inventory entry"


class Reporting:
    """The story of one service's replicas."""

    def __init__(
        self,
        service: str,
        metrics: Metrics,
        tenures: Callable[[], Iterable[Tenure]],
        active: Callable[[], RouterUnit],
    ) -> None:
        self._service = service
        self._active = active
        self._metrics = metrics
        self._tenures = tenures
        self._logger = get_logger(service=service)
        self._counts = dict.fromkeys(ReplicaState, 0)
        for state in ReplicaState:
            self._count(state, 0)

    def begun(self, tenure: Tenure) -> None:
        """A socket was seen for the first time, or another engine behind it."""
        self._metrics.state_changes.labels(self._service, tenure.state.value).inc()
        self._logger.info("replica.seen", replica=tenure.replica, socket=str(tenure.sighting.socket))
        self._count(tenure.state, +1)

    def ended(self, tenure: Tenure) -> None:
        """Nobody holds a connection to the occupant any more, or those who do have been waited for long enough."""
        if not any(other.replica == tenure.replica for other in self._tenures()):
            self._metrics.forget_replica(self._service, tenure.replica)
        self._count(tenure.state, -1)
        self._logger.info("replica.gone", replica=tenure.replica, port=tenure.port, in_flight=tenure.in_flight)

    def update(self, tenure: Tenure) -> None:
        """Tells of a change of state, if there is one."""
        worker = self._active().book.workers.get(tenure.url) if tenure.url else None
        state = state_of(
            result=tenure.result,
            leaving=tenure.gone or tenure.drain,
            condemned=tenure.condemned,
            worker=worker,
        )
        tenure.reason = self._reason(tenure, worker)
        if state is not tenure.state:
            self._change(tenure, state, worker)

    def _change(self, tenure: Tenure, state: ReplicaState, worker: Registered | None) -> None:
        now = awake.now()
        facts: dict[str, object] = {"was": tenure.state.value, "for_s": round(now - tenure.state_since, 3)}
        self._count(tenure.state, -1)
        self._count(state, +1)
        tenure.state, tenure.state_since = state, now
        self._metrics.state_changes.labels(self._service, state.value).inc()
        if tenure.facts is not None:
            kind = tenure.overrides.worker_type or tenure.facts.worker_type
            self._metrics.replica_serving.labels(
                self._service, tenure.replica, kind.value, tenure.facts.runtime_type.value
            ).set(state is ReplicaState.SERVING)
        if tenure.reason:
            facts["reason"] = tenure.reason
        if state is ReplicaState.SERVING and worker is not None:
            facts |= {"worker_id": worker.worker_id, "model": worker.model_id}
            if not tenure.served:
                tenure.served = True
                self._metrics.serving_seconds.labels(self._service).observe(now - tenure.seen_at)
                facts["since_seen_s"] = round(now - tenure.seen_at, 3)
        log = self._logger.warning if state in _TROUBLED else self._logger.info
        log(f"replica.{state.value}", replica=tenure.replica, worker_url=tenure.url, **facts)

    def _reason(self, tenure: Tenure, worker: Registered | None) -> str:
        if tenure.leaving is not None and (tenure.gone or tenure.drain):
            if tenure.drained.is_set():
                return f"{tenure.leaving.value}; drained, safe to stop"
            waiting = f"; {counted(tenure.in_flight, 'connection')} in flight" if tenure.in_flight else ""
            return tenure.leaving.value + waiting
        problem = tenure.problem or tenure.notes_problem or tenure.peer_problem or tenure.key_problem
        if problem:
            return problem
        if tenure.result is None:
            return ""
        if not isinstance(tenure.result, Ready):
            return tenure.result.reason
        if worker is not None and worker.status is WorkerStatus.READY:
            if tenure.presence is Presence.SUPERSEDED:
                return "its replica is elsewhere now; it serves until that one does"
            return "" if worker.model_id else _NAMELESS
        if not self._active().router.up:
            return f"waiting for the router ({self._active().router.state.value})"
        trouble = self._active().book.trouble(tenure.url) if tenure.url else None
        return trouble or (f"the router says {worker.status.value}" if worker else "not registered yet")

    def _count(self, state: ReplicaState, change: int) -> None:
        self._counts[state] += change
        self._metrics.replicas.labels(self._service, state.value).set(self._counts[state])
