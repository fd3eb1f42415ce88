"""Reports the state of each replica: one log event for each change, and the metrics."""

from __future__ import annotations

from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Presence, Tenure
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.domain.lifecycle import state_of
from gateway_sidecar.domain.model import MOST_NAMES, Ready, Registered, ReplicaState, WorkerStatus
from gateway_sidecar.domain.planning import worker_spec
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_FEW_NAMES = 5  # As many as a line of `status` has room for.
_TROUBLED = (ReplicaState.UNREACHABLE, ReplicaState.FOREIGN, ReplicaState.DEAD)
_NAMELESS = (
    "it names no model, so no request for a model reaches it; write `model: NAME` in its .yaml or inventory entry"
)


class Reporting:
    """The story of one service's replicas."""

    def __init__(
        self,
        service: str,
        metrics: Metrics,
        tenures: Registry,
        slots: RouterSlots,
    ) -> None:
        self._service = service
        self._slots = slots
        self._metrics = metrics
        self._tenures = tenures
        self._logger = get_logger(service=service)
        self._counts = {state: metrics.replicas.labels(service, state.value) for state in ReplicaState}
        for count in self._counts.values():
            count.set(0)  # A service of the same name may have been removed before.

    def begun(self, tenure: Tenure) -> None:
        """A socket was seen for the first time, or another engine behind it."""
        self._metrics.state_changes.labels(self._service, tenure.status.state.value).inc()
        self._logger.info("replica.seen", replica=tenure.replica, socket=str(tenure.sighting.socket))
        self._counts[tenure.status.state].inc()

    def ended(self, tenure: Tenure) -> None:
        """No connection to the occupant is left, or `drain.timeout_s` has passed."""
        if not any(other.replica == tenure.replica for other in self._tenures):
            self._metrics.forget_replica(self._service, tenure.replica)
        self._counts[tenure.status.state].dec()
        self._logger.info(
            "replica.gone", replica=tenure.replica, port=tenure.bridge.port, in_flight=tenure.drain.in_flight
        )

    def update(self, tenure: Tenure) -> None:
        """Logs a change of state, if there is one."""
        url, book = tenure.url, self._slots.active.book
        worker = book.workers.get(url) if url else None
        state = state_of(
            result=tenure.probe.result,
            leaving=tenure.gone or tenure.drain.requested,
            ejected=tenure.probe.ejected,
            worker=worker,
        )
        tenure.status.reason = self._reason(tenure, worker)
        if state is not tenure.status.state:
            self._change(tenure, state, worker)

    def _change(self, tenure: Tenure, state: ReplicaState, worker: Registered | None) -> None:
        now = awake.now()
        facts: dict[str, object] = {"was": tenure.status.state.value, "for_s": round(now - tenure.status.since, 3)}
        self._counts[tenure.status.state].dec()
        self._counts[state].inc()
        tenure.status.state, tenure.status.since = state, now
        self._metrics.state_changes.labels(self._service, state.value).inc()
        if tenure.probe.facts is not None:
            kind = tenure.notes.overrides.worker_type or tenure.probe.facts.worker_type
            self._metrics.replica_serving.labels(
                self._service, tenure.replica, kind.value, tenure.probe.facts.runtime_type
            ).set(state is ReplicaState.SERVING)
        if tenure.status.reason:
            facts["reason"] = tenure.status.reason
        if state is ReplicaState.SERVING and worker is not None:
            facts |= {"worker_id": worker.worker_id, "model": worker.model_id}
            if not tenure.status.served:
                tenure.status.served = True
                self._metrics.serving_seconds.labels(self._service).observe(now - tenure.seen_at)
                facts["since_seen_s"] = round(now - tenure.seen_at, 3)
        log = self._logger.warning if state in _TROUBLED else self._logger.info
        log(f"replica.{state.value}", replica=tenure.replica, worker_url=tenure.url, **facts)

    def _reason(self, tenure: Tenure, worker: Registered | None) -> str:
        if tenure.leaving is not None and (tenure.gone or tenure.drain.requested):
            if tenure.drain.done.is_set():
                return f"{tenure.leaving.value}; drained, safe to stop"
            waiting = f"; {counted(tenure.drain.in_flight, 'connection')} in flight" if tenure.drain.in_flight else ""
            return tenure.leaving.value + waiting
        problem = (
            tenure.bridge.problem
            or tenure.notes.handle_problem
            or tenure.notes.problem
            or tenure.bridge.peer_problem
            or tenure.bridge.key_problem
        )
        if problem:
            return problem
        if tenure.probe.result is None:
            return ""
        if not isinstance(tenure.probe.result, Ready):
            return tenure.probe.result.reason
        if worker is not None and worker.status is WorkerStatus.READY:
            if tenure.presence is Presence.SUPERSEDED:
                return "its replica has moved; it serves until the new engine does"
            is_found = worker.model_id or not self._slots.active.router.setup.by_model
            return self._shortcomings(tenure) if is_found else _NAMELESS
        if not self._slots.active.router.up:
            return f"waiting for the router ({self._slots.active.router.state.value})"
        trouble = self._slots.active.book.trouble(tenure.url) if tenure.url else None
        return trouble or (f"the router says {worker.status.value}" if worker else "not registered yet")

    def _shortcomings(self, tenure: Tenure) -> str:
        """What its clients miss although it serves."""
        facts = tenure.probe.facts
        if facts is None:
            return ""
        lacks = ENGINES[facts.runtime_type].lacks(worker_spec(facts, "", tenure.notes.overrides))
        return "; ".join(filter(None, (lacks, self._not_routed(tenure))))

    def _not_routed(self, tenure: Tenure) -> str:
        """Which of its names have no worker, and why."""
        facts, book = tenure.probe.facts, self._slots.active.book
        if facts is None or not (facts.names or tenure.notes.overrides.names):
            return ""
        urls = tenure.urls
        waiting = [url for url in urls if (w := book.workers.get(url)) is None or w.status is not WorkerStatus.READY]
        if waiting:
            names = ", ".join(str(urls[url]) for url in waiting[:_FEW_NAMES])
            return f"not routed yet: {names}{', ...' if waiting[_FEW_NAMES:] else ''}"
        if len(urls) == 1 and tenure.notes.overrides.model is None:
            return (
                f"its other names are not routed, as it has no bridge (`direct`): {', '.join(facts.names[:_FEW_NAMES])}"
            )
        if len(facts.names) > MOST_NAMES and tenure.notes.overrides.model is None:
            return f"not all of its names are routed: more than {MOST_NAMES}; list those that count in `model`"
        return ""
