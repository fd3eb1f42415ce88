"""The daemon: its services, what they share, what it writes down, and how it comes and goes.

It may die at any line. nginx, the routers and every stream go on, and the next start takes them up again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gateway_sidecar import __version__
from gateway_sidecar.config import AcmeSettings, AddressSettings, FrontendSettings, ServiceSettings, Settings
from gateway_sidecar.config.places import acme_in
from gateway_sidecar.control.autoscaling.collector import Signals
from gateway_sidecar.control.autoscaling.last_hour import LastHour
from gateway_sidecar.control.edge.acme_host import AcmeHost
from gateway_sidecar.control.edge.certificates import Certificates
from gateway_sidecar.control.edge.frontends import Frontends
from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.edge.quotas import Quotas, nowhere
from gateway_sidecar.control.edge.used_up import UsedUp
from gateway_sidecar.control.process.adoption import Adoption
from gateway_sidecar.control.process.child_logs import ChildLogs
from gateway_sidecar.control.process.connection_counter import ConnectionCounter, kernel_and_nginx
from gateway_sidecar.control.process.file_on_disk import FileOnDisk
from gateway_sidecar.control.process.in_fleet import InFleet
from gateway_sidecar.control.process.leaving import LeaveHost, Leaving
from gateway_sidecar.control.process.left_running import LeftRunning
from gateway_sidecar.control.process.readiness import Readiness
from gateway_sidecar.control.process.reload import Prepare, Reload
from gateway_sidecar.control.process.run_dir_repair import RunDirRepair
from gateway_sidecar.control.process.services import Adapters, ServiceHost, Services
from gateway_sidecar.control.process.shared import Shared, measure_ports
from gateway_sidecar.control.process.shutdown import DEFAULT_STOP_S, Shutdown
from gateway_sidecar.control.process.traffic_watch import TrafficWatch
from gateway_sidecar.control.process.tunnel_demand import TunnelDemand
from gateway_sidecar.control.process.watchdog import Watchdog
from gateway_sidecar.control.process.written_down import WrittenDown, api_replicas_before
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state.event_file import EventFile
from gateway_sidecar.errors import ConfigError, NginxError, NotInForce, ProcessError, RouterUnavailable
from gateway_sidecar.frontend.acme_state import AcmeState
from gateway_sidecar.nginx.access_events import EventAddress
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.connections import waiting_at
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.notify import SystemdNotifier
from gateway_sidecar.telemetry.journal import JOURNAL
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_LOOK_S = 5.0
"""How often the loops of services that came since are watched, too."""

Close = Callable[[], Awaitable[None]]


class Daemon:
    """All services of one gateway."""

    def __init__(
        self, config_path: Path, settings: Settings, shared: Shared, adapters: Adapters, metrics: Metrics
    ) -> None:
        nginx = shared.nginx
        self.metrics = metrics
        self.shared = shared
        self._logger = get_logger()
        self._notifier = SystemdNotifier()
        self._tasks = Tasks("-", metrics)
        self._reloads = Tasks("-", metrics)
        self._departing = RetiredRouters(self._tasks, self.touch)
        host = ServiceHost(self.touch, self._move_address, self._write_down)
        self._setup_of = adapters.router_setup
        self._services = Services(adapters, host, shared.leases, self._departing, metrics)
        services = self._services.by_name
        rescan_interval_s = settings.rescan_interval_s
        shared.destinations.use(self._services.hosts, shared.peers.recheck_soon)
        self._written = WrittenDown(settings, shared, self._services, self._departing, self._leave, metrics)
        self._events = EventFile(settings.state_dir, JOURNAL, shared.problems.of("events"), metrics)
        self._tunnels = TunnelDemand(shared.tunnels, self._services, metrics)
        elsewhere = nowhere if shared.fleet is None else shared.fleet.usage.elsewhere
        self.quotas = Quotas(shared.usage, self._frontends_wanted, metrics, elsewhere=elsewhere)
        used_up = UsedUp(nginx.frontends, shared.usage, self._frontends_wanted)
        self.nginx_supervisor = NginxSupervisor(nginx, self._addresses, metrics, self.touch, used_up.tell)
        self.run_dir = RunDirRepair(
            self.nginx_supervisor, services, shared.problems.of("run_dir"), interval_s=rescan_interval_s
        )
        shared_acme = None if shared.fleet is None else shared.fleet.acme
        acme = AcmeHost(
            self._acme, self._services.frontends, self._frontends_in_force, self._take_in_certificate, shared_acme
        )
        state = AcmeState(acme_in(settings.state_dir)) if shared_acme is None else shared_acme.state
        self.certificates = Certificates(state, nginx.frontends, acme, metrics)
        self.frontends = Frontends(
            nginx.frontends,
            self._frontends_wanted,
            self._frontends_served,
            metrics,
            rescan_interval_s=rescan_interval_s,
        )
        self._reload = Reload(config_path, settings, self._services, self.nginx_supervisor, self.frontends, metrics)
        self._reload.include(self.certificates.prepare)
        self.readiness = Readiness(
            self._services, self.nginx_supervisor, self._is_leaving, shared.problems.of("readiness"), metrics
        )
        self.file = FileOnDisk(config_path, self._reload)
        self._watchdog = Watchdog(self._services, self._reload, self._notifier, metrics)
        self.signals = Signals(services, self._events_at, self._is_leaving, metrics, works_alone=shared.fleet is None)
        self.last_hour = LastHour(self.signals.of)
        host_of_leave = LeaveHost(
            self._services.addresses, self.signals.last_request, self.touch, self._write_down, self.end
        )
        self.leaving = Leaving(self.nginx_supervisor, host_of_leave, self._reload, metrics)
        hosts = nginx.bridge_hosts
        self._counter = ConnectionCounter(services, shared.leases, kernel_and_nginx(nginx.in_flight, hosts))
        self._traffic = TrafficWatch(services, self.signals, partial(waiting_at, hosts=hosts))
        self._child_logs = ChildLogs(services, nginx, shared.peers.log, shared.problems, metrics)
        self._ending = asyncio.Event()
        self.taken_up = asyncio.Event()
        self._stop_all = False
        self._shutdown = Shutdown(shared, self._services, self._departing, self.frontends, self._written)
        self.in_fleet = InFleet(
            shared.fleet, self._services, self._standing, self.flush_leases, self._tasks, self.signals.of
        )
        self.ended_by_command = False
        measure_ports(shared.leases, metrics)

    # -- what others see

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._reload.settings

    @property
    def services(self) -> Mapping[str, Service]:
        """Service name -> service."""
        return self._services.by_name()

    @property
    def addresses(self) -> Sequence[AddressSettings]:
        """The shared addresses."""
        return self._services.shared

    @property
    def healthy(self) -> bool:
        """Whether every loop makes progress."""
        return self._watchdog.behind is None

    @property
    def takes_all_down(self) -> bool:
        """Whether the routers and nginx end with it."""
        return self._stop_all

    @property
    def ready(self) -> bool:
        """Whether nginx runs and each service has an address, a router that answers, and looked at its replicas."""
        return self.readiness.ready and not self.nginx_supervisor.unserved

    async def listing_by(self, settings: ServiceSettings) -> Listing:
        """The replicas that a service would have with these settings."""
        return await self._services.listing_by(settings)

    def summary(self) -> str:
        """One line of what runs."""
        return self._watchdog.summary()

    def touch(self) -> None:
        """Something that is written down has changed."""
        self._written.touch()
        self._tunnels.touch()
        self._counter.touch()
        self.nginx_supervisor.touch()
        self.readiness.touch()

    async def flush_leases(self) -> None:
        """What was just decided about a replica outlives this daemon, or `status` says that it cannot be written."""
        if self.taken_up.is_set():  # Until then the file has what we have not.
            await self._written.flush_leases()

    # -- life

    async def run(self, serve: Callable[[Daemon], Awaitable[Close]]) -> None:
        """Runs until `end` is called. `serve` opens the admin and metrics listeners and returns what closes them.

        Raises NginxError if nginx cannot be started at all.
        """
        processes, leases = await self._written.read()
        await self.shared.api.load(api_replicas_before(leases))
        await self.in_fleet.load()
        for settings in self.settings.services:
            self._services.add(settings)
        self._services.share(self.settings.addresses)
        # Before nginx: an address that is taken ends us here, with nothing begun, and the first client that has to
        # wait finds the hold there.
        close_listeners = await serve(self)
        try:
            await self._take_up(processes, leases)
        except (NginxError, ProcessError, OSError):
            await close_listeners()
            raise
        self.taken_up.set()
        background = [
            self._tasks.run_forever(loop)
            for loop in (
                *self._written.loops,
                self._events.run,
                self.file.run,
                self.nginx_supervisor.run,
                self.shared.api.run,
                self.readiness.run,
                self.shared.usage.run,
                self.quotas.run,
                self.leaving.run,
                self.frontends.run,
                self.certificates.run,
                self.run_dir.run,
                self.shared.peers.run,
                self.shared.destinations.run,
                self.shared.keys.run,
                self._counter.run,
                self._traffic.run,
                self._child_logs.run,
                self._watchdog.run,
                self._tunnels.run,
                self._tunnels.follow,
                self.signals.run,
                *self.in_fleet.loops,
                *((self.last_hour.run,) if self.settings.metrics.has_page else ()),
            )
        ]
        if self.leaving.stops:
            self.leaving.stop()  # The last daemon ended just then: nothing is worth to be started again.
        else:
            self._services.start(*self.services)
        self._notifier.ready()
        self._logger.info("daemon.started", version=__version__, services=list(self.services))
        try:
            await self._until_ending(background)
        finally:
            self._notifier.stopping(within_s=self._shutdown.timeout_s if self._stop_all else 0.0)
            await close_listeners()
            await self._end(background)

    def end(self, *, stop_all: bool, timeout_s: float = DEFAULT_STOP_S, by_command: bool = False) -> None:
        """Ends the daemon; with `stop_all` also the routers and nginx, else they go on for the next daemon.

        timeout_s: how long they may take for what is in flight. Asked again, all is ended at once.
        """
        if self._ending.is_set():
            self._shutdown.at_once.set()
        self.ended_by_command |= by_command
        self._stop_all |= stop_all
        self._shutdown.allow(timeout_s)
        self._ending.set()

    async def reload(self) -> list[str]:
        """Takes the configuration file in again; what changed, in words. Raises ConfigError, NotInForce."""
        try:
            return await self._reload.reload(self._notifier)
        finally:
            await self.file.look()
            self.touch()

    def reload_soon(self) -> None:
        """As `reload`, for who waits for no answer."""
        self._reloads.spawn(self._reload_unheard())

    async def _reload_unheard(self) -> None:
        with suppress(ConfigError, NotInForce):  # It is logged and counted; what was in force before stays.
            await self.reload()

    def reload_too(self, prepare: Prepare) -> None:
        """Has something else read again with the configuration."""
        self._reload.include(prepare)

    async def _until_ending(self, background: list[asyncio.Task[None]]) -> None:
        ending = asyncio.create_task(self._ending.wait())
        while not ending.done():
            loops = [*background, *self._services.tasks]
            done, _ = await asyncio.wait([*loops, ending], return_when=asyncio.FIRST_COMPLETED, timeout=_LOOK_S)
            for task in done - {ending}:
                if not task.cancelled():
                    task.result()  # A loop never ends by itself: let its error end us, and systemd start us again.

    async def _end(self, background: list[asyncio.Task[None]]) -> None:
        await self._reloads.close()  # It would go on to start what nobody ends.
        tasks = [*background, *self._services.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._stop_all:
            await self.in_fleet.while_stopping(self._shutdown.run(self._services.routers))
        await self.in_fleet.close(leaves=self._stop_all)
        await self.shared.usage.collect_last()
        if not self._stop_all:
            await self._written.write_all()
            for router in self._services.routers:
                await router.detach()
            await self._departing.detach()
            await self.shared.tunnels.detach()
            if self.shared.nginx.process is not None:
                self.shared.nginx.process.detach()
            self.shared.peers.detach()
            self.shared.keys.detach()
        self._logger.info("daemon.stopped", left_running=not self._stop_all)
        await self._events.write()

    async def end_left(self, left: LeftRunning, *, timeout_s: float) -> None:
        """Ends what an earlier daemon left, in the order and with the patience of `end`. For a daemon that never runs.

        Raises OSError where the directories cannot be used, NginxError where addresses could not be given back.
        """
        self._shutdown.allow(timeout_s)
        await self._shutdown.end_left(left, self.settings)

    async def _take_up(self, processes: dict[str, Any], leases: dict[str, Any]) -> None:
        self.shared.nginx.prepare()
        await self.frontends.look(withdraw=False)
        await asyncio.to_thread(self.shared.tunnels.prepare)
        adoption = Adoption(
            self.settings,
            self._services.by_name,
            self.nginx_supervisor,
            self.shared.leases,
            self._departing,
            self._setup_of,
        )
        self.leaving.begin(processes)
        self.readiness.begin(afresh=not processes.get("nginx"))
        await adoption.take_routers(processes)
        await adoption.take_bridge(processes)
        # Not the leases: they are taken up below, and until then the file has what we have not.
        await self._written.write_processes()
        await self.shared.peers.begin(self._have_looked)
        await self.shared.keys.begin(self._have_looked)
        await adoption.take_tenures(leases)
        self.in_fleet.recall_ports(leases)

    def _standing(self) -> Mapping[str, Any]:
        from gateway_sidecar.config.alike import alike_of  # A gateway that works alone imports none of it.

        leaving = self.leaving.is_on or self._stop_all
        return {"ready": self.ready, "leaving": leaving, "alike": alike_of(self.settings)}

    def _have_looked(self) -> bool:
        return self._services.have_looked

    def _is_leaving(self) -> bool:
        return self.leaving.is_on

    def _leave(self) -> Mapping[str, object] | None:
        return self.leaving.saved()

    async def _move_address(self, service: str) -> None:
        await self.nginx_supervisor.apply()
        if not self.nginx_supervisor.knows_routers(service):
            raise RouterUnavailable(f"nginx does not know of it: {self.nginx_supervisor.reason}")

    async def _write_down(self) -> None:
        await self._written.write_soon()

    def _events_at(self) -> EventAddress | None:
        return self.shared.nginx.events

    def _addresses(self) -> list[ServiceAddress]:
        if self.leaving.refuses:
            return []
        return [
            replace(it, client_ca=self.frontends.client_ca(it.service))
            if it.frontend.tls is not None and it.frontend.tls.client_ca is not None
            else it
            for it in self._services.addresses()
        ]

    def _frontends_in_force(self) -> dict[str, FrontendSettings] | None:
        if self.nginx_supervisor.applied is None:
            return None
        return {address.service: address.frontend for address in self.nginx_supervisor.applied}

    def _acme(self) -> AcmeSettings | None:
        return self.settings.acme

    def _take_in_certificate(self) -> None:
        self.frontends.look_soon()

    def _frontends_wanted(self) -> dict[str, FrontendSettings]:
        return self.certificates.with_files(self._services.frontends())

    def _frontends_served(self) -> dict[str, FrontendSettings] | None:
        in_force = self._frontends_in_force()
        return None if in_force is None else self.certificates.with_files(in_force)
