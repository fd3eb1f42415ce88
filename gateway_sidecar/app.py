"""The composition root: the only place that names concrete adapters."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from gateway_sidecar.api.exposition import serve_metrics
from gateway_sidecar.api.hold import serve_hold
from gateway_sidecar.api.listener import AdminListener
from gateway_sidecar.api.routes import serve_admin
from gateway_sidecar.config import PortRange, ServiceSettings, Settings, line_of, load_overrides
from gateway_sidecar.config.crosscheck import ROUTER_HOST
from gateway_sidecar.config.places import used_elsewhere_in
from gateway_sidecar.config.router import OfItsKind
from gateway_sidecar.control.edge.destinations import Destinations
from gateway_sidecar.control.edge.key_proxies import KeyProxies
from gateway_sidecar.control.edge.peer_supervisor import BeforeClaim, PeerSupervisor
from gateway_sidecar.control.hold.socket_holder import SocketHolder
from gateway_sidecar.control.ports import ServiceAdapters
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.process.left_running import LeftRunning
from gateway_sidecar.control.process.services import ServiceHost
from gateway_sidecar.control.process.shared import Shared
from gateway_sidecar.control.replicas.bridging import NoTable
from gateway_sidecar.control.replicas.drain import NobodyAsks
from gateway_sidecar.control.replicas.tenure import BridgeHosts
from gateway_sidecar.control.routers.balanced import Balancer, NginxRouter
from gateway_sidecar.control.routers.process import RouterHost, RouterProcess
from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state.api_replicas import ApiReplicas
from gateway_sidecar.control.state.usage import UsageCollector
from gateway_sidecar.control.state.usage_store import UsageStore
from gateway_sidecar.domain.claims import Address, objection_to_direct
from gateway_sidecar.domain.leases import NoFreePort, PortLeases
from gateway_sidecar.domain.routing import BridgeRules
from gateway_sidecar.engines.probe import EngineProbe
from gateway_sidecar.errors import ConfigError, ProcessError, StateError
from gateway_sidecar.files.own import keep_directory
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.addresses import ClaimRules, PeerAddresses, is_own_address
from gateway_sidecar.nginx.bridge_key import read_bridge_key
from gateway_sidecar.nginx.bridge_server import owner_url
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.nginx.key_proxy import KeyedNginx, keyed_left_running
from gateway_sidecar.nginx.peer_proxy import PeerNginx, PeerPlaces, peers_left_running
from gateway_sidecar.nginx.server import Nginx, NginxSettings, busy_ports, find_nginx
from gateway_sidecar.nginx.small import SmallPlaces
from gateway_sidecar.routers.base import RouterPorts, RouterRules, RouterSetup, Surroundings
from gateway_sidecar.sources.build import given_to, source_of
from gateway_sidecar.sources.listing import Source
from gateway_sidecar.sources.placed import OwnSockets
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.lock import DirectoryLock
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import Tasks, watch_event_loop
from gateway_sidecar.supervision.memory import usable_cpus
from gateway_sidecar.supervision.privileges import CAP_NET_ADMIN, keep_files_to_ourselves, keep_to_ourselves
from gateway_sidecar.supervision.process import own_children
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from gateway_sidecar.tunnels.fleet import TunnelFleet

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet

_MOST_WORKERS = 16
"""Of nginx, where nobody says how many: each takes some 16 MB, and passes on thousands of requests a second."""


class RealAdapters:
    """Services built of routers, nginx, sources and the real probe (an `Adapters`)."""

    def __init__(self, settings: Settings, shared: Shared, metrics: Metrics) -> None:
        self._settings = settings
        self._nginx = shared.nginx
        self._shared = shared
        self._tunnels = shared.tunnels
        self._metrics = metrics
        self._router_ports = RouterPortLeases(settings.router_ports)
        self._own = OwnSockets((settings.run_dir, settings.state_dir), self._agents)
        self._join_mesh = None if shared.fleet is None else shared.fleet.mesh.join
        self._is_own_child = own_children(settings.run_dir, settings.state_dir)
        self._probe = EngineProbe(self._is_own)

    def service(self, settings: ServiceSettings, host: ServiceHost) -> Service:
        """One service, not running yet."""
        fleet = self._shared.fleet
        outside = ServiceAdapters(
            source=self.source(settings),
            probe=self._probe,
            switches=self._nginx,
            leases=self._shared.leases,
            peers=self._shared.peers,
            keys=self._shared.keys,
            hosts=BridgeHosts(self._settings.bridges.host, self._settings.bridges.grpc_host),
            make_router=partial(self.router, host.write_down),
            private_ports=self._router_ports,
            read_overrides=load_overrides,
            path_of=self._tunnels.status,
            move_address=host.move_address,
            touch=host.touch,
            asks=NobodyAsks() if fleet is None else fleet.drains,
            table=NoTable() if fleet is None else fleet.ports,
        )
        return Service(settings, outside, self._metrics, rescan_interval_s=self._settings.rescan_interval_s)

    def router(
        self,
        write_down: Callable[[], Awaitable[None]],
        settings: ServiceSettings,
        slot: str,
        on_change: Callable[[], None],
    ) -> Router:
        """One router of a service, not started yet."""
        setup = self.router_setup(settings, settings.router.type)
        if not isinstance(setup, RouterSetup):
            balancer = Balancer(self._nginx.endpoints, self._nginx.in_flight, self._settings.bridges.host)
            return NginxRouter(settings, slot, setup, balancer, on_change)
        return RouterProcess(
            settings,
            slot,
            setup,
            ChildLog(
                self._settings.state_dir / "log" / f"router-{slot}.log",
                spare=self._settings.run_dir / "log" / f"router-{slot}.log",
            ),
            RouterHost(self._router_ports, self._metrics, write_down, on_change, self._join_mesh),
        )

    def _agents(self) -> Iterator[str | None]:
        """The SSH agents that tunnels use."""
        return (server.agent for it in list(self._tunnels.connections) for server in it.route.servers)

    def _is_own(self, address: str, pid: int) -> bool:
        """Whether a process of ours listens there, and there is no tunnel behind it."""
        if address.startswith(f"{self._tunnels.directory}/"):
            return False
        return pid == os.getpid() or self._is_own_child(pid)

    def source(self, settings: ServiceSettings) -> Source:
        """Where the service's replicas are learnt from."""
        record = self._shared.api.of(settings.name)
        return source_of(settings, given_to(settings, self._tunnels.socket_of, self._own, record))

    def router_setup(self, settings: ServiceSettings, kind: str) -> RouterRules:
        """The service's router as it is configured; one of another kind as that has it by default.

        Raises StateError for a kind of which nothing is known any more.
        """
        router = settings.router
        if kind != router.type:
            try:
                router = OfItsKind().read({"type": kind})
            except ValueError as error:
                raise StateError(f"nothing is known of a router of kind {kind!r}; install its package") from error
        around = Surroundings(self._nginx.bridge_key, self._settings.run_dir / "routers" / settings.name)
        return ROUTERS[kind].build(router, settings, around)


