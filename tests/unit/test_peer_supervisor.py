"""Addresses by which replicas are known to their peers, in fake time: claimed, listened on, given back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.control.edge import peer_supervisor
from gateway_sidecar.control.edge.peer_supervisor import BeforeClaim, PeerState, PeerSupervisor
from gateway_sidecar.domain.claims import Address
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.errors import AddressRefused, NginxError
from gateway_sidecar.nginx.peer_proxy import LeftRunning
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.fake_time import beside, in_fake_time
from tests.unit.processes import PlayedProcess

HOST, OTHER_HOST = ip_address("10.0.0.5"), ip_address("10.0.0.6")
ONE = PeerAddress("10.0.0.5", 8000)
SAME_HOST = PeerAddress("10.0.0.5", 8001)
DIRECT = PeerAddress("10.0.0.5", 8000, direct=True)


class PlayedClaims:
    """The addresses of this machine. `refused`: which must not be claimed, and why."""

    def __init__(self) -> None:
        self.ours: set[Address] = set()
        self.refused: dict[Address, str] = {}
        self.needed: dict[Address, str] = {}
        self.fault: Exception | None = None
        self.interface = True
        self.released: list[Address] = []

    def claim(self, address: Address) -> None:
        self._work()
        if address in self.refused:
            raise AddressRefused(self.refused[address])
        self.ours.add(address)
        self.interface = True

    def release(self, address: Address) -> None:
        self._work()
        self.ours.discard(address)
        self.released.append(address)

    def held(self) -> frozenset[Address]:
        self._work()
        return frozenset(self.ours)

    def objections(self) -> Mapping[Address, str]:
        return self.needed

    def keep_only(self, wanted: frozenset[Address]) -> frozenset[Address]:
        self._work()
        left = frozenset(self.ours - wanted)
        self.ours &= wanted
        self.interface = bool(wanted)
        return left

    def _work(self) -> None:
        if self.fault is not None:
            raise self.fault


class PlayedNginx:
    def __init__(self) -> None:
        self.process: PlayedProcess | None = None
        self.faults = 0
        self.starts = 0
        self.is_let_go = False
        self._on_end: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    async def start(self) -> None:
        self.starts += 1
        if self.faults:
            self.faults -= 1
            raise NginxError("its port is busy")
        self.process = PlayedProcess(self.starts)

    def adopt(self, identity: Identity) -> bool:
        self.process = PlayedProcess(identity.pid)
        return identity.pid == 77

    def on_exit(self, then: Callable[[], None]) -> None:
        self._on_end = then

    def end(self) -> None:
        """It is killed."""
        assert self.process is not None
        self.process.end()
        self._on_end()

    async def stop(self) -> None:
        self.process = None

    def detach(self) -> None:
        self.is_let_go = True


class Peers:
    """The supervisor, running."""

    def __init__(self, patch: pytest.MonkeyPatch, left: list[LeftRunning]) -> None:
        self.claims = PlayedClaims()
        self.nginx: dict[str, PlayedNginx] = {}
        self.connections: Counter[PeerAddress] = Counter()
        self.unreachable: str | None = None
        self.news = 0
        self.has_looked = False
        self.known = asyncio.Event()
        self.known.set()
        self.log: list[Any] = []
        self.while_counted: Callable[[], object] = lambda: None
        patch.setattr(peer_supervisor, "connections_at", self._count)
        self.metrics = Metrics()
        self.peers = PeerSupervisor(
            self.claims, self._make, lambda: left, BeforeClaim(self._before, lambda _: self.unreachable),
            cast("Any", SimpleNamespace()), self.metrics,
        )  # fmt: skip
        self.peers.listen(self._told)

    def request(self, address: PeerAddress = ONE, owner: str = "r1#1", port: int = 24001) -> PeerState:
        return self.peers.request(address, owner, owner.partition("#")[0], port, grpc=False)

    @property
    def events(self) -> list[str]:
        return [each["event"] for each in self.log]

    async def _before(self) -> None:
        await self.known.wait()

    def _told(self) -> None:
        self.news += 1

    def _count(self, _: object) -> Counter[PeerAddress]:
        self.while_counted()
        return self.connections

    def _make(self, address: PeerAddress, port: int, grpc: bool) -> Any:
        self.nginx[str(address)] = PlayedNginx()
        return self.nginx[str(address)]


@asynccontextmanager
async def running(*left: LeftRunning) -> AsyncIterator[Peers]:
    with pytest.MonkeyPatch.context() as patch, capture_logs() as log:
        made = Peers(patch, list(left))
        made.log = log
        made.claims.ours |= {ip_address(it.address.host) for it in left}
        await made.peers.begin(lambda: made.has_looked)
        async with beside(made.peers.run()):
            yield made


@in_fake_time
async def test_an_address_is_claimed_and_listened_on_and_whoever_waits_is_told() -> None:
    async with running() as it:
        first = it.request()
        assert (first.ours, first.problem) == (True, "nginx does not listen on its address yet")
        await asyncio.sleep(0.1)
        assert it.request() == PeerState(ours=True)
        assert it.claims.ours == {HOST}
        assert it.news == 1
        await asyncio.sleep(60)
        assert it.nginx[str(ONE)].starts == 1


@in_fake_time
async def test_nothing_is_claimed_before_it_is_known_where_the_daemon_itself_has_to_get_to() -> None:
    async with running() as it:
        it.known.clear()
        it.request()
        await asyncio.sleep(30)
        assert it.claims.ours == set()
        it.known.set()
        await asyncio.sleep(0.1)
        assert it.claims.ours == {HOST}


@in_fake_time
async def test_an_address_has_one_owner_until_nobody_is_connected_to_it() -> None:
    """A new engine at the old address would get what was meant for the old one."""
    async with running() as it:
        it.request()
        await asyncio.sleep(0.1)
        taken = it.request(owner="r2#2", port=24002)
        assert (taken.ours, "still used by r1" in str(taken.problem)) == (False, True)
        it.connections[ONE] = 1
        it.peers.withdraw(ONE, "r1#1")
        await asyncio.sleep(10)
        assert not it.request(owner="r2#2", port=24002).ours
        it.connections[ONE] = 0
        await asyncio.sleep(1)
        assert it.request(owner="r2#2", port=24002).ours


@in_fake_time
async def test_who_comes_back_before_it_is_closed_has_it_still() -> None:
    async with running() as it:
        it.request()
        await asyncio.sleep(0.1)
        it.connections[ONE] = 1
        it.peers.withdraw(ONE, "r1#1")
        await asyncio.sleep(1)
        assert it.request().ours
        it.connections[ONE] = 0
        await asyncio.sleep(10)
        assert it.request() == PeerState(ours=True)
        it.while_counted = it.request
        it.peers.withdraw(ONE, "r1#1")
        await asyncio.sleep(10)
        assert it.request() == PeerState(ours=True)
        assert it.nginx[str(ONE)].starts == 1


@in_fake_time
async def test_the_last_one_that_leaves_takes_the_interface_with_it() -> None:
    """And while another of the same host is there, the host stays."""
    async with running() as it:
        it.request()
        it.request(SAME_HOST, "r2#2", 24002)
        await asyncio.sleep(0.1)
        it.peers.withdraw(ONE, "r1#1")
        await asyncio.sleep(2)
        assert it.claims.ours == {HOST}
        assert it.claims.released == []
        it.peers.withdraw(SAME_HOST, "r2#2")
        await asyncio.sleep(2)
        assert it.claims.ours == set()
        assert not it.claims.interface


@in_fake_time
async def test_nginx_that_ends_is_started_again_at_once() -> None:
    async with running() as it:
        it.request()
        await asyncio.sleep(0.1)
        it.nginx[str(ONE)].end()
        await asyncio.sleep(0.05)
        assert it.nginx[str(ONE)].starts == 2
        assert it.request() == PeerState(ours=True)
        assert "peer.exited" in it.events


@in_fake_time
async def test_what_fails_is_told_once_and_tried_ever_less_often() -> None:
    async with running() as it:
        it.request()
        it.nginx[str(ONE)].faults = 1000
        await asyncio.sleep(100)
        assert 8 <= it.nginx[str(ONE)].starts <= 30
        assert it.request().problem == "its port is busy"
        assert it.events.count("peer.not_up") == 1
        it.nginx[str(ONE)].faults = 0
        await asyncio.sleep(12)
        assert it.request() == PeerState(ours=True)


@in_fake_time
async def test_an_address_that_may_not_be_claimed_is_refused_and_used_by_nobody() -> None:
    async with running() as it:
        it.claims.refused = {HOST: "it is this machine's gateway"}
        it.request()
        await asyncio.sleep(1)
        state = it.request()
        assert (state.refused, state.problem) == (True, "it is this machine's gateway")
        assert it.claims.ours == set()


@in_fake_time
async def test_an_address_that_this_machine_comes_to_need_is_given_back_whoever_is_connected() -> None:
    """While it is ours this machine lacks it."""
    async with running() as it:
        it.request()
        await asyncio.sleep(6)
        it.connections[ONE] = 5
        it.claims.needed = it.claims.refused = {HOST: "a name server has it"}
        it.peers.recheck_soon()
        await asyncio.sleep(0.05)
        assert it.claims.ours == set()
        assert not it.nginx[str(ONE)].running
        assert it.request().refused


@in_fake_time
async def test_an_address_that_somebody_took_away_is_claimed_again() -> None:
    async with running() as it:
        it.request()
        await asyncio.sleep(0.1)
        it.claims.ours.clear()
        await asyncio.sleep(7)
        assert it.claims.ours == {HOST}


@in_fake_time
async def test_what_an_earlier_daemon_left_is_kept_until_every_service_has_looked() -> None:
    """Its replica may be there and not have been seen yet; then it goes on without a new nginx."""
    left = (LeftRunning(ONE, 24001, False, Identity(77, 1, "boot")),)
    async with running(*left) as it:
        it.claims.ours.add(OTHER_HOST)
        await asyncio.sleep(60)
        assert it.nginx[str(ONE)].running
        assert it.request() == PeerState(ours=True)
        it.has_looked = True
        await asyncio.sleep(5)
        assert it.request() == PeerState(ours=True)
        assert it.nginx[str(ONE)].starts == 0
        assert it.claims.ours == {HOST}, "what nobody has is given back"
    async with running(*left) as it:
        it.has_looked = True
        await asyncio.sleep(5)
        assert it.claims.ours == set()
        assert "peer.closed" in it.events


@in_fake_time
async def test_a_direct_address_is_only_kept_for_its_owner() -> None:
    """This machine reaches it itself: nothing is claimed."""
    async with running() as it:
        assert it.request(DIRECT) == PeerState(ours=True)
        assert not it.request(DIRECT, "r2#2").ours
        assert not it.request(ONE, "r2#2").ours, "bridged or not, it is one address"
        await asyncio.sleep(5)
        assert it.claims.ours == set()
        it.peers.withdraw(DIRECT, "r2#2")
        assert not it.request(DIRECT, "r2#2").ours, "only its owner can leave it"
        it.peers.withdraw(DIRECT, "r1#1")
        assert it.request(DIRECT, "r2#2").ours
        it.unreachable = "no route leads there"
        assert it.request(DIRECT, "r2#2") == PeerState(ours=True, problem="no route leads there", refused=True)


@in_fake_time
async def test_at_the_end_all_is_given_back_or_left_to_the_next_daemon() -> None:
    async with running() as it:
        it.request()
        await asyncio.sleep(0.1)
        it.peers.detach()
        assert it.nginx[str(ONE)].is_let_go
        assert it.claims.ours == {HOST}
        await it.peers.close()
        assert not it.nginx[str(ONE)].running
        assert it.claims.ours == set()


@in_fake_time
async def test_what_cannot_be_given_back_is_a_problem_of_those_who_used_it() -> None:
    async with running() as it:
        it.claims.fault = NginxError("no permission")
        await it.peers.close()
        assert it.peers.problem == ""
        it.claims.fault = None
        it.request()
        await asyncio.sleep(0.1)
        it.claims.fault = NginxError("no permission")
        await asyncio.sleep(6)
        assert it.peers.problem == "no permission"
        await it.peers.close()
        assert it.events[-1] == "peer.not_given_back"
