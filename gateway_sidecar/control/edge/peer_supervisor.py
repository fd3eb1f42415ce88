"""Supervises advertised addresses: claims them, listens on them, gives them back. A place is one such address, used by
one tenure at a time: it is the worker's URL. An address that this machine reaches itself (`direct`) is only reserved
for its owner. Tenures repeat their `request`, and the loop fulfils it: claim the address, start its nginx, start it
again when it ends. A place without a request is closed when no connection is left. Leftovers of an earlier daemon
are found by looking, not by a record, and are closed only after every service has looked at its replicas.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gateway_sidecar.control.edge.supervisor import QUIET_GAP_S, RETRIES, Supervisor
from gateway_sidecar.domain.claims import Address
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.errors import AddressRefused, NginxError
from gateway_sidecar.nginx.connections import connections_at
from gateway_sidecar.nginx.peer_proxy import LeftRunning, PeerNginx
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import LOOK_S, beating
from gateway_sidecar.telemetry.metrics import Metrics

_RECHECK_S = 5.0  # A choice: an address that this machine has come to need is given back within it.
_AT_ONCE = 8  # A plain nginx takes 14 ms to start (docs/figures.md): a crowd leaves the machine to others as well.


class Claims(Protocol):
    """Addresses made this machine's own. Every call blocks, and may raise NginxError."""

    def claim(self, address: Address) -> None: ...

    def release(self, address: Address) -> None: ...

    def held(self) -> frozenset[Address]: ...

    def objections(self) -> Mapping[Address, str]: ...

    def keep_only(self, wanted: frozenset[Address]) -> frozenset[Address]: ...


@dataclass(frozen=True, slots=True)
class PeerState:
    """How it stands with an address that was asked for: whether it is kept for the one who asked, and what is amiss.

    `refused` says that it must not be used at all, by a router that knows it neither.
    """

    ours: bool
    problem: str | None = None
    refused: bool = False


@dataclass(slots=True, eq=False)
class _Place:
    """One address that is bridged. `owner` is None for an earlier daemon's address that no tenure has requested yet."""

    address: PeerAddress
    host: Address
    owner: str | None
    replica: str
    port: int
    grpc: bool
    nginx: PeerNginx
    wanted: bool
    up: bool = False
    reason: str = "nginx does not listen on its address yet"
    refused: bool = False
    failures: int = 0
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class BeforeClaim:
    """What has to be known first. `claim` returns when it is; `object_to_direct` says why an address is not direct."""

    claim: Callable[[], Awaitable[None]]
    object_to_direct: Callable[[Address], str | None]