class RouterPortLeases:
    """The private ports of all routers (a `PrivatePorts`). Those that are given back may be used again at once."""

    def __init__(self, ports: PortRange) -> None:
        self._leases = PortLeases(range(ports.first, ports.last + 1))

    def choose(self, slot: str) -> RouterPorts:
        try:
            return RouterPorts(self._usable(f"{slot}/api"), self._usable(f"{slot}/metrics"))
        finally:
            self._release_ports()  # What was looked at is left to whoever uses it.

    def choose_in_mesh(self, slot: str, host: str) -> int:
        try:
            return self._usable(f"{slot}/mesh", host)
        finally:
            self._release_ports()

    def restore(self, slot: str, ports: RouterPorts) -> None:
        self._leases.restore(ports.api, f"{slot}/api")
        self._leases.restore(ports.metrics, f"{slot}/metrics")
        if ports.mesh is not None:
            self._leases.restore(ports.mesh.port, f"{slot}/mesh")

    def give_back(self, slot: str) -> None:
        for owner in (f"{slot}/api", f"{slot}/metrics", f"{slot}/mesh"):
            port = self._leases.port_of(owner)
            if port is not None:
                self._leases.release(port)
        self._release_ports()

    def _release_ports(self) -> None:
        for port in self._leases.quarantined:
            self._leases.note_quiet(port, 0.0)

    def _usable(self, owner: str, host: str = ROUTER_HOST) -> int:
        while True:
            try:
                port = self._leases.acquire(owner)
            except NoFreePort as error:
                raise ProcessError(f"no free port for the router ({error}); widen router_ports") from error
            if not busy_ports([(host, port)]):
                return port
            self._leases.release(port)


