"""A whole service in fake time: its source, engines, bridges and router are played, and everything between is real.

Nothing here is a socket, a process or a thread. A replica's socket is a plain file, whose inode is what counts.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.edge.key_proxies import KeyState
from gateway_sidecar.control.edge.peer_supervisor import PeerState
from gateway_sidecar.control.ports import ServiceAdapters
from gateway_sidecar.control.process.connection_counter import ConnectionCounter, Kernel
from gateway_sidecar.control.replicas import liveness, refused_sockets
from gateway_sidecar.control.replicas.bridging import FleetPort
from gateway_sidecar.control.replicas.tenure import BridgeHosts, SavedTenure, Tenure
from gateway_sidecar.control.routers import replacement as router_slots
from gateway_sidecar.control.routers.process import RouterProcess
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.fleet import AskedDrain
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import (
    Access,
    ConnectionMode,
    EngineFacts,
    Loading,
    Overrides,
    ProbeResult,
    Ready,
    Registered,
    ReplicaId,
    ReplicaState,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.tunnels import PathState, PathStatus
from gateway_sidecar.errors import ConfigError, RouterRefused, RouterUnavailable
from gateway_sidecar.files.identity import socket_identity
from gateway_sidecar.files.stamp import stamp_of
from gateway_sidecar.nginx.connections import Place
from gateway_sidecar.routers.base import MeshMember, RouterPorts
from gateway_sidecar.sources.entry import RawEntry
from gateway_sidecar.sources.listing import Listing, NotesFile, Sighting
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import SMG

FACTS = EngineFacts("vllm", ConnectionMode.HTTP, WorkerType.REGULAR, "tiny")
READY = Ready(FACTS)
REFUSED = Loading("connection refused", refused=True)
ASKED_S = 0.001
"""What a question takes on loopback."""
_PATIENCE_S = 5.0
"""After which a router's client gives up (`router.api_timeout_s`)."""


class PlayedSource:
    """Lists what is in a directory; blind while `trouble` says why.

    named: replica -> its socket, as `names` has them beside these. owner: the source that has the others.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.named: dict[str, Path] = {}
        self.owner, self.names = "sockets", "inventory"
        self.takes_s = 0.0
        self.trouble: str | None = None
        self._news = asyncio.Event()

    def hint(self) -> None:
        self._news.set()

    async def look(self) -> Listing:
        await asyncio.sleep(self.takes_s)
        if self.trouble is not None:
            return Listing(blind=self.trouble)
        present = {}
        for path in sorted(self.directory.glob("*.sock")):
            notes = path.with_suffix(".yaml")
            noted = NotesFile(notes, stamp_of(notes.lstat())) if notes.exists() else None
            replica = ReplicaId(path.stem)
            present[replica] = Sighting(replica, path, socket_identity(path), self.owner, noted)
        for name, path in self.named.items():
            replica, said = ReplicaId(name), Overrides()
            present[replica] = Sighting(
                replica, path, socket_identity(path), self.names, described=True, overrides=said
            )
        return Listing(present)

    async def hints(self) -> AsyncIterator[None]:
        while True:
            await self._news.wait()
            self._news.clear()
            yield


class PlayedProbe:
    """Says of the engine behind each socket what `answers` has; an exception there is a fault of the probe's own."""

    def __init__(self) -> None:
        self.answers: dict[str, ProbeResult | Exception] = {}
        self.asked: list[tuple[str, str]] = []
        self.takes_s = ASKED_S

    async def identify(self, address: str, *, timeout_s: float, access: Access) -> ProbeResult:
        return await self._answer("identify", address)

    def ask_health(self, *_: object, **__: object) -> None:
        """Each question is a task here."""

    async def check_health(
        self, address: str, facts: EngineFacts, *, timeout_s: float, access: Access, relist: bool
    ) -> ProbeResult:
        return await self._answer("health", address)

    async def _answer(self, kind: str, address: str) -> ProbeResult:
        replica = replica_at(address)
        self.asked.append((kind, replica))
        await asyncio.sleep(self.takes_s)
        answer = self.answers.get(replica, REFUSED)
        if isinstance(answer, Exception):
            raise answer
        return answer