class PeerSupervisor(Supervisor):
    """All places of the daemon."""

    def __init__(
        self,
        claims: Claims,
        make_nginx: Callable[[PeerAddress, int, bool], PeerNginx],
        find_left: Callable[[], list[LeftRunning]],
        before: BeforeClaim,
        log: ChildLog,
        metrics: Metrics,
    ) -> None:
        super().__init__()
        self._before = before
        self.log = log
        self._claims = claims
        self._make_nginx = make_nginx
        self._find_left = find_left
        self._metrics = metrics
        self._places: dict[str, _Place] = {}
        self._direct: dict[str, tuple[str, str]] = {}
        self._changing = asyncio.Lock()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._held: frozenset[Address] = frozenset()
        self._held_at = 0.0
        self._swept = False
        self.problem = ""
        for state in ("up", "down", "refused"):
            metrics.peer_addresses.labels(state).set_function(partial(self._count, state))

    def request(self, address: PeerAddress, owner: str, replica: str, port: int, *, grpc: bool) -> PeerState:
        """Asks for `address` to be kept for `owner` and, unless it is direct, to lead to the bridge `port`.

        grpc: what the engine there speaks.
        To be said again at every look, until `withdraw`.
        """
        name = str(address)
        place = self._places.get(name)
        if address.direct:
            if (reason := self._before.object_to_direct(ipaddress.ip_address(address.host))) is not None:
                return PeerState(ours=True, problem=reason, refused=True)
            holder, its = self._direct.get(name) or (place and (place.owner, place.replica)) or (owner, replica)
            if holder != owner:
                return _taken(address, its)
            self._direct[name] = (owner, replica)
            return PeerState(ours=True)
        if name in self._direct:
            return _taken(address, self._direct[name][1])
        if place is None:
            host = ipaddress.ip_address(address.host)
            nginx = self._make_nginx(address, port, grpc)
            place = self._places[name] = _Place(address, host, owner, replica, port, grpc, nginx, wanted=True)
            self._look_soon()
        if place.owner is None and (place.port, place.grpc) == (port, grpc):
            place.owner, place.replica = owner, replica
        if place.owner != owner:
            return _taken(address, place.replica)
        if not place.wanted:
            place.wanted, place.due = True, 0.0
            self._look_soon()
        return PeerState(ours=True, problem=None if place.up else place.reason, refused=place.refused)

    def withdraw(self, address: PeerAddress, owner: str) -> None:
        """The owner does not need it any more."""
        if address.direct:
            if self._direct.get(str(address), ("", ""))[0] == owner:
                del self._direct[str(address)]
                self._tell()
            return
        place = self._places.get(str(address))
        if place is not None and place.owner == owner:
            place.wanted, place.due = False, 0.0
            self._look_soon()

    async def _take_over(self) -> None:
        for left in await asyncio.to_thread(self._find_left):
            nginx = self._make_nginx(left.address, left.port, left.grpc)
            if nginx.adopt(left.identity):
                host = ipaddress.ip_address(left.address.host)
                place = _Place(
                    left.address, host, None, "an earlier replica", left.port, left.grpc, nginx, wanted=False
                )
                self._places[str(left.address)] = place
                self._went_up(place)
                self._logger.info("peer.adopted", address=str(left.address), pid=left.identity.pid)

    async def run(self) -> None:
        """Runs until cancelled. What it started goes on then."""
        while True:
            self._comes_round()
            if self._places or not self._swept:
                await beating(self._look())
            now = awake.monotonic()
            due = min((place.due - now for place in self._places.values() if not self._rests(place)), default=LOOK_S)
            await self._sleep(max(0.01, due))

    async def close(self) -> None:
        """Ends everything, connections too, and gives all addresses back."""
        await asyncio.gather(*(place.nginx.stop() for place in self._places.values()))
        were_used = bool(self._places)
        self._places.clear()
        try:
            await asyncio.to_thread(self._claims.keep_only, frozenset())
        except NginxError as error:
            if were_used:
                self._logger.error("peer.not_given_back", reason=str(error))
                self.problem = str(error)

    def detach(self) -> None:
        """Leaves everything running for the next daemon."""
        for place in self._places.values():
            place.nginx.detach()

    # -- the loop

    async def _look(self) -> None:
        await self._recheck()
        if not self._swept and self._has_looked():
            await self._sweep()
        due = [place for place in self._places.values() if not self._rests(place) and awake.monotonic() >= place.due]
        await asyncio.gather(*map(self._step, due))

    def _rests(self, place: _Place) -> bool:
        if place.owner is None and not self._swept:
            return True
        return place.wanted and place.up and place.nginx.running and place.host in self._held

    def recheck_soon(self) -> None:
        """What this machine needs has changed."""
        self._held_at = 0.0
        self._look_soon()

    async def _recheck(self) -> None:
        """Somebody else may have taken an address away, or this machine may have come to need it."""
        now = awake.monotonic()
        if not self._places or now < self._held_at + _RECHECK_S:
            return
        self._held_at = now
        try:
            self._held = await asyncio.to_thread(self._claims.held)
            objections = await asyncio.to_thread(self._claims.objections)
            self.problem = ""
        except NginxError as error:
            self.problem = str(error)
            return
        for place in [place for place in self._places.values() if place.host in objections]:
            await self._give_up(place, AddressRefused(objections[place.host]))

    async def _give_up(self, place: _Place, reason: AddressRefused) -> None:
        """Gives a claimed address back at once, even with open connections, because this machine needs it itself."""
        self._failed(place, reason)
        await place.nginx.stop()
        try:
            async with self._changing:
                await asyncio.to_thread(self._claims.release, place.host)
                self._held -= {place.host}
        except NginxError as error:
            self._logger.error("peer.not_given_back", reason=str(error))
            self.problem = str(error)
        self._tell()

    async def _sweep(self) -> None:
        """What an earlier daemon left and no replica has asked for is given back, each once it is quiet."""
        kept = frozenset(place.host for place in self._places.values())
        try:
            left = await asyncio.to_thread(self._claims.keep_only, kept)
        except NginxError as error:
            if kept:  # An interface that we do not use is none of our business.
                self._logger.error("peer.not_given_back", reason=str(error))
                self.problem = str(error)
        else:
            self.problem = ""
            if left:
                self._logger.info("peer.given_back", addresses=sorted(map(str, left)))
        self._swept = True

    async def _step(self, place: _Place) -> None:
        async with self._slots:
            if place.wanted:
                await self._open(place)
            else:
                await self._close_when_quiet(place)

    async def _open(self, place: _Place) -> None:
        if place.up and not place.nginx.running:
            process = place.nginx.process
            code = process.exit_code if process is not None else None
            self._logger.error("peer.exited", address=str(place.address), replica=place.replica, exit_code=code)
            place.up, place.reason = False, "its nginx ended and is started again"
        try:
            if place.host not in self._held:
                await self._before.claim()
            async with self._changing:
                await asyncio.to_thread(self._claims.claim, place.host)
                self._held |= {place.host}
            if not place.nginx.running:
                await place.nginx.start()
        except (NginxError, OSError) as error:
            self._failed(place, error)
        else:
            if not place.up:
                self._went_up(place)
                pid = place.nginx.process.pid if place.nginx.process else None
                self._logger.info("peer.up", address=str(place.address), replica=place.replica, pid=pid)
        self._tell()

    def _failed(self, place: _Place, error: Exception) -> None:
        place.failures += 1
        pause = RETRIES.delay_s(place.failures)
        place.due = awake.monotonic() + pause
        place.refused = isinstance(error, AddressRefused)
        if place.reason != str(error) or place.up:
            self._logger.error(
                "peer.refused" if place.refused else "peer.not_up",
                address=str(place.address),
                replica=place.replica,
                reason=str(error),
                retry_in_s=round(pause, 1),
            )
        place.up, place.reason = False, str(error)

    def _went_up(self, place: _Place) -> None:
        place.up, place.refused, place.failures, place.due, place.reason = True, False, 0, 0.0, ""
        place.nginx.on_exit(self._look_soon)

    async def _close_when_quiet(self, place: _Place) -> None:
        counts = await asyncio.to_thread(connections_at, {place.address})
        if place.wanted:
            return  # Somebody came back for it meanwhile.
        if counts[place.address] and place.nginx.running:
            place.due = awake.monotonic() + QUIET_GAP_S
            return
        del self._places[str(place.address)]
        await place.nginx.stop()
        try:
            async with self._changing:
                if not any(other.host == place.host for other in self._places.values()):
                    await asyncio.to_thread(self._give_back, place.host, [p.host for p in self._places.values()])
                    self._held -= {place.host}
        except NginxError as error:
            self._logger.error("peer.not_given_back", reason=str(error))
        self._logger.info("peer.closed", address=str(place.address), replica=place.replica)
        self._tell()

    def _give_back(self, host: Address, kept: Iterable[Address]) -> None:
        if not (wanted := frozenset(kept)):
            self._claims.keep_only(wanted)  # The last one: the interface goes too.
        else:
            self._claims.release(host)

    def _count(self, state: str) -> int:
        states = ("refused" if p.refused else "up" if p.up else "down" for p in self._places.values())
        return sum(1 for each in states if each == state)


def _taken(address: PeerAddress, replica: str) -> PeerState:
    text = f"{address} is still used by {replica}; it is free when no connection to {replica} is left"
    return PeerState(ours=False, problem=text)