def build_daemon(config_path: Path, settings: Settings, shared_key: str | None = None) -> Daemon:
    """The daemon with all its parts. Raises NginxError for a run_dir that nginx cannot use.

    shared_key: what routers that somebody else runs show the bridges.
    """
    metrics = Metrics()
    workers = settings.nginx.workers
    rules = BridgeRules.of(((kind.paths, kind.headers) for kind in ROUTERS), settings.bridges.paths, shared_key)
    nginx = Nginx(
        NginxSettings(
            host=settings.bridges.host,
            grpc_host=settings.bridges.grpc_host,
            rules=rules,
            first_port=settings.bridges.ports.first,
            last_port=settings.bridges.ports.last,
            command=settings.nginx.command,
            worker_processes=str(min(usable_cpus(), _MOST_WORKERS) if workers == "auto" else workers),
            held_mb=settings.nginx.max_bodies_mb,
            access_log=settings.access_log,
            marks=settings.store is not None,
            run_dir=settings.run_dir,
            state_dir=settings.state_dir,
            used_elsewhere=used_elsewhere_in(settings.state_dir) if settings.store is not None else None,
        )
    )
    bridges = PortLeases(range(settings.bridges.ports.first, settings.bridges.ports.last + 1))
    log = ChildLog(settings.state_dir / "log" / "peers.log", spare=settings.run_dir / "log" / "peers.log")
    find = partial(find_nginx, settings.nginx.command)
    tasks = Tasks("-", metrics)
    destinations = Destinations()
    places = PeerPlaces(
        settings.run_dir / "peers",
        nginx.links,
        log,
        find,
        tasks,
        lambda: nginx.bridge_key,
        rules,
        owner_url(settings.bridges.host, settings.bridges.ports.first),
    )
    peers = _peer_supervisor(settings, places, destinations, metrics)
    keyed = SmallPlaces(settings.run_dir, nginx.links, log, find, tasks)
    count = partial(open_connections, hosts=nginx.bridge_hosts)
    keys = KeyProxies(partial(KeyedNginx, keyed), partial(keyed_left_running, keyed), count)
    tunnels = TunnelFleet(settings.run_dir / "tunnels", Tasks("-", metrics))
    problems = Problems()
    record = settings.state_dir / "replicas.json"
    usage = UsageCollector(
        UsageStore(settings.state_dir / "usage.db", nginx.usage, settings.usage.keep_days, today),
        problems.of("usage"),
        metrics,
    )
    fleet = None if settings.store is None else _fleet(settings, nginx, bridges, usage, problems, metrics)
    api = ApiReplicas(record, problems, metrics) if fleet is None else fleet.replicas
    shared = Shared(nginx, bridges, peers, destinations, keys, tunnels, api, usage, problems, fleet)
    return Daemon(config_path, settings, shared, RealAdapters(settings, shared, metrics), metrics)


def _fleet(
    settings: Settings, nginx: Nginx, leases: PortLeases, usage: UsageCollector, problems: Problems, metrics: Metrics
) -> Fleet:
    """This gateway's part in a fleet. Imported here: a gateway that works alone needs none of it."""
    from gateway_sidecar.control.fleet.build import FleetPlaces, build_fleet

    assert settings.store is not None
    places = FleetPlaces(settings.state_dir, nginx.frontends.challenges, settings.run_dir / "mesh")
    return build_fleet(places, settings.store, leases, usage, problems, metrics)


