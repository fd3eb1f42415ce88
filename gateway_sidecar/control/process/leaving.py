"""The gateway leaves, and can be taken back until it stops. What was decided is written down: the next daemon goes on.

Load balancers are told by nginx (`ReadyMarks`), new requests are refused by an nginx that has no address of a service
any more, and what is in flight the kernel says, by the connections to these addresses.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.process.reload import Reload
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leaving import Arrivals, Leave, LeavePhase, LeaveRules, Seen
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.errors import LeaveError, StateError
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.connections import Client, clients_at
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_LOOK_S = 0.25  # A tick of the daemon's clock: the end of each phase is seen within it.
_REST_S = 5.0  # What begins a leave touches it; this beats for the watchdog, well within its 10 s.
_END_S = 5.0
"""Nothing is in flight any more, but a router may have a connection to close."""
_SEEN_S = 1.0
"""So long whoever follows can still read that nothing is left, and what was cut; the command asks more often."""
_FOLLOWS_S = 10.0
"""Who asked this long ago still follows, though a busy machine keeps it from asking: it is waited for until then."""


@dataclass(frozen=True, slots=True)
class LeaveHost:
    """What leaving needs of the daemon it happens in.

    addresses: all addresses of services, whether nginx serves them now or not.
    request_began: when the youngest request began that has ended, as far as nginx tells (awake seconds).
    changed: called when it begins, ends or goes on to the next phase.
    write_down: writes down at once how it stands, if that can be soon.
    end: as `Daemon.end`.
    """

    addresses: Callable[[], Sequence[ServiceAddress]]
    request_began: Callable[[], float | None]
    changed: Callable[[], None]
    write_down: Callable[[], Awaitable[None]]
    end: Callable[..., None]


class Leaving:
    """`leave` is how it stands; None for a gateway that stays."""

    def __init__(
        self,
        supervisor: NginxSupervisor,
        host: LeaveHost,
        reload: Reload,
        metrics: Metrics,
        clients: Callable[[Collection[tuple[str, int]]], Set[Client]] = clients_at,
    ) -> None:
        self._supervisor = supervisor
        self._marks = supervisor.nginx.ready_marks
        self._host = host
        self._reload = reload
        self._metrics = metrics
        self._clients = clients
        self._touched = asyncio.Event()
        self._arrivals = Arrivals()
        self._seen = Seen()
        self._follows_until = -math.inf
        self._logger = get_logger()
        self.leave: Leave | None = None
        self.connections: Mapping[int, int] = {}
        """Port -> connections of clients, at the last look."""

    @property
    def is_on(self) -> bool:
        """Whether load balancers are told to go elsewhere."""
        return self.leave is not None

    @property
    def refuses(self) -> bool:
        """Whether nginx is to take no new request."""
        return self.leave is not None and self.leave.phase is not LeavePhase.WAITING

    @property
    def stops(self) -> bool:
        """Whether everything ends now, and nobody takes it back."""
        return self.leave is not None and self.leave.phase is LeavePhase.STOPPING

    # -- what is asked of it

    def begin(self, processes: Mapping[str, Any]) -> None:
        """Goes on as the last daemon wrote it down, or begins as a gateway that stays. Raises OSError."""
        try:
            self.leave = records.leave_from_json(processes)
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
        self._marks.leave(leaving=self.is_on)
        if self.leave is not None:
            self._logger.warning("leave.goes_on", phase=self.leave.phase.value)
        self._measure()

    async def start(self, timeout_s: float | None) -> None:
        """Leaves, or goes on leaving; with `timeout_s` within so many seconds from now. Raises LeaveError if load
        balancers cannot be told: then nothing has changed.
        """
        if self.leave is None:
            most_s = self._reload.settings.leave.timeout_s if timeout_s is None else timeout_s
            try:
                self._marks.leave(leaving=True)
            except OSError as error:
                raise LeaveError(f"load balancers cannot be told: {error.filename}: {error.strerror}") from error
            self.leave = Leave.begin(awake.now(), most_s)
            self._arrivals, self._seen = Arrivals(), Seen()
            self._logger.info("leave.begun", timeout_s=most_s)
        elif timeout_s is not None:
            self.leave = self.leave.bounded(awake.now(), timeout_s)
        await self._changed()

    async def join(self) -> bool:
        """Takes it back, and returns when all addresses are served; whether it was leaving.

        Raises LeaveError if that cannot be: it stops already, or load balancers cannot be told.
        """
        if self.leave is None:
            return False
        if self.stops:
            raise LeaveError("it is too late: everything stops; when it has, start the daemon again")
        phase = self.leave.phase
        try:
            self._marks.leave(leaving=False)
        except OSError as error:
            raise LeaveError(f"load balancers cannot be told: {error.filename}: {error.strerror}") from error
        self.leave = None
        self._logger.info("leave.taken_back", phase=phase.value)
        await self._changed()
        await self._supervisor.apply()
        return True

    @property
    def addresses(self) -> Sequence[ServiceAddress]:
        """All addresses of services, whether nginx serves them now or not."""
        return self._host.addresses()

    def note_reader(self) -> None:
        """Somebody reads how it stands, and may ask again until the gateway has left."""
        self._follows_until = -math.inf if self.stops else awake.now() + _FOLLOWS_S

    def saved(self) -> Mapping[str, object] | None:
        """For the next daemon."""
        return None if self.leave is None else records.leave_to_json(self.leave)

    def stop(self) -> None:
        """Ends everything. Not for systemd to start again: whoever had it leave wants it away."""
        cuts = self.leave is not None and bool(self.leave.cut)
        self._host.end(stop_all=True, timeout_s=0.0 if cuts else _END_S, by_command=True)

    # -- what it does

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            await awake.until_set(self._touched, _REST_S if self.leave is None else _LOOK_S)
            self._touched.clear()
            if self.leave is not None:
                await self._look(self.leave)

    async def _look(self, before: Leave) -> None:
        if before.phase is LeavePhase.STOPPING:
            if awake.now() >= max(before.phase_began + _SEEN_S, self._follows_until):
                self.stop()
            return
        with suppress(OSError):  # Somebody removed them, perhaps with all of run_dir.
            self._marks.leave(leaving=True)
        refuses = self._refuses_all  # Before the count: what came until then is in it.
        clients = await asyncio.to_thread(self._clients, self._places())
        if self.leave is not before:
            return  # It was taken back, or bounded anew, while we looked.
        now = awake.now()
        self._arrivals = self._arrivals.look(now, clients)
        self.connections = Counter(port for port, _ in clients)
        came = [at for at in (self._arrivals.at, self._host.request_began()) if at is not None]
        self._seen = Seen(max(came, default=None), len(clients), refuses)
        self.leave = before.next(now, self._seen, self._rules)
        self._measure()
        if self.leave is not before:
            await self._went_on(before, self.leave, now)

    async def _went_on(self, before: Leave, leave: Leave, now: float) -> None:
        took_s = round(now - before.phase_began, 1)
        if leave.phase is LeavePhase.DRAINING:
            self._logger.info("leave.draining", after_s=took_s, quiet=leave.was_quiet, connections=self._seen.in_flight)
        else:
            self._logger.info("leave.stopping", after_s=took_s)
            if leave.cut:
                self._logger.warning("leave.cut", connections=leave.cut, after_s=round(now - leave.began, 1))
        await self._changed()

    async def _changed(self) -> None:
        self._touched.set()
        self._supervisor.touch()
        self._host.changed()
        self._measure()
        await self._host.write_down()

    @property
    def _refuses_all(self) -> bool:
        """Whether no client gets in any more: nginx serves no address, or is down and has none to begin with again."""
        return self.refuses and (
            not self._supervisor.up or (self._supervisor.applied is not None and not self._supervisor.applied)
        )

    @property
    def _rules(self) -> LeaveRules:
        settings = self._reload.settings.leave
        return LeaveRules(settings.quiet_s, settings.balancer_s)

    def _places(self) -> set[tuple[str, int]]:
        return {place for it in self._host.addresses() for place in it.places}

    def _measure(self) -> None:
        for phase in LeavePhase:
            self._metrics.leave_phase.labels(phase.value).set(self.leave is not None and self.leave.phase is phase)
        self._metrics.leave_connections.set(self._seen.in_flight if self.leave is not None else 0)

    # -- what it says

    @property
    def left_s(self) -> float:
        """How long it has until what is in flight is cut."""
        return 0.0 if self.leave is None else max(0.0, self.leave.until - awake.now())

    def describe(self) -> str:
        """What it waits for, in words; empty for a gateway that stays."""
        if self.leave is None:
            return ""
        return {
            LeavePhase.WAITING: self._of_waiting,
            LeavePhase.DRAINING: self._of_draining,
            LeavePhase.STOPPING: self._of_stopping,
        }[self.leave.phase](self.leave)

    def _of_waiting(self, leave: Leave) -> str:
        now, quiet_s = awake.now(), self._rules.quiet_s
        most_s = max(0.0, min(leave.phase_began + self._rules.balancer_s, leave.until) - now)
        came = self._seen.arrived
        last = "none has come since" if came is None else f"the last request came {max(0.0, now - came):.0f} s ago"
        return (
            f"load balancers are told to go elsewhere, and everything is served; {last}; "
            f"goes on when none has come for {quiet_s:g} s, or in {most_s:.0f} s"
        )

    def _of_draining(self, leave: Leave) -> str:
        if not self._seen.refuses:
            return f"nginx is told to take no new requests: {self._supervisor.reason or 'it has not done so yet'}"
        busy = (not leave.was_quiet and "; requests still came: something sends them and does not ask /readyz") or ""
        return (
            f"no new requests are taken; waits for {counted(self._seen.in_flight, 'connection')} in flight, "
            f"{self.left_s:.0f} s at most{busy}"
        )

    def _of_stopping(self, leave: Leave) -> str:
        cut = f"{counted(leave.cut, 'connection')} cut" if leave.cut else "nothing is in flight"
        return f"the routers, nginx and the daemon stop; {cut}"
