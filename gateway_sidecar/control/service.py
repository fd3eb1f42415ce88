"""The loop of one service: observe -> plan -> execute, again and again, for whatever may have changed.

Everything here is level-triggered: a key in the queue means "look at this tenure again", and what to do follows
from what is observed then. Probes, the router's answers and the source only change what is observed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replica_log import ReplicaLog
from gateway_sidecar.control.router_process import RouterProcess
from gateway_sidecar.control.tenure import SavedTenure, Tenure, occupant_of, owner_of, worker_url
from gateway_sidecar.control.waiting_room import Gates, WaitingRoom
from gateway_sidecar.control.watcher import Probe, Watcher
from gateway_sidecar.control.work_queue import WorkQueue
from gateway_sidecar.control.worker_book import WorkerBook
from gateway_sidecar.domain.leases import NoFreePort, PortLeases
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Overrides,
    Ready,
    ReplicaId,
    WorkerStatus,
)
from gateway_sidecar.domain.planning import (
    Bridge,
    Release,
    Unbridge,
    describe,
    plan_occupant,
    plan_strays,
    plan_worker,
)
from gateway_sidecar.errors import ConfigError
from gateway_sidecar.sources.listing import Listing, Sighting
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_LEAST_LOOK_GAP_S = 0.003
_RECONSIDER_RESCANS = 5
_MOST_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What came of a drain: whether it is safe to stop the engine now, and after how long."""

    drained: bool
    in_flight: int | None
    took_s: float


class Source(Protocol):
    """Where replicas are learnt from."""

    async def look(self) -> Listing:
        """What is there now. Never raises; what cannot be seen is said to be unknown."""
        ...

    def hints(self) -> AsyncIterator[None]:
        """Yields whenever a look may be worth while."""
        ...


class Links(Gates, Protocol):
    """The bridges' switchboard."""

    def link(self, port: int, target: Path) -> None: ...

    def unlink(self, port: int) -> None: ...


