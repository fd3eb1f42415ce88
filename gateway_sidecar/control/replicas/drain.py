"""Takes replicas out of rotation and says when it is safe to stop their engines."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from gateway_sidecar.config import DrainSettings
from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import PeerAddress, ReplicaId, WorkerType
from gateway_sidecar.domain.planning import STAYS_BRIDGED, worker_spec
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What came of a drain: whether it is safe to stop the engine now, and after how long.

    unanswered: model -> why no replica can answer for it without this one.
    """

    drained: bool
    in_flight: int | None
    took_s: float
    unanswered: Mapping[str, str] = field(default_factory=dict)


class Drains:
    """The drains of one service."""

    def __init__(
        self,
        service: str,
        settings: DrainSettings,
        tenures: Registry,
        queue: WorkQueue[Key],
        roles: Pairing,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._service = service
        self._tenures = tenures
        self._queue = queue
        self._roles = roles
        self._metrics = metrics
        self._logger = get_logger(service=service)

    def reconfigure(self, settings: DrainSettings) -> None:
        """Takes new bounds; the drains under way go by them, too."""
        self._settings = settings

    def unanswered_without(self, replica: ReplicaId) -> dict[str, str]:
        """Model -> why no replica could answer for it without this one. Raises KeyError if it is not there."""
        return self._roles.unanswered_without(self._tenures.current[replica].urls)

    async def drain(self, replica: ReplicaId, timeout_s: float) -> DrainReport:
        """Takes a replica out of rotation; returns when nothing is in flight, or after `timeout_s` seconds.

        Raises KeyError for a replica that is not there. The replica stays out until its socket is replaced or
        `resume` is called.
        """
        tenure = self._tenures.current[replica]
        unanswered = self.unanswered_without(replica)
        if not tenure.drain.requested:
            tenure.drain.requested = True
            tenure.drain.done.clear()
            self._queue.add(tenure.key, urgent=True)
        began = awake.monotonic()
        try:
            async with within(timeout_s):
                await tenure.drain.done.wait()
        except TimeoutError:
            self._metrics.drains.labels(self._service, "timeout").inc()
            return DrainReport(False, self._in_flight(tenure), awake.monotonic() - began, unanswered)
        return DrainReport(True, 0, awake.monotonic() - began, unanswered)

    def resume(self, replica: ReplicaId) -> None:
        """Takes a drained replica back into rotation, once it answers. Raises KeyError for an unknown replica."""
        tenure = self._tenures.current[replica]
        if not tenure.drain.requested:
            return
        tenure.drain.requested = False
        _forget_count(tenure)
        self._queue.add(tenure.key, urgent=True)

    def note_out(self, tenure: Tenure, is_out: bool) -> None:
        """Takes note of whether no router lists its worker any more: connections count from then on."""
        if tenure.leaving is None or not is_out:
            _forget_count(tenure)
        elif tenure.drain.out_at is None:
            tenure.drain.out_at = awake.monotonic()

    def gives_up_s(self, tenure: Tenure) -> float | None:
        """In how many seconds what is connected to it is waited for no more; None where that has no end."""
        if not tenure.gone or tenure.drain.out_at is None:
            return None
        return max(0.0, tenure.drain.out_at + self._settings.timeout_s - awake.monotonic())

    def has_given_up(self, tenure: Tenure) -> bool:
        """Whether what is connected to an engine that is gone has been waited for long enough.

        Its port goes on resting until it is quiet.
        """
        return (
            tenure.gone
            and tenure.drain.out_at is not None
            and awake.monotonic() >= tenure.drain.out_at + self._settings.timeout_s
        )

    def finish_if_quiet(self, tenure: Tenure) -> float | None:
        """Ends the drain if nobody needs the engine any more; in how many seconds that may be, if it is known."""
        if (
            not tenure.drain.requested
            or tenure.bridge.linked
            or any(_is_needed(stay) for stay in (tenure, *self._tenures.of_same_engine(tenure)))
        ):
            return None
        left_s = self._handover_left_s(tenure)
        if left_s > 0:
            return left_s
        if not tenure.drain.done.is_set():
            tenure.drain.done.set()
            self._metrics.drains.labels(self._service, "drained").inc()
            self._logger.info("replica.drained", replica=tenure.replica)
        return None

    def places_to_count(self) -> set[int | PeerAddress]:
        """Bridge ports and advertised addresses whose open connections decide what happens next."""
        waiting = (
            t.counted_at
            for t in self._tenures
            if t.drain.out_at is not None and t.leaving not in STAYS_BRIDGED and t.drain.in_flight != 0
        )
        return set().union(*waiting)

    def connections_counted(
        self, began: float, counted: Container[int | PeerAddress], counts: Mapping[int | PeerAddress, int]
    ) -> None:
        """Takes note of a count, begun at `began`, of the open connections at the places `counted`."""
        for tenure in self._tenures:
            places = tenure.counted_at
            if (
                places
                and all(place in counted for place in places)
                and tenure.drain.out_at is not None
                and tenure.drain.out_at <= began
            ):
                tenure.drain.in_flight = sum(counts.get(place, 0) for place in places)
                if tenure.drain.in_flight == 0 and tenure.drain.quiet_since is None:
                    tenure.drain.quiet_since = awake.now()
                for stay in (tenure, *self._tenures.of_same_engine(tenure)):
                    self._queue.add(stay.key)

    def _in_flight(self, tenure: Tenure) -> int | None:
        """Connections to its engine, as far as they were counted; None if none were."""
        counts = [stay.drain.in_flight for stay in (tenure, *self._tenures.of_same_engine(tenure))]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _handover_left_s(self, tenure: Tenure) -> float:
        """How long a quiet engine is still needed: vLLM's prefill answers before its KV blocks are fetched."""
        facts = tenure.probe.facts
        if facts is None or tenure.drain.quiet_since is None:
            return 0.0
        spec = worker_spec(facts, "", tenure.notes.overrides)
        if spec.kv_connector is None or spec.worker_type is not WorkerType.PREFILL:
            return 0.0
        return tenure.drain.quiet_since + self._settings.handover_s - awake.now()


def _is_needed(tenure: Tenure) -> bool:
    """Whether something is in flight there, as far as is known."""
    return tenure.drain.in_flight != 0 and tenure.bridge.port is not None


def _forget_count(tenure: Tenure) -> None:
    tenure.drain.out_at = tenure.drain.in_flight = tenure.drain.quiet_since = None
    tenure.drain.done.clear()
