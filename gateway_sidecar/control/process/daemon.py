"""The daemon: its services, the bridge they share, what it writes down, and how it comes and goes.

It may die at any line. nginx, the routers and every stream go on, and the next start takes them up again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gateway_sidecar import __version__
from gateway_sidecar.config import FrontendSettings, ServiceSettings, Settings, line_of, load_config
from gateway_sidecar.control.autoscaling.collector import Signals
from gateway_sidecar.control.edge.destinations import Destinations, hosts_of
from gateway_sidecar.control.edge.frontends import Frontends
from gateway_sidecar.control.edge.key_proxies import KeyProxies
from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.edge.peer_supervisor import PeerSupervisor
from gateway_sidecar.control.process.adoption import Adoption
from gateway_sidecar.control.process.child_logs import ChildLogs
from gateway_sidecar.control.process.connection_counter import ConnectionCounter
from gateway_sidecar.control.process.left_running import LeftRouter, LeftRunning
from gateway_sidecar.control.process.run_dir_repair import RunDirRepair
from gateway_sidecar.control.process.shutdown import Ending, take_down
from gateway_sidecar.control.replicas.reflector import Source
from gateway_sidecar.control.routers.process import RouterProcess, RouterState
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state import records
from gateway_sidecar.control.state.api_replicas import ApiReplicas
from gateway_sidecar.control.state.writer import Record, RecordWriter
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import BridgeError, ConfigError, NotInForce, ProcessError, RouterUnavailable, StateError
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.server import Nginx
from gateway_sidecar.routers.base import RouterKind
from gateway_sidecar.sources.told import NAME as API
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import HEARTBEATS, Tasks, heartbeat
from gateway_sidecar.supervision.notify import SystemdNotifier
from gateway_sidecar.supervision.process import Identity, Process, boot_id
from gateway_sidecar.telemetry.logs import get_logger, set_up_logs
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.tunnels.fleet import TunnelFleet

_STALE_S = 10.0
_STALLED_S = 2.0
DEFAULT_STOP_S = 30.0
"""What is in flight when everything is taken down may take so long."""

_END_GRACE_S = 2.0
_FIRST_START_S = 10.0
_START_POLL_S = 0.02
_TUNNEL_GAP_S = 0.05
_WRITE_DOWN_S = 1.0
_FIXED = ("state_dir", "run_dir", "bridges", "peers", "router_ports", "metrics", "admin", "rescan_interval_s")


class Adapters(Protocol):
    """Builds the parts of a service from its settings."""

    def service(
        self,
        settings: ServiceSettings,
        touch: Callable[[], None],
        move_address: Callable[[], Awaitable[None]],
        write_down: Callable[[], Awaitable[None]],
    ) -> Service: ...

    def source(self, settings: ServiceSettings) -> Source: ...

    def router_kind(self, settings: ServiceSettings) -> RouterKind: ...


@dataclass(slots=True)
class _Running:
    service: Service
    task: asyncio.Task[None]


class Daemon:
    """All services of one gateway."""

    def __init__(
        self,
        config_path: Path,
        settings: Settings,
        *,
        nginx: Nginx,
        leases: PortLeases,
        peers: PeerSupervisor,
        destinations: Destinations,
        keys: KeyProxies,
        tunnels: TunnelFleet,
        told: ApiReplicas,
        problems: dict[str, str],
        metrics: Metrics,
        adapters: Adapters,
    ) -> None:
        self.config_path = config_path
        self.settings = settings
        self.metrics = metrics
        self._tasks = Tasks("-", metrics)
        self.leases = leases
        self.peers = peers
        peers.before_claim = destinations.settle
        destinations.use(self._hosts, peers.recheck_soon)
        self._destinations = destinations
        self.keys = keys
        peers.has_looked = keys.has_looked = lambda: all(s.has_looked for s in self.services.values())
        self.told = told
        self.tunnels = tunnels
        tunnels.on_change = self._tunnel_changed
        self._tunnels_due = asyncio.Event()
        self._adapters = adapters
        self._running: dict[str, _Running] = {}
        self._departing = RetiredRouters(self._tasks, self.note_change)
        self.nginx_supervisor = NginxSupervisor(nginx, self._addresses, metrics, self.note_change)
        self.run_dir = RunDirRepair(
            self.nginx_supervisor, lambda: self.services, problems, interval_s=settings.rescan_interval_s
        )
        self.doors = Frontends(
            nginx.doors,
            self._frontends,
            self._frontends_in_force,
            metrics,
            rescan_interval_s=settings.rescan_interval_s,
        )
        self.signals = Signals(lambda: self.services, lambda: nginx.events, metrics)
        self._counter = ConnectionCounter(lambda: self.services, leases)
        self._children = ChildLogs(lambda: self.services, nginx, peers.log, problems, metrics)
        self._notifier = SystemdNotifier()
        self._logger = get_logger()
        self._ending = asyncio.Event()
        self.taken_up = asyncio.Event()
        self._stop_all = False
        self._stop_timeout_s = DEFAULT_STOP_S
        self._at_once = asyncio.Event()
        self.ended_by_command = False
        self._reload_lock = asyncio.Lock()
        self.before_reload: list[Callable[[], Awaitable[Callable[[], Awaitable[list[str]]]]]] = []
        self.problems = problems
        self._records = {
            "run": RecordWriter(Record("run", self._processes_path, self._processes), self.problems, metrics),
            "state": RecordWriter(Record("state", self._leases_path, self._leases), self.problems, metrics),
        }
        ports = metrics.bridge_ports
        ports.labels("leased").set_function(lambda: len(leases.leased))
        ports.labels("quarantined").set_function(lambda: len(leases.quarantined))
        ports.labels("free").set_function(lambda: leases.size - len(leases.leased) - len(leases.quarantined))
        metrics.bridge_port_share.set_function(lambda: leases.share)

    # -- what others see

    @property
    def services(self) -> Mapping[str, Service]:
        """Service name -> service."""
        return {name: running.service for name, running in self._running.items()}

    @property
    def healthy(self) -> bool:
        """Whether every loop makes progress."""
        return self._stale_s() < self._stale_limit_s

    @property
    def takes_all_down(self) -> bool:
        """Whether the routers and nginx end with it."""
        return self._stop_all

    @property
    def ready(self) -> bool:
        """Whether nginx runs and each service has an address, a router that answers, and looked at its replicas."""
        services_ready = all(s.has_looked and s.router.up for s in self.services.values())
        return self.nginx_supervisor.up and not self.nginx_supervisor.unserved and services_ready

    def note_change(self) -> None:
        """Something that is written down has changed."""
        for writer in self._records.values():
            writer.touch()
        self._tunnels_due.set()
        self.nginx_supervisor.touch()

    # -- life

    async def run(self, serve: Callable[[Daemon], Awaitable[Callable[[], Awaitable[None]]]]) -> None:
        """Runs until `end` is called. `serve` opens the admin and metrics listeners and returns what closes them.

        Raises BridgeError if nginx cannot be started at all.
        """
        processes, leases = [await self._read(writer.record) for writer in self._records.values()]
        await self.told.load(_told_before(leases))
        self._take_bridge_key(processes)
        for settings in self.settings.services:
            self._add(settings)
        # Before nginx: an address that is taken ends us here, with nothing begun, and the first client that has to
        # wait finds the waiting room there.
        close_listeners = await serve(self)
        try:
            await self._take_up(processes, leases)
        except (BridgeError, ProcessError, OSError):
            await close_listeners()
            raise
        self.taken_up.set()
        background = [
            self._tasks.run_forever(loop)
            for loop in (
                *(writer.run for writer in self._records.values()),
                self.nginx_supervisor.run,
                self.told.run,
                self.doors.run,
                self.run_dir.run,
                self.peers.run,
                self._destinations.run,
                self.keys.run,
                self._counter.run,
                self._children.run,
                self._watch_loop,
                self._tunnel_loop,
                self.signals.run,
            )
        ]
        for running in self._running.values():
            running.task = asyncio.create_task(running.service.run())
        self._notifier.ready()
        self._logger.info("daemon.started", version=__version__, services=list(self._running))
        try:
            await self._until_ending(background)
        finally:
            self._notifier.stopping(within_s=self._stop_timeout_s if self._stop_all else 0.0)
            await close_listeners()
            await self._end(background)

    def end(self, *, stop_all: bool, timeout_s: float = DEFAULT_STOP_S) -> None:
        """Ends the daemon; with `stop_all` also the routers and nginx, else they go on for the next daemon.

        timeout_s: how long they may take for what is in flight. Asked again, all is ended at once.
        """
        if self._ending.is_set():
            self._at_once.set()
        self._stop_all |= stop_all
        self._stop_timeout_s = timeout_s
        self._ending.set()

    async def _until_ending(self, background: list[asyncio.Task[None]]) -> None:
        ending = asyncio.create_task(self._ending.wait())
        while not ending.done():
            loops = [*background, *(r.task for r in self._running.values())]
            done, _ = await asyncio.wait([*loops, ending], return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
            for task in done - {ending}:
                if not task.cancelled():
                    task.result()  # A loop never ends by itself: let its error end us, and systemd start us again.

    async def _end(self, background: list[asyncio.Task[None]]) -> None:
        tasks = [*background, *(r.task for r in self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._stop_all:
            await self._take_all_down(self._routers())
        else:
            await asyncio.gather(*(writer.write() for writer in self._records.values()))
            for router in self._routers():
                await router.let_go()
            await self._departing.let_go()
            await self.tunnels.let_go()
            if self.nginx_supervisor.nginx.process is not None:
                self.nginx_supervisor.nginx.process.let_go()
            self.peers.let_go()
            self.keys.let_go()
        self._logger.info("daemon.stopped", left_running=not self._stop_all)

    async def _take_all_down(self, routers: Sequence[Ending]) -> None:
        cut = await take_down(
            self.nginx_supervisor.nginx, routers, timeout_s=self._stop_timeout_s, at_once=self._at_once
        )
        if cut:
            self._logger.warning("daemon.cut_off", connections=cut, after_s=self._stop_timeout_s)
        await self._departing.close()
        await self.peers.close()
        await self.keys.close()
        await self.tunnels.end()
        for port in self.nginx_supervisor.nginx.linked():
            self.nginx_supervisor.nginx.unlink(port)
        await asyncio.to_thread(self.doors.withdraw)
        with suppress(OSError):  # A disk that cannot be written: what is left says nothing that lives.
            for record in (self._processes_path, self._leases_path):
                record.unlink(missing_ok=True)

    async def end_left(self, left: LeftRunning, *, timeout_s: float) -> None:
        """Ends what an earlier daemon left, in the order and with the patience of `end`. For a daemon that never runs.

        Raises OSError where the directories cannot be used, BridgeError where addresses could not be given back.
        """
        self._stop_timeout_s = timeout_s
        self._take_bridge_key(await self._read(self._records["run"].record))
        nginx = self.nginx_supervisor.nginx
        for identity in left.nginx:
            with suppress(BridgeError):  # Its program is gone: then it cannot be told of new addresses, only ended.
                if nginx.process is None and await nginx.adopt(identity):
                    continue
            await _end_process(identity)
        await self.peers.begin()
        await self.keys.begin()
        await asyncio.to_thread(self.tunnels.prepare)
        routers = [(Process.adopt(identity), left.ports.get(identity)) for identity in left.routers]
        await self._take_all_down([LeftRouter(process, ports) for process, ports in routers if process is not None])
        for identity in (*left.small, *left.holders):
            await _end_process(identity)
        if self.peers.problem:
            interface = self.settings.peers.interface
            text = f"all is stopped, but addresses of replicas are still on {interface}: {self.peers.problem}"
            raise BridgeError(f"{text}; or, as root: ip link delete {interface}")

    def _add(self, settings: ServiceSettings, *, prepare: bool = False) -> Service:
        """One more service, not running yet. Raises ProcessError, nothing added, if it cannot be prepared."""
        service = self._adapters.service(settings, self.note_change, self.nginx_supervisor.apply, self._write_down_now)
        if prepare:
            service.slots.prepare()

        async def not_yet() -> None:
            return None

        self._running[settings.name] = _Running(service, asyncio.create_task(not_yet()))
        self.leases.share_among(self._running)
        held = self.metrics.service_bridge_ports.labels(settings.name)
        held.set_function(partial(self.leases.held_by, settings.name))
        return service

    def _routers(self) -> list[RouterProcess]:
        return [router for service in self.services.values() for router in service.routers]

    def _frontends(self) -> dict[str, FrontendSettings]:
        return {name: service.settings.frontend for name, service in self.services.items()}

    def _frontends_in_force(self) -> dict[str, FrontendSettings] | None:
        if self.nginx_supervisor.applied is None:
            return None
        return {address.service: address.frontend for address in self.nginx_supervisor.applied}

    def _addresses(self) -> list[ServiceAddress]:
        return [
            ServiceAddress(
                name,
                str(service.settings.listen),
                *service.slots.addresses(),
                service.settings.frontend,
                hold_s=max(service.settings.hold.timeout_s, service.settings.hold.asleep_s),
            )
            for name, service in self.services.items()
        ]

    def _hosts(self) -> dict[str, str]:
        tunnels = {t.sighting.tunnel for s in self.services.values() for t in s.tenures.values() if not t.gone}
        return hosts_of([t for t in tunnels if t is not None], [s.settings for s in self.services.values()])

    # -- what an earlier daemon left

    @property
    def _processes_path(self) -> Path:
        return self.settings.run_dir / "processes.json"

    @property
    def _leases_path(self) -> Path:
        return self.settings.state_dir / "leases.json"

    async def _read(self, record: Record) -> dict[str, Any]:
        try:
            return await record.read()
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            return {}

    async def _take_up(self, processes: dict[str, Any], leases: dict[str, Any]) -> None:
        self.nginx_supervisor.nginx.prepare()
        await self.doors.look(withdraw=False)
        await asyncio.to_thread(self.tunnels.prepare)
        adoption = Adoption(self.settings, lambda: self.services, self.nginx_supervisor, self.leases, self._departing)
        await adoption.take_routers(processes)
        await adoption.take_bridge(processes)
        # Not the leases: they are taken up below, and until then the file has what we have not.
        await self._records["run"].write()
        await self.peers.begin()
        await self.keys.begin()
        await adoption.take_tenures(leases)

    def _take_bridge_key(self, processes: dict[str, Any]) -> None:
        """Routers that an earlier daemon left show the bridges its key."""
        try:
            earlier = records.bridge_key_from_json(processes)
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            return
        if earlier is not None:
            self.nginx_supervisor.nginx.bridge_key = earlier

    async def _write_down_now(self) -> None:
        """Writes down what runs, and what is about to. A disk that hangs does not keep a router from being started."""
        with suppress(TimeoutError):
            async with within(_WRITE_DOWN_S):
                await self._records["run"].write()

    def _processes(self) -> dict[str, object]:
        nginx = self.nginx_supervisor.nginx.process
        routers = {
            name: [records.router_to_json(saved) for router in s.routers if (saved := router.saved()) is not None]
            for name, s in self.services.items()
        }
        return {
            "nginx": records.identity_to_json(nginx.identity) if nginx is not None and nginx.running else None,
            "bridge_key": self.nginx_supervisor.nginx.bridge_key,
            "routers": routers,
            "departing": records.departing_to_json(self._departing.identities),
        }

    def _leases(self) -> dict[str, object]:
        return {
            "boot_id": boot_id(),
            "services": {n: [records.tenure_to_json(t) for t in s.saved()] for n, s in self.services.items()},
            "resting": records.resting_to_json(self.leases),
            "models": {n: list(s.hold_policy.models) for n, s in self.services.items()},
        }

    # -- the loops

    async def _tunnel_loop(self) -> None:
        """Keeps the tunnels that replicas need; one that is gone needs its own until it has drained."""
        while True:
            heartbeat()
            self._tunnels_due.clear()
            needed = {t.sighting.tunnel for s in self.services.values() for t in s.tenures.values()}
            everybody_known = all(s.has_looked for s in self.services.values())
            self.tunnels.want({tunnel for tunnel in needed if tunnel is not None}, complete=everybody_known)
            self._measure_tunnels()
            await asyncio.sleep(_TUNNEL_GAP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._tunnels_due.wait()

    def _tunnel_changed(self) -> None:
        self._tunnels_due.set()
        for service in self.services.values():
            service.prober.tunnels_changed()

    def _measure_tunnels(self) -> None:
        states = [link.status.is_up for link in self.tunnels.links]
        self.metrics.tunnel_links.labels("up").set(states.count(True))
        self.metrics.tunnel_links.labels("down").set(states.count(False))
        for service in self.services.values():
            service.prober.measure_tunnels()

    async def _watch_loop(self) -> None:
        """Measures the event loop's lag, keeps systemd informed, and pets its watchdog while all loops move."""
        period = min(1.0, (self._notifier.watchdog_s or 2.0) / 2)
        while True:
            due = awake.monotonic() + period
            await asyncio.sleep(period)
            late_s = max(0.0, awake.monotonic() - due)
            self.metrics.loop_lag.observe(late_s)
            self._notifier.status(self.summary())
            stalest = HEARTBEATS.stalest()
            if late_s > _STALLED_S:
                self._logger.warning("daemon.stalled", for_s=round(late_s, 1))
            if self.healthy or stalest is None:
                self._notifier.alive()
            else:
                self._logger.error("daemon.wedged", loop=stalest.name, stale_s=round(awake.now() - stalest.at, 1))

    @property
    def _stale_limit_s(self) -> float:
        # A router that is waited for is no fault of ours.
        slowest_s = max((s.settings.router.api_timeout_s for s in self.services.values()), default=0.0)
        return _STALE_S + self.settings.rescan_interval_s + slowest_s

    def _stale_s(self) -> float:
        """How long ago the loop that is most behind made progress."""
        stalest = HEARTBEATS.stalest()
        return 0.0 if stalest is None else awake.now() - stalest.at

    def summary(self) -> str:
        """One line for `systemctl status`."""
        parts = []
        for name, service in self.services.items():
            states = [t.status.state.value for t in service.tenures.values()]
            counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states))) or "no replicas"
            parts.append(f"{name}: {counts}; router {service.router.state.value}")
        return " | ".join(parts)

    # -- reloads

    async def reload(self) -> list[str]:
        """Takes the configuration file in again and touches only what changed; what that was, in words.

        Raises ConfigError, everything left as it was, if the file cannot be used or asks for what needs a restart, and
        NotInForce, what could be done done, if a router or nginx does not serve as it asks for.
        """
        async with self._reload_lock:
            try:
                fresh = load_config(self.config_path)
                fixed = [name for name in _FIXED if getattr(fresh, name) != getattr(self.settings, name)]
                if fixed:
                    cannot = "cannot change while the daemon runs; restart it"
                    raise ConfigError(
                        [f"{self.config_path}:{line_of(self.config_path, name)}: {name}: {cannot}" for name in fixed]
                    )
                prepared = [await prepare() for prepare in self.before_reload]
            except ConfigError as error:
                self.metrics.reloads.labels("refused").inc()
                self._logger.error("config.refused", problems=error.problems)
                raise
            self._notifier.reloading()
            changes, not_in_force = await self._take_in(fresh)
            for take_in in prepared:
                changes += await take_in()
            self._notifier.ready()
            if not_in_force:
                self.metrics.reloads.labels("refused").inc()
                self._logger.error("config.not_in_force", problems=not_in_force, changes=changes)
                raise NotInForce(not_in_force, changes)
            self.metrics.reloads.labels("done").inc()
            self._logger.info("config.reloaded", changes=changes)
            return changes

    def _not_in_force(self) -> list[str]:
        if not self.nginx_supervisor.up:
            return [f"nginx does not run: {self.nginx_supervisor.reason}"]
        return [f"{what}: {why}" for what, why in self.nginx_supervisor.problems.items()]

    async def _take_in(self, fresh: Settings) -> tuple[list[str], list[str]]:
        """What changed, and what of it is not in force, in words."""
        old = {s.name: s for s in self.settings.services}
        new = {s.name: s for s in fresh.services}
        in_force: dict[str, ServiceSettings] = {}
        changes: list[str] = []
        not_in_force: list[str] = []
        if fresh.log != self.settings.log:
            set_up_logs(fresh.log.format, fresh.log.level)
            changes.append("log")
        self.settings = fresh
        for name in old.keys() - new.keys():
            await self._remove(name)
            changes.append(f"{name}: removed")
        for name in new.keys() - old.keys():
            try:
                service = self._add(new[name], prepare=True)
            except ProcessError as error:
                self._logger.error("service.not_added", service=name, reason=str(error))
                not_in_force.append(f"{name}: not added: {error}")
                continue
            self._running[name].task = asyncio.create_task(service.run())
            changes.append(f"{name}: added")
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                changed = [f for f in type(new[name]).model_fields if getattr(old[name], f) != getattr(new[name], f)]
                self.services[name].settings = new[name]
                failure = await self._change(self.services[name], changed)
                if failure:
                    # Not taken over, so that the next reload tries it again and no other use of the settings meets it.
                    in_force[name] = new[name].model_copy(update={"router": old[name].router})
                    self.services[name].reconfigure(in_force[name])
                    changed.remove("router")
                    not_in_force.append(f"{name}: router: {failure}")
                if changed:
                    changes.append(f"{name}: {', '.join(changed)}")
        self.settings = fresh.model_copy(
            update={"services": tuple(in_force.get(s.name, s) for s in fresh.services if s.name in self.services)}
        )
        await self.doors.look(withdraw=False)
        await self.nginx_supervisor.apply()
        await self.doors.look()
        doubtful = [it for it in self.services.values() if it.name not in old or it.router.state is RouterState.REFUSED]
        begun = await asyncio.gather(*map(_why_not_begun, doubtful))
        not_in_force += [f"{it.name}: router: {why}" for it, why in zip(doubtful, begun, strict=True) if why]
        not_in_force += self._not_in_force()
        self.note_change()
        return changes, not_in_force

    async def _change(self, service: Service, changed: list[str]) -> str:
        """Gives a running service its new settings; why its router stays as it was, empty if that was not so."""
        service.reconfigure(service.settings)
        if "replicas" in changed:
            service.reflector.use(self._adapters.source(service.settings))
        if "router" not in changed:
            await service.router.renew_client(self._adapters.router_kind(service.settings))
            return ""
        try:
            await service.slots.replace()
        except RouterUnavailable as error:
            self._logger.error("router.not_replaced", service=service.name, reason=str(error))
            return str(error)
        return ""

    async def _remove(self, name: str) -> None:
        running = self._running[name]
        running.task.cancel()
        with suppress(asyncio.CancelledError):
            await running.task
        # In one go: its routers are written down as a service's, or as departing, at any time.
        del self._running[name]
        self.leases.share_among(self._running)
        for router in running.service.routers:
            if router.process is not None:
                self._departing.end(name, router.process)
        running.service.abandon()
        for router in running.service.routers:
            await router.close_client()
            router.log.close()
        self.metrics.forget_service(name)


async def _why_not_begun(service: Service) -> str:
    """Why the first router of a new service ended at its start; empty if it did not, or takes longer than it should."""
    with suppress(TimeoutError):
        async with within(_FIRST_START_S):
            while service.router.state in (RouterState.STOPPED, RouterState.STARTING):
                await asyncio.sleep(_START_POLL_S)
    ended = service.router.state in (RouterState.REFUSED, RouterState.BACKING_OFF)
    return service.router.reason if ended else ""


async def _end_process(identity: Identity) -> None:
    if (process := Process.adopt(identity)) is not None:
        await process.stop(grace_s=_END_GRACE_S)


def _told_before(leases: Mapping[str, Any]) -> dict[str, list[ReplicaId]]:
    """The replicas that the earlier daemon had because the API was told of them."""
    return {
        str(name): [
            ReplicaId(str(row.get("replica")))
            for row in rows
            if isinstance(row, dict) and row.get("source") == API and not row.get("leaving")
        ]
        for name, rows in leases.get("services", {}).items()
    }