def replica_at(address: str) -> str:
    """Whose socket an address of the form `/proc/self/fd/N` is."""
    return Path(os.readlink(address).removesuffix(" (deleted)")).stem  # noqa: PTH115 - of something that is not there


class PlayedGate:
    """Remembers whether it is closed, and what nginx is told of the service."""

    reads_models = True

    def __init__(self) -> None:
        self.closed = self.asleep = False
        self.models: Mapping[str, str] = {}

    def close_gate(self, service: str) -> None:
        self.closed = True

    def open_gate(self, service: str) -> None:
        self.closed = False

    def is_closed(self, service: str) -> bool:
        return self.closed

    def mark_asleep(self, service: str, *, asleep: bool) -> None:
        self.asleep = asleep

    def is_asleep(self, service: str) -> bool:
        return self.asleep

    def mark_lost(self, service: str, models: Mapping[str, str]) -> None:
        self.models = dict(models)

    def lost(self, service: str) -> Mapping[str, str]:
        return self.models


class PlayedLinks(PlayedGate):
    """Remembers where the bridges lead."""

    def __init__(self) -> None:
        super().__init__()
        self.led: dict[int, Path] = {}
        self.names: dict[str, str] = {}
        self.slot = ""

    def link(self, port: int, target: Path, mark: str = "") -> None:
        self.led[port] = target

    def unlink(self, port: int) -> None:
        self.led.pop(port, None)

    def name(self, url: str, replica: str) -> None:
        self.names[url] = replica

    def unname(self, url: str) -> None:
        self.names.pop(url, None)

    def nameless(self, urls: Collection[str]) -> list[str]:
        return [url for url in urls if url not in self.names]

    def point(self, service: str, slot: str) -> None:
        self.slot = slot


class NoPeers:
    """Gives every address to whoever asks."""

    def request(self, *_: object, grpc: bool) -> PeerState:
        return PeerState(ours=True)

    def withdraw(self, *_: object) -> None:
        return

    def listen(self, listener: Callable[[], None]) -> None:
        return

    def unlisten(self, listener: Callable[[], None]) -> None:
        return


class PlayedAsks:
    """What the fleet was asked to drain (a `FleetAsks`); None: not known."""

    def __init__(self) -> None:
        self.asked: dict[str, str] | None = {}
        self.has_another: set[str] = set()
        """Replicas that the fleet has another entry for than the one they were found by here."""
        self._listeners: list[Callable[[], None]] = []

    def ask(self, replica: str, id_: str | None) -> None:
        """It is to be drained, or nobody is to drain it any more."""
        self.asked = {name: it for name, it in (self.asked or {}).items() if name != replica}
        if id_ is not None:
            self.asked[replica] = id_
        for listener in self._listeners:
            listener()

    def asked_of(self, service: str) -> Mapping[ReplicaId, AskedDrain] | None:
        if self.asked is None:
            return None
        return {ReplicaId(name): AskedDrain(id_, "far") for name, id_ in self.asked.items()}

    def is_outdated(self, service: str, replica: ReplicaId, entry: RawEntry | None) -> bool:
        return replica in self.has_another

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)


class PlayedTable:
    """The ports that all gateways use alike (a `FleetTable`); for whom there is none, what it says."""

    marks = True

    def __init__(self) -> None:
        self.current: dict[str, int] = {}
        self.otherwise = FleetPort.OWN
        self.asked: list[tuple[str, int]] = []
        self._listeners: list[Callable[[], None]] = []

    def give(self, replica: str, port: int) -> None:
        self.current[replica] = port
        for listener in self._listeners:
            listener()

    def port_of(self, service: str, replica: ReplicaId, owner: str, entry: RawEntry | None) -> int | FleetPort:
        return self.current.get(replica, self.otherwise)

    def ask_next(self, service: str, replica: ReplicaId, not_this: int) -> None:
        self.asked.append((replica, not_this))
        self.current.pop(replica)

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)


