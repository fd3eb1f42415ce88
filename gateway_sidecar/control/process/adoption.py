"""Adopts what an earlier daemon left: nginx, routers, ports, tenures. Records are hints; the living processes
decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_sidecar.config import ServiceSettings, Settings
from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.errors import StateError
from gateway_sidecar.nginx.connections import open_connections
from gateway_sidecar.routers.base import RouterRules
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, Process, boot_id, writers_below, writers_of
from gateway_sidecar.telemetry.logs import get_logger


class Adoption:
    """What an earlier daemon left, for all services.

    departing: ends the routers without a service.
    setup_of: how a service's router of some kind is talked to.
    """

    def __init__(
        self,
        settings: Settings,
        services: Callable[[], Mapping[str, Service]],
        supervisor: NginxSupervisor,
        leases: PortLeases,
        departing: RetiredRouters,
        setup_of: Callable[[ServiceSettings, str], RouterRules],
    ) -> None:
        self._directories = settings.state_dir, settings.run_dir
        self._services = services
        self._supervisor = supervisor
        self._nginx = supervisor.nginx
        self._leases = leases
        self._departing = departing
        self._setup_of = setup_of
        self._logger = get_logger()

    async def take_routers(self, processes: Mapping[str, Any]) -> None:
        """Adopts the living routers, ends those without a service, and decides on all ports.

        Raises ProcessError if there are no ports.
        """
        running = await asyncio.to_thread(_writers_of_routers, *self._directories)
        for name, service in self._services().items():
            await self._adopt_routers(service, processes.get("routers", {}).get(name, []), running)
            service.slots.prepare()
        balanced = {service.router.slot for service in self._services().values() if service.router.is_nginx}
        self._nginx.endpoints.keep_only(balanced)
        self._end_leftovers(processes, running)

    async def take_bridge(self, processes: Mapping[str, Any]) -> None:
        """Adopts nginx, or starts it. Raises NginxError."""
        try:
            nginx = processes.get("nginx")
            earlier = records.identity_from_json(nginx) if nginx else None
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            earlier = None
        unrecorded = await asyncio.to_thread(writers_of, *self._nginx.log.places)
        await self._supervisor.begin([*([earlier] if earlier else []), *unrecorded])

    async def take_tenures(self, leases: Mapping[str, Any]) -> None:
        """Restores the owner of each port. A port without an owner rests until it is quiet, if it is linked or in
        use.
        """
        links = self._nginx.linked()
        services = self._services()
        for name, service in services.items():
            service.hold_policy.restore([str(model) for model in leases.get("models", {}).get(name, [])])
        if leases.get("boot_id", boot_id()) != boot_id():
            self._after_reboot(leases, links)
            return
        in_use = await asyncio.to_thread(open_connections, self._leases, hosts=self._nginx.bridge_hosts)
        in_use.update(self._nginx.in_flight.count())
        for name, service in services.items():
            for row in leases.get("services", {}).get(name, []):
                try:
                    saved = records.tenure_from_json(row)
                except StateError as error:
                    self._logger.warning("state.ignored", service=name, reason=str(error))
                    continue
                link = links.pop(saved.port, None) if saved.port is not None else None
                if saved.port is None or link == saved.sighting.place:
                    service.restoring.restore(saved, linked=link is not None)
                else:
                    # Unbridged: it was leaving, or drained. Its port is still somebody's until that is seen through.
                    if link is not None:
                        self._nginx.unlink(saved.port)
                    service.restoring.restore(replace(saved, leaving=saved.leaving or not saved.drain), linked=False)
        for port, socket in list(links.items()):
            # A lease that the last daemon had no time to write down: its link tells enough.
            if any(service.restoring.claim(port, socket, self._nginx.linked_at(port)) for service in services.values()):
                del links[port]
        late_until = awake.now() + max((it.router.setup.late_s for it in services.values()), default=0.0)
        for port in links:
            # Nobody's any more: nothing new may come in, and the port rests until it is quiet.
            self._nginx.unlink(port)
        try:
            resting = records.resting_from_json(leases)
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            resting = []
        theirs = {port: service for port, _, service in resting}
        for port in links.keys() | in_use.keys():
            self._leases.quarantine(port, late_until, service=theirs.get(port, ""))
        for port, until, service_name in resting:
            self._leases.quarantine(port, min(late_until, until), service=service_name)

    def _after_reboot(self, leases: Mapping[str, Any], links: Mapping[int, Path]) -> None:
        """Nothing in the record lives any more and no connection is open: only the ports are kept as a preference."""
        for port in links:
            self._nginx.unlink(port)
        for name, service in self._services().items():
            for row in leases.get("services", {}).get(name, []):
                try:
                    service.restoring.prefer(records.tenure_from_json(row))
                except StateError as error:
                    self._logger.warning("state.ignored", service=name, reason=str(error))

    async def _adopt_routers(self, service: Service, rows: list[Any], running: Mapping[Identity, str]) -> None:
        """Takes up the router that the service address leads to; one that was leaving goes on leaving.

        One that was being started when it was written down is found among those `running`: process -> slot.
        """
        in_service, kind = self._nginx.pointed(service.name), service.router.kind
        service.slots.begin_in(in_service, kind)  # There it is started, should it be gone: another may leave the other.
        for row in rows:
            try:
                saved = records.router_from_json(row)
                setup = self._setup_of(service.settings, saved.kind)
            except StateError as error:
                self._logger.warning("state.ignored", service=service.name, reason=str(error))
                continue
            if saved.slot == in_service and service.router.is_nginx:
                service.slots.begin_in(in_service, saved.kind)  # A process goes on until nginx takes its place.
            its_own = [identity for identity, slot in running.items() if slot == saved.slot]
            for identity in its_own if saved.identity is None else [saved.identity]:
                adopt = service.router.adopt if saved.slot == in_service else service.slots.adopt_leaving
                if await adopt(saved, identity, setup):
                    break
        if service.router.process is None:
            service.slots.begin_in(in_service, kind)

    def _end_leftovers(self, processes: Mapping[str, Any], running: Mapping[Identity, str]) -> None:
        """Ends routers without a service: those of removed services, and those whose start was not recorded, whose keys
        are lost. They are found by their output, not by the records.
        """
        services = self._services()
        kept = {router.pid for service in services.values() for router in service.routers}
        found = {**records.departing_from_json(processes, still_there=services), **running}
        for identity, service in found.items():
            process = None if identity.pid in kept else Process.adopt(identity)
            if process is not None:
                self._logger.warning("router.leftover_stopped", service=service, pid=process.pid)
                self._departing.end(service, process)


def _writers_of_routers(*directories: Path) -> dict[Identity, str]:
    """Processes whose output is a router's log, and that router's slot. Blocks."""
    return {
        identity: log.removeprefix("router-").removesuffix(".log")
        for directory in directories
        for log, writers in writers_below(directory / "log").items()
        for identity in writers
        if log.startswith("router-")
    }
