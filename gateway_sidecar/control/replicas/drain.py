"""Takes replicas out of rotation and says when it is safe to stop their engines."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway_sidecar.config import DrainSettings
from gateway_sidecar.control.replicas.pairing import Pairing
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.fleet import AskedDrain, DrainAt, DrainSeen, connections
from gateway_sidecar.domain.model import PeerAddress, ReplicaId, WorkerType
from gateway_sidecar.domain.planning import STAYS_BRIDGED, worker_spec
from gateway_sidecar.sources.api import NAME as API
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What came of a drain: whether it is safe to stop the engine now, and after how long.

    in_flight: connections at this gateway. unanswered: model -> why no replica can answer for it without this one.
    elsewhere: how the other gateways stand with it. reason: why it is not safe; empty if it is.
    """

    drained: bool
    in_flight: int | None
    took_s: float
    unanswered: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Sequence[DrainAt] = ()
    reason: str = ""


class FleetAsks(Protocol):
    """The drains that all gateways of a fleet were asked for. They are about replicas of the API: all have these."""

    def asked_of(self, service: str) -> Mapping[ReplicaId, AskedDrain] | None:
        """None while that is not known: then nothing changes."""
        ...

    def is_outdated(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> bool:
        """Whether the fleet has another entry for the replica than the one that an engine was found by."""
        ...

    def listen(self, listener: Callable[[], None]) -> None: ...

    def unlisten(self, listener: Callable[[], None]) -> None: ...


class NobodyAsks:
    """A gateway that works alone."""

    def asked_of(self, service: str) -> Mapping[ReplicaId, AskedDrain] | None:
        """Nothing, ever."""
        return {}

    def is_outdated(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> bool:
        """Nobody has another one."""
        return False

    def listen(self, listener: Callable[[], None]) -> None:
        """There is nothing to hear."""

    def unlisten(self, listener: Callable[[], None]) -> None:
        """The opposite of `listen`."""


class Drains:
    """The drains of one service."""

    def __init__(
        self,
        settings: DrainSettings,
        tenures: Registry,
        queue: WorkQueue[Key],
        roles: Pairing,
        fleet: FleetAsks,
        metrics: Metrics,
    ) -> None:
        self._fleet = fleet
        self._followed: dict[ReplicaId, str] = {}
        self._settings = settings
        self.service = tenures.service
        self._tenures = tenures
        self._queue = queue
        self._roles = roles
        self._metrics = metrics
        self._logger = get_logger(service=tenures.service)

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
            self._metrics.drains.labels(self.service, "timeout").inc()
            in_flight = self._in_flight(tenure)
            reason = f"{connections(in_flight)} in flight at this gateway"
            return DrainReport(False, in_flight, awake.monotonic() - began, unanswered, reason=reason)
        return DrainReport(True, 0, awake.monotonic() - began, unanswered)

    def resume(self, replica: ReplicaId) -> None:
        """Takes a drained replica back into rotation, once it answers. Raises KeyError for an unknown replica."""
        tenure = self._tenures.current[replica]
        if not tenure.drain.requested:
            return
        self._end(tenure)

    # -- what the whole fleet was asked for

    def listen(self) -> None:
        """Queues a tenure whenever the fleet was asked for something else of its replica."""
        self._fleet.listen(self._reconsider)

    def unlisten(self) -> None:
        """The opposite of `listen`."""
        self._fleet.unlisten(self._reconsider)

    def follow(self, tenure: Tenure) -> None:
        """Has it drain, or go on, as the fleet was asked; before anything else is decided of it.

        A drain means the engine that is there when a gateway first hears of it, and not the one that takes its place.
        One that was found by an outdated entry is not yet that engine: other gateways may drain the next one already.
        """
        is_meant = tenure.sighting.source == API and self._tenures.current.get(tenure.replica) is tenure
        asked = self._fleet.asked_of(self.service) if is_meant else None
        if asked is None:
            return
        it = asked.get(tenure.replica)
        if it is None:
            if tenure.drain.asked is not None:
                self._end(tenure)
        elif tenure.drain.asked == it.id:
            self._note_followed(tenure, it.id)
        elif tenure.key in self._tenures.unconfirmed:
            return  # Whether it is the engine that is meant, the first look tells.
        elif self._followed.get(tenure.replica) == it.id:
            tenure.drain.asked = it.id  # That was the engine before this one.
        else:
            tenure.drain.asked = it.id
            self._note_followed(tenure, it.id)
            if not tenure.drain.requested:
                tenure.drain.requested = True
                tenure.drain.done.clear()
                self._logger.info("replica.drain_asked", replica=tenure.replica, gateway=it.gateway)

    def _note_followed(self, tenure: Tenure, asked: str) -> None:
        if not self._fleet.is_outdated(self.service, tenure.replica, tenure.sighting.entry):
            self._followed[tenure.replica] = asked

    def is_for_fleet(self, replica: ReplicaId) -> bool:
        """Whether a drain of it means all gateways of a fleet: they have what was put over the API."""
        tenure = self._tenures.current.get(replica)
        return tenure is not None and tenure.sighting.source == API

    def is_asked_here_alone(self, replica: ReplicaId) -> bool:
        """Whether this gateway was asked for its drain, and not the fleet. Raises KeyError."""
        drain = self._tenures.current[replica].drain
        return drain.requested and drain.asked is None

    def says(self, replica: ReplicaId, asked: str) -> DrainSeen:
        """What the other gateways are told of this drain: whether anything here needs the engine, or may yet."""
        stays = [stay for stay in self._tenures if stay.replica == replica and stay.sighting.source == API]
        current = self._tenures.current.get(replica)
        if current in stays and current.drain.asked != asked:
            return DrainSeen(asked, False, True)
        holds = current in stays and current.drain.requested
        # What an earlier stay has in flight counts, too: while no daemon ran, its bridge led to the next engine.
        needed = [it for it in stays if it is not current or (holds and not it.drain.done.is_set())]
        counts = [it.drain.in_flight for it in needed if it.drain.in_flight is not None]
        return DrainSeen(asked, not needed, holds, sum(counts) if counts or not needed else None)

    def _reconsider(self) -> None:
        asked = self._fleet.asked_of(self.service) or {}
        self._followed = {replica: id_ for replica, id_ in self._followed.items() if replica in asked}
        for tenure in self._tenures:
            it = asked.get(tenure.replica)
            if tenure.sighting.source == API and tenure.drain.asked != (None if it is None else it.id):
                self._queue.add(tenure.key, urgent=True)

    def _end(self, tenure: Tenure) -> None:
        is_out, tenure.drain.requested, tenure.drain.asked = tenure.drain.requested, False, None
        if is_out:
            _forget_count(tenure)
            self._queue.add(tenure.key, urgent=True)

    # -- how it goes

    def note_out(self, tenure: Tenure, is_out: bool) -> None:
        """Takes note of whether no router lists its worker any more: connections count from then on."""
        if tenure.leaving is None or not is_out:
            _forget_count(tenure)
        elif tenure.drain.out_at is None:
            tenure.drain.out_at = awake.monotonic()

    def note_unbridged(self, tenure: Tenure) -> None:
        """Nothing new reaches it from now on. A router in a mesh may have sent it something just before, by what it
        learnt from another gateway: it is counted once more.
        """
        if tenure.drain.out_at is not None:
            tenure.drain.out_at, tenure.drain.in_flight, tenure.drain.quiet_since = awake.monotonic(), None, None

    def gives_up_s(self, tenure: Tenure) -> float | None:
        """In how many seconds what is connected to it is waited for no more; None where that has no end."""
        if not tenure.gone or tenure.drain.out_at is None or self._is_awaited(tenure):
            return None
        return max(0.0, tenure.drain.out_at + self._settings.timeout_s - awake.monotonic())

    def has_given_up(self, tenure: Tenure) -> bool:
        """Whether what is connected to an engine that is gone has been waited for long enough.

        Its port goes on resting until it is quiet. While the fleet is asked for a drain, nothing is long enough.
        """
        return (
            tenure.gone
            and tenure.drain.out_at is not None
            and not self._is_awaited(tenure)
            and awake.monotonic() >= tenure.drain.out_at + self._settings.timeout_s
        )

    def _is_awaited(self, tenure: Tenure) -> bool:
        """Whether another gateway may wait to hear that nothing is in flight there, as long as that takes."""
        return tenure.sighting.source == API and tenure.replica in (self._fleet.asked_of(self.service) or {})

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
            self._metrics.drains.labels(self.service, "drained").inc()
            self._logger.info("replica.drained", replica=tenure.replica)
        return None

    def end(self, tenure: Tenure) -> None:
        """Its stay is over: whoever waits for its drain waits no more."""
        tenure.drain.done.set()

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