class PlayedKeys(NoPeers):
    """Shows each key at a place of its own."""

    def request(self, port: int, to: object) -> KeyState:  # type: ignore[override]
        return KeyState(Path(f"/run/keyed/{port}.sock"), None)


class PlayedRouter:
    """A router's API, as SMG has it: accepted is not done, and what is removed drains first."""

    def __init__(self) -> None:
        self.workers: dict[str, Registered] = {}
        self.calls: list[tuple[str, str]] = []
        self.silent = False
        self.faults: list[Exception] = []
        self.ready_after_s = 0.02
        self.drains_for_s = 0.02
        self._ids = count(1)

    async def list_workers(self) -> Mapping[str, Registered]:
        await self._work()
        return dict(self.workers)

    async def register(self, spec: WorkerSpec) -> str:
        await self._work()
        self.calls.append(("register", spec.url))
        if self.faults:
            raise self.faults.pop()
        if spec.url in self.workers:
            raise RouterRefused(f"{spec.url} is there already", 409)
        row = Registered(
            f"w{next(self._ids)}", spec.url, WorkerStatus.PENDING, spec.worker_type, spec.connection_mode,
            spec.runtime_type, model_id=spec.model_id,
        )  # fmt: skip
        self.workers[spec.url] = row
        _later(self.ready_after_s, lambda: self._become_ready(row))
        return row.worker_id

    async def find(self, worker_id: str) -> Registered | None:
        await self._work()
        return next((row for row in self.workers.values() if row.worker_id == worker_id), None)

    async def deregister(self, worker_id: str) -> None:
        await self._work()
        row = next((row for row in self.workers.values() if row.worker_id == worker_id), None)
        if row is not None:
            self.calls.append(("deregister", row.url))
            self.workers[row.url] = replace(row, status=WorkerStatus.DRAINING)
            _later(self.drains_for_s, lambda: self._remove(worker_id))

    def ready(self) -> set[str]:
        """The URLs that get requests."""
        return {url for url, row in self.workers.items() if row.status is WorkerStatus.READY}

    async def _work(self) -> None:
        await asyncio.sleep(_PATIENCE_S if self.silent else ASKED_S)
        if self.silent:
            raise RouterUnavailable("no answer")

    def _become_ready(self, row: Registered) -> None:
        if self.workers.get(row.url) == row:
            self.workers[row.url] = replace(row, status=WorkerStatus.READY)

    def _remove(self, worker_id: str) -> None:
        for url, row in list(self.workers.items()):
            if row.worker_id == worker_id:
                del self.workers[url]


class PlayedClient:
    """Asks a played router (a `RouterClient`). A closed one is asked nothing."""

    def __init__(self, router: PlayedRouter) -> None:
        self._router = router
        self.is_open = True

    async def list_workers(self) -> Mapping[str, Registered]:
        return await self._asked().list_workers()

    async def register(self, spec: WorkerSpec) -> str:
        return await self._asked().register(spec)

    async def find(self, worker_id: str) -> Registered | None:
        return await self._asked().find(worker_id)

    async def deregister(self, worker_id: str) -> None:
        await self._asked().deregister(worker_id)

    async def close(self) -> None:
        self.is_open = False

    def _asked(self) -> PlayedRouter:
        assert self.is_open, "who asks now opens connections that nobody closes"
        return self._router