def _peer_supervisor(
    settings: Settings, places: PeerPlaces, destinations: Destinations, metrics: Metrics
) -> PeerSupervisor:
    networks = [ip_network(text) for text in settings.peers.networks]
    rules = ClaimRules(settings.peers.interface, networks, settings.run_dir)
    claims = PeerAddresses(rules, destinations.addresses)

    def object_to_direct(address: Address) -> str | None:
        return objection_to_direct(address, networks, is_own=is_own_address(address))

    return PeerSupervisor(
        claims,
        partial(PeerNginx, places),
        partial(peers_left_running, places),
        BeforeClaim(destinations.resolve, object_to_direct),
        places.log,
        metrics,
    )


def _keep_directories(config_path: Path, settings: Settings) -> None:
    """Makes the directories that we write to. Raises ConfigError where others could write there, too."""
    problems = []
    for name, path, mode in (("run_dir", settings.run_dir, 0o750), ("state_dir", settings.state_dir, 0o700)):
        try:
            keep_directory(path, mode)
        except PermissionError as error:
            if error.errno == errno.EPERM:
                line = line_of(config_path, name)
                problems.append(f"{config_path}:{line}: {name}: {error.filename}: {error.strerror}")
        except OSError:
            continue  # A full disk, say. Whoever writes there tells, and may do without.
    if problems:
        raise ConfigError(problems)


async def end_left(config_path: Path, settings: Settings, left: LeftRunning, *, timeout_s: float) -> None:
    """Ends what an earlier daemon left, as `stop --all` ends it with a daemon.

    Raises ConfigError for directories that others may write in, StateError if a daemon runs after all.
    """
    keep_files_to_ourselves()
    _keep_directories(config_path, settings)
    lock = DirectoryLock(settings.run_dir)
    lock.take()
    try:
        await build_daemon(config_path, settings).end_left(left, timeout_s=timeout_s)
    finally:
        lock.release()


async def run_daemon(config_path: Path, settings: Settings) -> bool:
    """Runs the daemon until a signal or a command ends it; whether it was a command.

    SIGTERM leaves nginx and the routers running for the next daemon; SIGINT (Ctrl-C) takes them down as well. SIGHUP
    reads the configuration again. Raises ConfigError for directories that others may write in.
    """
    keep_files_to_ourselves()
    _keep_directories(config_path, settings)
    lock = DirectoryLock(settings.run_dir)
    lock.take()
    keep_to_ourselves(CAP_NET_ADMIN)
    key_file = settings.bridges.key_file
    daemon = build_daemon(config_path, settings, None if key_file is None else read_bridge_key(Path(key_file)))
    loop = asyncio.get_running_loop()
    watch_event_loop(daemon.metrics)
    loop.add_signal_handler(signal.SIGTERM, partial(daemon.end, stop_all=False))
    loop.add_signal_handler(signal.SIGINT, partial(daemon.end, stop_all=True))
    loop.add_signal_handler(signal.SIGHUP, daemon.reload_soon)

    async def serve(started: Daemon) -> Callable[[], Awaitable[None]]:
        listen = settings.metrics.listen
        exposition = await serve_metrics(started, listen, settings.metrics) if listen else None
        remote = AdminListener(started, settings.admin) if settings.admin else None
        if remote is not None:
            await remote.open()
        admin = await serve_admin(started, settings.run_dir, settings.state_dir)
        hold = await serve_hold(started, settings.run_dir / "hold.sock")
        holder = SocketHolder(settings.run_dir / "log" / "hold.log", lambda: hold.socket)
        await holder.begin()
        started.run_dir.keep("lock", lock.repair)
        started.run_dir.keep("admin.sock", admin.repair)
        started.run_dir.keep("hold.sock", hold.repair)
        started.run_dir.keep("holder of hold.sock", holder.repair)

        async def close() -> None:
            await admin.close()
            if started.takes_all_down or not (started.taken_up.is_set() or holder.took_over):
                await holder.end()
            else:
                holder.detach()
            await hold.close()
            if remote is not None:
                await remote.close()
            if exposition is not None:
                await exposition.close()

        return close

    try:
        with awake.watched():
            await daemon.run(serve)
    finally:
        lock.release()
    return daemon.ended_by_command
