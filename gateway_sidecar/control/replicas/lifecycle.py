"""Who comes and who goes: the sightings of a source, turned into the tenures of one service.

A tenure begins when a socket is first seen, when another inode is found at its path, when somebody else answers behind
the same one, be it another engine or none, or when the replica is to be known by another address. What was written
beside a socket is read before anything is said of the engine to a router.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from gateway_sidecar.control.replicas.bridging import Bridging
from gateway_sidecar.control.replicas.handles import Handles
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.reflector import Reflector
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.reporting import Reporting
from gateway_sidecar.control.replicas.tenure import (
    Bridged,
    BridgeHosts,
    Draining,
    Notes,
    Presence,
    Probed,
    Status,
    Tenure,
    occupant_of,
    owner_of,
)
from gateway_sidecar.control.replicas.workqueue import WorkQueue
from gateway_sidecar.control.routers.replacement import RouterSlots
from gateway_sidecar.domain.model import Foreign, Overrides, PeerAddress, Ready, ReplicaState
from gateway_sidecar.domain.planning import Why, plan_worker
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.files.follow import opened_at
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import OwnThread
from gateway_sidecar.telemetry.logs import get_logger

_NOTES_PATIENCE_S = 2.0


class Lifecycle:
    """The comings and goings of one service.

    on_change: called when there is something new to write down.
    """

    def __init__(
        self,
        service: str,
        hosts: BridgeHosts,
        tenures: Registry,
        *,
        queue: WorkQueue[int],
        bridges: Bridging,
        prober: Prober,
        reflector: Reflector,
        log: Reporting,
        read_overrides: Callable[[Path, int], Overrides],
        slots: RouterSlots,
        on_change: Callable[[], None],
    ) -> None:
        self._service = service
        self._hosts = hosts
        self._tenures = tenures
        self._queue = queue
        self._bridges = bridges
        self._prober = prober
        self._reflector = reflector
        self._log = log
        self._read_overrides = read_overrides
        self._slots = slots
        self._on_change = on_change
        self._logger = get_logger(service=service)
        self._notes_thread = OwnThread(f"notes {service}")
        self._pins: dict[str, Handles] = {}
        self._keys = itertools.count(1)

    async def take_in(self, listing: Listing) -> None:
        """Begins and ends what the listing shows to have come and gone."""
        for replica, tenure in list(self._tenures.current.items()):
            if listing.is_gone(replica, tenure.sighting.source):
                self._miss(tenure, listing)
        self.end_superseded()
        undescribed, unpinned = [], []
        for sighting in listing.present.values():
            current = self._tenures.current.get(sighting.replica)
            if current is not None and current.sighting.occupant != sighting.occupant:
                self._supplant(current, sighting)
                current = None
            if current is None:
                current = self.begin(sighting, self._tenures.fresh_generation(sighting.occupant))
            if current.address is None:
                unpinned.append(current)
            if not current.notes.read or not current.sighting.says_as_much_as(sighting):
                undescribed.append((current, sighting))
        await self._pin(unpinned)
        await self._describe(undescribed)

    async def describe_restored(self) -> None:
        """Reads what was written beside those that an earlier daemon left."""
        undescribed = [t for t in self._tenures if not t.notes.read and not t.sighting.described]
        await self._describe([(tenure, tenure.sighting) for tenure in undescribed])

    def begin(
        self,
        sighting: Sighting,
        generation: int,
        *,
        gone: bool = False,
        notes: Notes | None = None,
        probe: Probed | None = None,
        bridge: Bridged | None = None,
        drain: Draining | None = None,
        served: bool = False,
    ) -> Tenure:
        """A new tenure, queued to be looked at. What is known of it already is given with it."""
        now = awake.now()
        tenure = Tenure(
            key=next(self._keys),
            owner=owner_of(self._service, sighting, generation),
            generation=generation,
            replica=sighting.replica,
            sighting=sighting,
            seen_at=now,
            pin=None,
            hosts=self._hosts,
            notes=notes or Notes(read=sighting.notes is None and not sighting.described),
            probe=probe or Probed(),
            bridge=bridge or Bridged(),
            drain=drain or Draining(),
            status=Status(since=now, served=served),
        )
        if gone:
            tenure.leave(Why.SOCKET_GONE)
        self._tenures.add(tenure)
        self._queue.add(tenure.key)
        self._log.begun(tenure)
        if isinstance(tenure.probe.result, Ready):
            self._prober.trust_until_next(tenure)
        if tenure.probe.facts is not None:
            self._tenures.know_url(tenure)
            self._on_change()
        return tenure

    def _begin_after(
        self, tenure: Tenure, notes: Notes, probe: Probed, peer: PeerAddress | None, *, drain: bool = False
    ) -> Tenure:
        """The next stay behind the same socket takes over what keeps hold of it."""
        successor = self.begin(
            tenure.sighting,
            tenure.generation + 1,
            notes=notes,
            probe=probe,
            bridge=Bridged(peer=peer),
            drain=Draining(requested=drain),
        )
        successor.pin, tenure.pin = tenure.pin, None
        return successor

    def replace(self, tenure: Tenure, other: Ready | Foreign) -> None:
        """Somebody else answers behind the same socket: another engine's worker is a new one, on a port of its own.

        Nothing leads to what is no engine, and it is asked again as one that has just been seen.
        """
        if tenure.presence is Presence.SUPERSEDED:
            self._lose(tenure)
            return
        by = "another engine" if isinstance(other, Ready) else other.reason
        self._logger.info("replica.replaced", replica=tenure.replica, worker_url=tenure.url, by=by)
        tenure.leave(Why.REPLACED)
        facts = other.facts if isinstance(other, Ready) else None
        self._begin_after(tenure, replace(tenure.notes), Probed(facts, other), tenure.bridge.peer)
        tenure.unpin()

    def is_settled(self, tenure: Tenure) -> bool:
        """Whether it serves, and the router knows it as it is described now."""
        if tenure.status.state is not ReplicaState.SERVING or tenure.url is None:
            return False
        seen = self._slots.active.book.view(tenure.url)
        return not seen.busy and plan_worker(tenure.view(), seen) is None

    def _is_known(self, tenure: Tenure) -> bool:
        """Whether a router has, or is being told of, its worker."""
        return any(seen.worker is not None or seen.busy for seen in self._slots.views(tenure.url).values())

    def end_superseded(self) -> None:
        """Those whose replica serves elsewhere now, or is no more, have done their part."""
        for tenure in list(self._tenures.superseded.values()):
            heir, listing = self._tenures.current.get(tenure.replica), self._reflector.listing
            if heir is None and listing is not None and tenure.replica in listing.absent:
                continue
            if heir is None or heir.drain.requested or self.is_settled(heir):
                self._lose(tenure)

    def _lose(self, tenure: Tenure) -> None:
        tenure.leave(Why.SOCKET_GONE)
        self._tenures.leave(tenure)
        if tenure.probe.task is not None:
            tenure.probe.task.cancel()
        tenure.unpin()
        self._queue.add(tenure.key, urgent=True)  # Every millisecond may cost a request.

    def _supplant(self, tenure: Tenure, by: Sighting) -> None:
        """Somebody else is the replica now. Where it was only sent elsewhere, its old place serves until the new does.

        Two cannot have one advertised address, so there the old one goes first.
        """
        has_address = tenure.bridge.peer is not None or (by.overrides is not None and by.overrides.peer is not None)
        if has_address or tenure.drain.requested or not by.is_listed_elsewhere(tenure.sighting):
            self._lose(tenure)
            return
        self._logger.info("replica.sent_elsewhere", replica=tenure.replica, worker_url=tenure.url, to=str(by.socket))
        self._tenures.supersede(tenure)

    def _miss(self, tenure: Tenure, listing: Listing) -> None:
        """Its source does not show the replica any more, unless it says that it will be somewhere else."""
        source, place = listing.absent.get(tenure.replica, ("", tenure.sighting.socket))
        here = place == tenure.sighting.socket or source != tenure.sighting.source
        if here or tenure.bridge.peer is not None or tenure.drain.requested:
            self._lose(tenure)
            return
        self._logger.info("replica.sent_elsewhere", replica=tenure.replica, worker_url=tenure.url, to=str(place))
        self._tenures.leave(tenure)
        self._tenures.supersede(tenure)

    async def _pin(self, unpinned: list[Tenure]) -> None:
        """Opens the sockets of those that have none open; where the file system hangs the next look tries again."""
        by_source: dict[str, list[Tenure]] = {}
        for tenure in unpinned:
            if tenure.sighting.tunnel is None:
                by_source.setdefault(tenure.sighting.source, []).append(tenure)
        # Beside each other: what hangs holds up its own source alone.
        await asyncio.gather(*(self._pin_those_of(source, tenures) for source, tenures in by_source.items()))

    async def _pin_those_of(self, source: str, tenures: list[Tenure]) -> None:
        pins = self._pins.setdefault(source, Handles(f"{self._service} {source}"))
        opened = await pins.open(tenure.sighting.place for tenure in tenures)
        for tenure, pin in zip_longest(tenures, opened):
            if not isinstance(pin, int):
                reason = pin.strerror if pin is not None else "the file system does not answer"
                tenure.notes.pin_problem = f"cannot open {tenure.sighting.place}: {reason}"
            elif tenure.gone or not is_at(pin, tenure.sighting):
                os.close(pin)  # Replaced since the look: the next one begins a new tenure.
                self._reflector.look_soon()
            else:
                tenure.pin = pin
                tenure.notes.pin_problem = None
                self._queue.add(tenure.key)

    # -- what is written beside a socket

    async def _describe(self, undescribed: list[tuple[Tenure, Sighting]]) -> None:
        """Reads what was written beside sockets; where the disk hangs the next look tries again."""
        for tenure, sighting in sorted(undescribed, key=lambda pair: pair[1].notes is not None):
            if not await self._read_notes(tenure, sighting):
                return

    async def _read_notes(self, tenure: Tenure, sighting: Sighting) -> bool:
        """False if the file does not come in time: what was known of the tenure stays."""
        try:
            overrides, problem = sighting.overrides or Overrides(), None
            if sighting.notes is not None:
                read = partial(self._read_beside, sighting.notes[0], sighting, tenure.pin)
                # One that hangs was waited for once: others come and go meanwhile.
                patience_s = 0.0 if self._notes_thread.hangs else _NOTES_PATIENCE_S
                overrides = await self._notes_thread.run(read, patience_s=patience_s)
        except ConfigError as error:
            overrides, problem = tenure.notes.overrides, error.problems[0]
            self._logger.error("replica.notes_refused", replica=tenure.replica, problems=error.problems)
        except TimeoutError:
            if not tenure.notes.read:
                tenure.notes.problem = "the file system of its .yaml does not answer"
                self._queue.add(tenure.key)
            return False
        except FileNotFoundError:
            return True  # The socket itself is gone: the next look tells what that means.
        tenure.sighting, tenure.notes.read, tenure.notes.problem = sighting, True, problem
        if problem is None and overrides.peer != tenure.bridge.peer and not tenure.gone:
            tenure = self._move(tenure, overrides.peer)
        tenure.notes.overrides = overrides
        self._queue.add(tenure.key)
        return True

    def _read_beside(self, notes: Path, sighting: Sighting, pin: int | None) -> Overrides:
        """What is noted beside a socket, whose owner it has to belong to. Raises ConfigError, OSError. Blocks."""
        try:
            socket = os.fstat(pin) if pin is not None else sighting.place.lstat()
        except OSError:
            raise FileNotFoundError(sighting.place) from None
        if occupant_of(socket) != sighting.occupant:
            raise FileNotFoundError(sighting.place)
        return self._read_overrides(notes, socket.st_uid)

    def _move(self, tenure: Tenure, peer: PeerAddress | None) -> Tenure:
        """The replica is advertised under another address: a new stay, if a router knows of this one."""
        if not self._is_known(tenure):
            self._tenures.forget_url(tenure)
            self._bridges.readdress(tenure, peer)
            self._tenures.know_url(tenure)
            return tenure
        self._logger.info("replica.moved", replica=tenure.replica, worker_url=tenure.url, advertise=str(peer or "-"))
        tenure.leave(Why.MOVED)
        probe = Probed(tenure.probe.facts, tenure.probe.result)
        successor = self._begin_after(tenure, Notes(read=True), probe, peer, drain=tenure.drain.requested)
        tenure.unpin()
        self._queue.add(tenure.key)
        return successor


def is_at(pin: int, sighting: Sighting) -> bool:
    """Whether what is open is what was looked at, and lies there: no link was put on the way to it meanwhile."""
    return occupant_of(os.fstat(pin)) == sighting.occupant and opened_at(pin) == str(sighting.place)