class PlayedProcess:
    """The process of a router (a `RouterProcess`), up as soon as it runs."""

    def __init__(self, service: str, slot: str, pid: int, on_change: Callable[[], None]) -> None:
        self.service, self.slot, self.pid = service, slot, pid
        self._on_change = on_change
        self.state, self.reason, self.epoch = RouterState.STOPPED, "", 0
        self.restarts = 0
        self.router: PlayedRouter | None = None
        self.client: PlayedClient | None = None
        self.clients: list[PlayedClient] = []
        self.ports: RouterPorts | None = None
        self.mesh: MeshMember | None = None
        self.place: MeshMember | None = None
        self.joins = False
        self.process: None = None
        self.is_adopted = False
        self.accepts = True
        self.renewed = 0
        self.log = self
        self.is_nginx = False
        self.kind, self.next_kind, self.setup, self.cannot_start = "smg", "smg", SMG, False
        self._lost = asyncio.Event()

    @property
    def up(self) -> bool:
        return self.state is RouterState.UP

    def take_over(self, running: PlayedProcess) -> None:
        """It is the process of an earlier daemon."""
        self.router, self.ports, self.slot = running.router, running.ports, running.slot
        self.client = self.another_client()
        self.epoch, self.is_adopted, self.accepts = 1, True, running.accepts
        self._set(RouterState.UP)

    def join_mesh(self) -> None:
        self.joins = True

    async def run(self) -> None:
        while True:
            if self.up:
                await self._lost.wait()
                self._set(RouterState.BACKING_OFF)
            await asyncio.sleep(0.1)
            self.is_adopted = False
            await self.close_client()
            self.mesh = self.place if self.joins and not self.epoch else None
            self.router, self.ports = PlayedRouter(), RouterPorts(16000 + 2 * self.pid, 16001 + 2 * self.pid)
            self.client = self.another_client()
            self.epoch += 1
            self._lost.clear()
            self._set(RouterState.UP)

    def end(self) -> None:
        """It is killed; another is started in its place."""
        self._lost.set()

    def report_unresponsive(self) -> None:
        self._lost.set()

    async def accepts_connections(self) -> bool:
        return self.accepts

    def saved(self) -> None:
        """Nothing of it is written down."""

    async def is_outdated(self) -> bool:
        return False

    async def stop(self, grace_s: float) -> None:
        await self.close_client()
        self._set(RouterState.STOPPED)

    async def renew_client(self, setup: object) -> None:
        self.renewed += 1

    def another_client(self) -> PlayedClient | None:
        if self.router is None:
            return None
        self.clients.append(PlayedClient(self.router))
        return self.clients[-1]

    async def close_client(self) -> None:
        if self.client is not None:
            await self.client.close()

    def close_log(self) -> None:
        return

    def _set(self, state: RouterState) -> None:
        if state is not self.state:
            self.state = state
            self._on_change()


@dataclass(frozen=True)
class Left:
    """What a daemon leaves: its record, the router, and the ports that rest."""

    saved: Sequence[SavedTenure]
    running: PlayedProcess
    resting: frozenset[int]


