"""Who comes and who goes: the sightings of a source, turned into the tenures of one service.

A tenure begins when a socket is first seen, when another inode is found at its path, when somebody else answers behind
the same one, be it another engine or none, or when the replica is to be known by another address.
"""

from __future__ import annotations

from dataclasses import replace

from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.replicas.tenure import Bridged, Draining, Notes, Presence, Probed, SavedTenure, Tenure
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import Foreign, Ready, ReplicaState
from gateway_sidecar.domain.planning import Why, plan_worker
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.telemetry.logs import get_logger


class Lifecycle:
    """The comings and goings of one service. Only its loop calls this, and before it who takes up what was there."""

    def __init__(
        self, tenures: Registry, queue: WorkQueue[Key], prober: Prober, reporting: Reporting, slots: RouterSlots
    ) -> None:
        self._tenures = tenures
        self._queue = queue
        self._prober = prober
        self._reporting = reporting
        self._slots = slots
        self._logger = get_logger(service=slots.service)

    def take_in(self, listing: Listing) -> None:
        """Begins and ends what the listing shows to have come and gone. One that is blind shows nothing."""
        if listing.blind is not None:
            return
        missed = [(replica, it) for replica, it in self._tenures.current.items() if replica not in listing.present]
        for replica, tenure in missed:
            if listing.is_gone(replica, tenure.sighting.source):
                self._miss(tenure, listing)
        self.end_superseded(listing)
        for sighting in listing.present.values():
            current = self._tenures.current.get(sighting.replica)
            is_same = current is not None and current.sighting.occupant == sighting.occupant
            if current is not None and is_same and self._tenures.confirm(current, sighting):
                self._queue.add(current.key)
            if current is not None and not is_same:
                self._supplant(current, sighting)
                current = None
            if current is None:
                self._began(self._tenures.begin(sighting, self._tenures.fresh_generation(sighting.occupant)))
        if not listing.unseen:
            self._tenures.note_all()

    def restore(self, saved: SavedTenure, *, linked: bool) -> Tenure:
        """Goes on with a tenure that an earlier daemon left: no question to an engine already known.

        Whether the occupant is still the same, and how it is described, is decided by the first look at the source.
        `linked` says whether the bridge still leads to it.
        """
        earlier = self._tenures.current.get(saved.sighting.replica)
        if earlier is not None and not saved.leaving:
            self._tenures.supersede(earlier)
        tenure = self._tenures.begin(
            saved.sighting,
            saved.generation,
            gone=saved.leaving,
            notes=Notes(),  # What is written beside its socket may have changed since.
            probe=Probed(saved.facts, Ready(saved.facts) if saved.facts is not None else None),
            bridge=Bridged(saved.port, linked=linked, peer=saved.peer),
            drain=Draining(requested=saved.drain, asked=saved.asked),
            confirmed=False,
            served=True,  # How long it took to serve was told by the daemon that saw it come.
        )
        return self._began(tenure)

    def replace(self, tenure: Tenure, other: Ready | Foreign) -> None:
        """Somebody else answers behind the same socket: another engine's worker is a new one, on a port of its own.

        Nothing leads to what is no engine, and it is asked again as one that has just been seen.
        """
        if tenure.presence is Presence.SUPERSEDED:
            self._lose(tenure)
            return
        by = "another engine" if isinstance(other, Ready) else other.reason
        self._logger.info("replica.replaced", replica=tenure.replica, worker_url=tenure.url, by=by)
        facts = other.facts if isinstance(other, Ready) else None
        self._succeed(tenure, Why.REPLACED, Probed(facts, other), Bridged(peer=tenure.bridge.peer), Draining())

    def move(self, tenure: Tenure) -> None:
        """It is to be advertised under another address, and a router knows of this one: that is a new stay."""
        peer = tenure.notes.overrides.peer
        self._logger.info("replica.moved", replica=tenure.replica, worker_url=tenure.url, advertise=str(peer or "-"))
        probe = Probed(tenure.probe.facts, tenure.probe.result)
        drain = Draining(requested=tenure.drain.requested, asked=tenure.drain.asked)
        self._succeed(tenure, Why.MOVED, probe, Bridged(peer=peer), drain)
        self._queue.add(tenure.key)

    def is_up_to_date(self, tenure: Tenure) -> bool:
        """Whether it serves, and the router knows it as it is described now."""
        if tenure.status.state is not ReplicaState.SERVING or tenure.url is None or tenure.moves:
            return False
        seen = [(tenure.view(url, name), self._slots.active.book.view(url)) for url, name in tenure.urls.items()]
        return all(not worker.busy and plan_worker(view, worker) is None for view, worker in seen)

    def end_superseded(self, listing: Listing | None) -> None:
        """Those whose replica serves elsewhere now, or is no more, have done their part."""
        for tenure in list(self._tenures.superseded.values()):
            heir = self._tenures.current.get(tenure.replica)
            if heir is None and listing is not None and tenure.replica in listing.absent:
                continue
            if heir is None or heir.drain.requested or self.is_up_to_date(heir):
                self._lose(tenure)

    def _began(self, tenure: Tenure) -> Tenure:
        self._queue.add(tenure.key)
        self._reporting.begun(tenure)
        if isinstance(tenure.probe.result, Ready):
            self._prober.trust_until_next(tenure)
        return tenure

    def _succeed(self, tenure: Tenure, why: Why, probe: Probed, bridge: Bridged, drain: Draining) -> None:
        """The next stay behind the same socket takes over what keeps hold of it."""
        self._tenures.leave(tenure, why)
        notes, handle = replace(tenure.notes), self._tenures.take_handle(tenure)
        successor = self._tenures.begin(
            tenure.sighting, tenure.generation + 1, notes=notes, probe=probe, bridge=bridge, drain=drain, handle=handle
        )
        self._began(successor)

    def _lose(self, tenure: Tenure) -> None:
        self._tenures.leave(tenure, Why.SOCKET_GONE)
        self._prober.stop(tenure)
        self._tenures.let_go(tenure)
        self._queue.add(tenure.key, urgent=True)  # Every millisecond may cost a request.

    def _supplant(self, tenure: Tenure, by: Sighting) -> None:
        """Somebody else is the replica now. Where it was only sent elsewhere, its old place serves until the new does.

        Two cannot have one advertised address, so there the old one goes first.
        """
        has_address = tenure.bridge.peer is not None or (by.overrides is not None and by.overrides.peer is not None)
        if has_address or not _serves_on(tenure) or not by.is_listed_elsewhere(tenure.sighting):
            self._lose(tenure)
        else:
            self._supersede(tenure, str(by.socket))

    def _miss(self, tenure: Tenure, listing: Listing) -> None:
        """Its source does not show the replica any more, unless it says that it will be somewhere else."""
        source, place = listing.absent.get(tenure.replica, ("", tenure.sighting.socket))
        here = place == tenure.sighting.socket or source != tenure.sighting.source
        if here or tenure.bridge.peer is not None or not _serves_on(tenure):
            self._lose(tenure)
        else:
            self._supersede(tenure, str(place))

    def _supersede(self, tenure: Tenure, to: str) -> None:
        self._logger.info("replica.sent_elsewhere", replica=tenure.replica, worker_url=tenure.url, to=to)
        self._tenures.supersede(tenure)


def _serves_on(tenure: Tenure) -> bool:
    """Whether its old place is of use until the new one serves: nothing leads to an engine that was never ready."""
    return tenure.bridge.port is not None and not tenure.drain.requested