class Service:
    """One service of the daemon: its source, its tenures, its router's workers."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        source: Source,
        probe: Probe,
        links: Links,
        leases: PortLeases,
        host: str,
        router: RouterProcess,
        metrics: Metrics,
        rescan_interval_s: float,
        read_overrides: Callable[[Path], Overrides],
        on_change: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.router = router
        self._source = source
        self._links = links
        self._leases = leases
        self._host = host
        self._metrics = metrics
        self._rescan_interval_s = rescan_interval_s
        self._read_overrides = read_overrides
        self._on_change = on_change
        self._logger = get_logger(service=settings.name)
        self._queue: WorkQueue[int] = WorkQueue(time.monotonic)
        self._keys = itertools.count(1)
        self.tenures: dict[int, Tenure] = {}
        self._current: dict[ReplicaId, Tenure] = {}
        self._by_url: dict[str, Tenure] = {}
        self.listing: Listing | None = None
        self._look_now = asyncio.Event()
        self._new_source = asyncio.Event()
        self._beats = {"source": time.monotonic(), "reconcile": time.monotonic()}
        self.has_looked = False
        self._router_up_at = time.monotonic()
        self.book = WorkerBook(
            router,
            metrics,
            rescan_interval_s=rescan_interval_s,
            api_timeout_s=settings.router.api_timeout_s,
            on_change=self._on_worker,
            on_listed=self._on_workers_listed,
        )
        self.room = WaitingRoom(self.name, settings.hold, links, metrics)
        router.on_change += [on_change, self.book.hurry, self._on_router]
        self._log = ReplicaLog(self.name, router, self.book, metrics, self.tenures.values)
        self._watcher = Watcher(
            settings,
            probe,
            self._queue,
            metrics,
            tenures=self.tenures.values,
            on_news=self._reconcile,
            on_identified=self._identified,
            on_replaced=self._replace,
        )

    # -- life

    def restore(self, saved: SavedTenure, *, linked: bool) -> None:
        """Takes up a tenure that an earlier daemon left: same port, and no question to an engine already known.

        Whether the occupant is still the same is decided by the first look at the source. `linked` says whether
        the bridge still leads to it.
        """
        owner = owner_of(self.name, saved.sighting, saved.generation)
        if not self._leases.restore(saved.port, owner):
            self._logger.warning("lease.not_restored", replica=saved.sighting.replica, port=saved.port)
            return
        tenure = self._begin(saved.sighting, saved.generation, gone=saved.leaving)
        tenure.port = saved.port
        tenure.linked = linked
        tenure.drain = saved.drain
        tenure.notes_read = False
        if saved.facts is not None:
            self._identified(tenure, saved.facts)
            tenure.result = Ready(saved.facts)
            self._watcher.trust_until_next(tenure)

    def claim(self, port: int, socket: Path, linked_at_ns: int) -> bool:
        """Takes up a bridge of this service that an earlier daemon had no time to write down; False if it is none.

        A socket that was bound before the link was made is the one that it was made for.
        """
        replica = self.settings.replicas.sockets.replica_of(socket)
        if replica is None or ReplicaId(replica) in self._current:
            return False
        try:
            occupant = occupant_of(socket.stat())
        except OSError:
            return False
        if occupant.mtime_ns > linked_at_ns:
            return False
        sighting = Sighting(ReplicaId(replica), socket, occupant)
        self.restore(SavedTenure(sighting, 0, port, None, False), linked=True)
        return True

    async def run(self) -> None:
        """Runs the service until cancelled. What it started goes on; `router` is stopped or let go by its owner."""
        loops = (self._reconcile_loop, self._look_loop, self._hint_loop, self.book.run, self.router.run)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(self._keep_running(loop))
        finally:
            await self._watcher.close()
            await self.book.close()
            for tenure in self.tenures.values():
                tenure.unpin()

    async def _keep_running(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A fault of ours in one loop is told and counted, and touches neither the others nor another service."""
        while True:
            try:
                await loop()
            except Exception:  # the loop's edge
                self._metrics.loop_failures.labels(self.name).inc()
                self._logger.exception("loop.failed", loop=loop.__qualname__)
                await asyncio.sleep(1.0)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; what was observed stays."""
        self.settings = settings
        self._watcher.reconfigure(settings)
        self.book.reconfigure(settings.router.api_timeout_s)
        self.room.settings = settings.hold
        self._reconsider()

    def use_source(self, source: Source) -> None:
        """Learns replicas from another source from now on; those that it does not show are gone."""
        self._source = source
        self._new_source.set()
        self._look_now.set()

    def abandon(self) -> None:
        """Leaves the bridges of a service that is no more: nothing new gets in, and the ports rest until quiet."""
        for tenure in self.tenures.values():
            if tenure.port is not None:
                self._links.unlink(tenure.port)
                self._leases.release(tenure.port)

    def stalest_beat(self) -> float:
        """When the loop that is most behind last made progress (monotonic seconds)."""
        return min(*self._beats.values(), self.book.beat)

    def pending_actions(self) -> list[tuple[str, str]]:
        """What the next look at each tenure would do: (replica, action). Nothing is done."""
        pending = []
        for tenure in self.tenures.values():
            seen = self.book.view(tenure.url)
            steps = (plan_occupant(tenure.view(), [seen]), plan_worker(tenure.view(), seen))
            pending += [(str(tenure.replica), describe(step)) for step in steps if step is not None]
        strays = plan_strays(self.book.workers, self._known_urls(), complete=self.has_looked)
        return pending + [("-", describe(step)) for step in strays]

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return [
            SavedTenure(t.sighting, t.generation, t.port, t.facts, t.drain, t.gone or t.replaced)
            for t in self.tenures.values()
            if t.port is not None
        ]

    # -- the source

    async def _hint_loop(self) -> None:
        while True:
            self._new_source.clear()
            hints = asyncio.create_task(self._follow_hints(self._source))
            changed = asyncio.create_task(self._new_source.wait())
            try:
                await asyncio.wait({hints, changed}, return_when=asyncio.FIRST_COMPLETED)
                if hints.done():
                    hints.result()
            except OSError as error:  # No inotify left, say: the rescan goes on alone.
                self._logger.warning("source.hints_failed", reason=str(error))
                await asyncio.sleep(10)
            finally:
                hints.cancel()
                changed.cancel()

    async def _follow_hints(self, source: Source) -> None:
        async for _ in source.hints():
            self._look_now.set()

    async def _look_loop(self) -> None:
        while True:
            self._beats["source"] = time.monotonic()
            self._look_now.clear()
            began = time.monotonic()
            await self._apply(await self._source.look())
            # A crowd of hints must not keep us looking all the time.
            await asyncio.sleep(max(_LEAST_LOOK_GAP_S, 2 * (time.monotonic() - began)))
            try:
                async with asyncio.timeout(self._rescan_interval_s):
                    await self._look_now.wait()
            except TimeoutError:
                pass

    async def _apply(self, listing: Listing) -> None:
        before, self.listing = self.listing, listing
        self._metrics.source_up.labels(self.name).set(listing.blind is None)
        self._metrics.refused_names.labels(self.name).set(len(listing.refused))
        if listing.blind is not None:
            if before is None or before.blind != listing.blind:
                self._logger.error("source.blind", reason=listing.blind, kept=len(self._current))
            self.listing = Listing(before.present, refused=before.refused, blind=listing.blind) if before else listing
            return
        if before is not None and before.blind is not None:
            self._logger.info("source.sighted", replicas=len(listing.present))
        for name, reason in listing.refused.items():
            if before is None or name not in before.refused:
                self._logger.warning("replica.refused", replica=name, reason=reason)
        for replica, tenure in list(self._current.items()):
            if listing.is_gone(replica):
                self._lose(tenure)
        for sighting in listing.present.values():
            current = self._current.get(sighting.replica)
            if current is not None and current.sighting.occupant != sighting.occupant:
                self._lose(current)
                current = None
            if current is None:
                current = self._begin(sighting, 0)
            elif current.pin is None:
                self._pin(current)
            if not current.notes_read or current.sighting.notes != sighting.notes:
                await self._read_notes(current, sighting)
        self.has_looked = True

    def _begin(self, sighting: Sighting, generation: int, *, gone: bool = False) -> Tenure:
        now = time.monotonic()
        tenure = Tenure(
            key=next(self._keys),
            owner=owner_of(self.name, sighting, generation),
            generation=generation,
            replica=sighting.replica,
            sighting=sighting,
            seen_at=now,
            pin=None,
            state_since=now,
            host=self._host,
            gone=gone,
            notes_read=sighting.notes is None,
        )
        self.tenures[tenure.key] = tenure
        if not gone:
            self._pin(tenure)
            self._current[tenure.replica] = tenure
        self._queue.add(tenure.key)
        self._log.begun(tenure)
        return tenure

    def _pin(self, tenure: Tenure) -> None:
        try:
            pin = os.open(tenure.sighting.socket, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            tenure.problem = f"cannot open {tenure.sighting.socket}: {error.strerror}"
            return
        if occupant_of(os.fstat(pin)) != tenure.sighting.occupant:
            os.close(pin)  # Replaced since the look: the next one begins a new tenure.
            self._look_now.set()
            return
        tenure.pin = pin
        tenure.problem = None
        self._queue.add(tenure.key)

    async def _read_notes(self, tenure: Tenure, sighting: Sighting) -> None:
        tenure.sighting = sighting
        try:
            tenure.overrides = (
                await asyncio.to_thread(self._read_overrides, sighting.notes[0]) if sighting.notes else Overrides()
            )
            tenure.notes_read, tenure.notes_problem = True, None
        except ConfigError as error:
            tenure.notes_read, tenure.notes_problem = True, error.problems[0]
            self._logger.error("replica.notes_refused", replica=tenure.replica, problems=error.problems)
        self._queue.add(tenure.key)

    def _lose(self, tenure: Tenure) -> None:
        tenure.gone = True
        self._current.pop(tenure.replica, None)
        if tenure.probe is not None:
            tenure.probe.cancel()
        tenure.unpin()
        self._reconcile(tenure)  # At once: every millisecond may cost a request.

    # -- the plan

    def _reconsider(self) -> None:
        for key in self.tenures:
            self._queue.add(key)

    async def _reconcile_loop(self) -> None:
        all_due = 0.0
        while True:
            now = self._beats["reconcile"] = time.monotonic()
            if now >= all_due:
                # Whatever was missed, and whoever forgot to say so: the whole of it is looked at again.
                self._reconsider()
                all_due = now + _RECONSIDER_RESCANS * self._rescan_interval_s
            for count, key in enumerate(await self._queue.take(1.0)):
                tenure = self.tenures.get(key)
                if tenure is not None:
                    self._reconcile(tenure)
                if count % 64 == 63:
                    await asyncio.sleep(0)  # A thousand at once must not hold up what is answered meanwhile.
            self._open_when_complete()

    def _reconcile(self, tenure: Tenure) -> None:
        self._watcher.look_after(tenure)
        seen = self.book.view(tenure.url)
        self._note_settled(tenure, seen.listed and seen.worker is None and not seen.busy)
        action = plan_occupant(tenure.view(), [seen])
        match action:
            case Bridge():
                self._bridge(tenure)
            case Unbridge():
                self._unbridge(tenure)
            case Release():
                self._release(tenure)
                return
        step = plan_worker(tenure.view(), seen)
        if step is not None:
            self.book.start(step)
        elif tenure.url is not None and seen.held:
            self._queue.add_after(tenure.key, self.book.held_for_s(tenure.url))
        if tenure.drain and tenure.in_flight == 0 and not tenure.linked:
            self._finish_drain(tenure)
        self._log.update(tenure)

    def _note_settled(self, tenure: Tenure, is_out: bool) -> None:
        if tenure.leaving is None or not is_out:
            tenure.settled_at = tenure.in_flight = None
        elif tenure.settled_at is None:
            tenure.settled_at = time.monotonic()

    def _bridge(self, tenure: Tenure) -> None:
        try:
            fresh = tenure.port is None
            tenure.port = self._leases.acquire(tenure.owner)
            self._links.link(tenure.port, tenure.sighting.socket)
        except NoFreePort as error:
            self._trouble(tenure, f"no free bridge port ({error}); widen bridges.ports")
        except OSError as error:
            self._trouble(tenure, f"cannot make the bridge's link: {error}")
        else:
            tenure.linked = True
            tenure.problem = None
            self._know_url(tenure)
            if fresh:
                self._on_change()

    def _trouble(self, tenure: Tenure, problem: str) -> None:
        if tenure.problem != problem:
            self._logger.error("replica.not_bridged", replica=tenure.replica, reason=problem)
        tenure.problem = problem
        self._queue.add_after(tenure.key, 1.0)

    def _unbridge(self, tenure: Tenure) -> None:
        assert tenure.port is not None
        try:
            self._links.unlink(tenure.port)
        except OSError as error:
            self._trouble(tenure, f"cannot remove the bridge's link: {error}")
            return
        tenure.linked = False

    def _release(self, tenure: Tenure) -> None:
        tenure.unpin()
        del self.tenures[tenure.key]
        if tenure.port is not None:
            # Nobody holds a connection: that was the condition for letting go.
            self._leases.release(tenure.port)
            self._leases.settle(tenure.port)
        if tenure.url is not None and self._by_url.get(tenure.url) is tenure:
            del self._by_url[tenure.url]
            self.book.forget(tenure.url)
        self._on_change()
        tenure.drained.set()
        self._log.ended(tenure)

    def _on_router(self) -> None:
        if self.router.up:
            self._router_up_at = time.monotonic()
        else:
            self.room.close()

    def _open_when_complete(self) -> None:
        """Lets requests in again once the router has everybody back, or after a while whoever it has."""
        if self.room.is_open or not self.book.listed or not self.has_looked:
            return
        waited_s = time.monotonic() - self._router_up_at
        missing = [t for t in self.tenures.values() if t.view().wanted and not self._is_ready(t)]
        if not missing or waited_s > _MOST_PATIENCE_S:
            self.room.open()

    def _is_ready(self, tenure: Tenure) -> bool:
        worker = self.book.workers.get(tenure.url) if tenure.url else None
        return worker is not None and worker.status is WorkerStatus.READY

    def _on_worker(self, url: str) -> None:
        tenure = self._by_url.get(url)
        if tenure is not None:
            self._queue.add(tenure.key)

    def _on_workers_listed(self, first: bool) -> None:
        if first:
            self._reconsider()
        for step in plan_strays(self.book.workers, self._known_urls(), complete=self.has_looked):
            if not self.book.view(step.url).busy:
                self._logger.warning("worker.stray", worker_url=step.url, worker_id=step.worker_id)
                self.book.start(step)

    def _known_urls(self) -> frozenset[str]:
        known = set(self._by_url)
        for tenure in self.tenures.values():
            if tenure.facts is None and tenure.port is not None:
                # Not asked yet: either kind of worker there may be this replica's.
                known |= {worker_url(self._host, tenure.port, mode) for mode in ConnectionMode}
        return frozenset(known)

    # -- who is there

    def _identified(self, tenure: Tenure, facts: EngineFacts) -> None:
        tenure.facts = facts
        self._know_url(tenure)
        self._on_change()

    def _know_url(self, tenure: Tenure) -> None:
        if tenure.url is not None:
            self._by_url[tenure.url] = tenure

    def _replace(self, tenure: Tenure, result: Ready) -> None:
        """Another engine answers behind the same socket: its worker is a new one, on a port of its own."""
        self._logger.info("replica.replaced", replica=tenure.replica, worker_url=tenure.url)
        tenure.replaced = True
        successor = self._begin(tenure.sighting, tenure.generation + 1)
        successor.overrides = tenure.overrides
        successor.notes_read, successor.notes_problem = tenure.notes_read, tenure.notes_problem
        successor.result = result
        self._watcher.trust_until_next(successor)
        self._identified(successor, result.facts)
        tenure.unpin()

    # -- drains

    async def drain(self, replica: ReplicaId, timeout_s: float) -> DrainReport:
        """Takes a replica out of rotation; returns when nothing is in flight, or after `timeout_s` seconds.

        Raises KeyError for a replica that is not there. The replica stays out until its socket is replaced or
        `resume` is called.
        """
        tenure = self._current[replica]
        if not tenure.drain:
            tenure.drain = True
            tenure.drained.clear()
            if tenure.canary is not None:
                tenure.canary.abort()
                tenure.canary = None
            self._on_change()
            self._reconcile(tenure)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await tenure.drained.wait()
        except TimeoutError:
            self._metrics.drains.labels(self.name, "timeout").inc()
            return DrainReport(False, tenure.in_flight, time.monotonic() - began)
        return DrainReport(True, 0, time.monotonic() - began)

    def resume(self, replica: ReplicaId) -> None:
        """Takes a drained replica back into rotation. Raises KeyError for one that is not there."""
        tenure = self._current[replica]
        tenure.drain = False
        tenure.settled_at = tenure.in_flight = None
        self._on_change()
        self._watcher.suspect(tenure)

    def _finish_drain(self, tenure: Tenure) -> None:
        if not tenure.drained.is_set():
            tenure.drained.set()
            self._metrics.drains.labels(self.name, "drained").inc()
            self._logger.info("replica.drained", replica=tenure.replica)

    def ports_to_count(self) -> set[int]:
        """Bridge ports whose open connections decide what happens next."""
        return {
            t.port
            for t in self.tenures.values()
            if t.port is not None and t.settled_at is not None and not t.drained.is_set()
        }

    def connections_counted(self, began: float, counts: Mapping[int, int]) -> None:
        """Takes note of a count of open connections that was begun at `began`."""
        for tenure in self.tenures.values():
            if tenure.port is not None and tenure.settled_at is not None and tenure.settled_at <= began:
                tenure.in_flight = counts.get(tenure.port, 0)
                self._queue.add(tenure.key)