class World:
    """The service and everything around it."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.source = PlayedSource(directory)
        self.probe = PlayedProbe()
        self.links = PlayedLinks()
        self.asks = PlayedAsks()
        self.table = PlayedTable()
        self.leases = PortLeases(range(24001, 24021))
        self.routers: list[PlayedProcess] = []
        self.connections: Counter[Place] = Counter()
        self.liveness_connections: dict[str, list[_LivenessConnection]] = {}
        self.moved = self.written = 0
        self.place: MeshMember | None = None
        """What the next router gets in the mesh, if it joins."""
        self.log: list[Any] = []
        self._loops: list[asyncio.Task[None]] = []
        described = {"name": "chat", "listen": "127.0.0.1:1", "replicas": {"sockets": f"{directory}/{{replica}}.sock"}}
        self._settings = ServiceSettings.model_validate({**described, **settings})
        self.service = self._new_service()

    # -- what happens

    def appear(self, replica: str, answer: ProbeResult | Exception = READY) -> None:
        """A socket, and an engine behind it that answers like this. In the place of what was there before, if any."""
        self.answer(replica, REFUSED)
        self.answer(replica, answer)
        fresh = self.directory / f"{replica}.new"
        fresh.touch()
        fresh.rename(self.directory / f"{replica}.sock")
        self.source.hint()

    def answer(self, replica: str, answer: ProbeResult | Exception) -> None:
        """Its engine says this from now on; one that refuses has ended, with the connections that it had."""
        self.probe.answers[replica] = answer
        if answer == REFUSED:
            for liveness in self.liveness_connections.pop(replica, []):
                liveness.close()

    def vanish(self, replica: str) -> None:
        """The engine ends, and its socket is removed."""
        (self.directory / f"{replica}.sock").unlink()
        self.answer(replica, REFUSED)
        self.source.hint()

    async def restart(self, saved: list[SavedTenure] | None = None) -> None:
        """The daemon is killed, and the next one takes up what was written down and what runs.

        saved: what was written down, if that is not how it was in the end.
        """
        left = await self.die()
        await self.come_back(left if saved is None else replace(left, saved=saved))

    async def die(self) -> Left:
        """The daemon is killed; the router goes on."""
        left = Left(self.service.saved(), self.process, self.leases.quarantined)
        await self.end()
        for connection in [each for several in self.liveness_connections.values() for each in several]:
            connection.forget()
        return left

    async def come_back(self, left: Left) -> None:
        """The next daemon begins."""
        self.leases = PortLeases(range(24001, 24021))
        self.service = self._new_service()
        self.service.slots.begin_in(self.links.slot or "chat", "smg")
        if left.running.up:
            self.process.take_over(left.running)
        for tenure in left.saved:
            led_to = self.links.led.get(tenure.port) if tenure.port is not None else None
            self.service.restoring.restore(tenure, linked=led_to == tenure.sighting.place)
        for port in left.resting | (self.links.led.keys() - self.leases.leased.keys()):
            self.links.unlink(port)
            self.leases.quarantine(port, awake.now() + SMG.late_s)
        await self.begin()

    # -- what can be seen

    @property
    def router(self) -> PlayedRouter:
        """What answers at the service address."""
        router = self.process.router
        assert router is not None
        return router

    @property
    def process(self) -> PlayedProcess:
        return cast("PlayedProcess", self.service.router)

    def tenure(self, replica: str) -> Tenure:
        tenure = self.service.current(ReplicaId(replica))
        assert tenure is not None
        return tenure

    def states(self) -> dict[str, ReplicaState]:
        """As `status` has them."""
        return {str(t.replica): t.status.state for t in self.service.tenures.values() if not t.gone}

    async def in_use(self, replica: str, connections: int = 1) -> int:
        """A replica that has come to serve, with so many connections to its bridge; the bridge's port."""
        self.appear(replica)
        await self.until(lambda: self.serves(replica))
        port = self.tenure(replica).bridge.port
        assert port is not None
        self.connections[port] = connections
        return port

    def serves(self, *replicas: str) -> bool:
        """Whether these, and no others, are there and serve."""
        return self.states() == dict.fromkeys(replicas, ReplicaState.SERVING)

    def faults(self) -> float:
        """How many faults of our own were survived."""
        return float(self.metrics.loop_failures.labels("chat")._value.get())

    async def until(self, condition: Callable[[], bool], within_s: float = 60.0, every_s: float = 0.01) -> None:
        """Lets time pass until the condition holds; fails after so many (fake) seconds."""
        deadline = awake.monotonic() + within_s
        while not condition():
            assert awake.monotonic() < deadline, f"not within {within_s:g} s: {self.states()} {self.router.workers}"
            await asyncio.sleep(every_s)

    async def at_rest(self) -> None:
        """Returns when nothing is left to do, now and after every interval there is."""
        await self.until(
            lambda: (
                not self.service.controller.pending()
                and not self.leases.quarantined
                and len(self.service.tenures) == len(self.states())
                and self.router.ready() == set(self.router.workers)
            ),
            within_s=300.0,
            every_s=0.5,
        )

    # -- life

    async def begin(self) -> None:
        kernel = Kernel(lambda _places: self.connections, lambda _places: {})
        counter = ConnectionCounter(lambda: {"chat": self.service}, self.leases, kernel)
        self._loops = [asyncio.create_task(self.service.run()), asyncio.create_task(counter.run())]
        await self.until(lambda: self.process.up)

    async def end(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for router in self.service.routers:
            await router.close_client()
        assert not any(client.is_open for process in self.routers for client in process.clients)

    def _new_service(self) -> Service:
        outside = ServiceAdapters(
            source=self.source,
            probe=self.probe,
            switches=self.links,
            leases=self.leases,
            peers=NoPeers(),
            keys=PlayedKeys(),
            hosts=BridgeHosts("127.0.0.1", "127.0.0.2"),
            make_router=self._make_router,
            private_ports=cast("Any", self),
            read_overrides=self._read_notes,
            path_of=lambda _: PathStatus(PathState.UP),
            move_address=self._move_address,
            touch=self._touch,
            asks=self.asks,
            table=self.table,
        )
        return Service(self._settings, outside, self.metrics, rescan_interval_s=5.0)

    def _touch(self) -> None:
        self.written += 1

    def _make_router(self, settings: ServiceSettings, slot: str, on_change: Callable[[], None]) -> RouterProcess:
        made = PlayedProcess(settings.name, slot, len(self.routers) + 1, on_change)
        made.place = self.place
        self.routers.append(made)
        return cast("RouterProcess", cast("Any", made))

    async def _move_address(self, service: str) -> None:
        self.moved += 1

    def _read_notes(self, path: Path, owner: int) -> Overrides:
        text = path.read_text()
        if text == "bad":
            raise ConfigError([f"{path}: bad"])
        if text in set(WorkerType):
            return Overrides(worker_type=WorkerType(text))
        return Overrides(model=text)

    def choose(self, slot: str) -> RouterPorts:
        """As `PrivatePorts` has it."""
        return RouterPorts(15000, 15001)

    def give_back(self, slot: str) -> None:
        """As `PrivatePorts` has it."""


@asynccontextmanager
async def running_world(directory: Path, patch: pytest.MonkeyPatch, **settings: object) -> AsyncIterator[World]:
    """A world that runs, with nothing in it that takes real time."""
    patch.setattr(router_slots, "open_connections", lambda _ports: Counter[int]())
    world = World(directory, **settings)

    async def connect_liveness(
        address: str, on_close: Callable[[], None], *, grpc: bool, in_line: bool
    ) -> asyncio.Transport:
        del grpc, in_line
        if world.probe.answers.get(replica_at(address), REFUSED) == REFUSED:
            raise ConnectionRefusedError(address)
        liveness = _LivenessConnection(on_close)
        world.liveness_connections.setdefault(replica_at(address), []).append(liveness)
        return cast("asyncio.Transport", cast("Any", liveness))

    patch.setattr(liveness, "connect_liveness", connect_liveness)
    patch.setattr(refused_sockets, "is_refused", lambda at: world.probe.answers.get(replica_at(at), REFUSED) == REFUSED)
    with capture_logs() as world.log:
        await world.begin()
        try:
            yield world
        finally:
            await world.end()


Worlds = Callable[..., AbstractAsyncContextManager[World]]
"""Makes a world that runs: the fixture `worlds`."""


class _LivenessConnection:
    """A connection that tells, a moment later, that it has ended."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._on_close: Callable[[], None] | None = on_close

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            _later(0.0, on_close)

    abort = close

    def forget(self) -> None:
        """Who was to be told is no more."""
        self._on_close = None


def _later(delay_s: float, then: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, then)
