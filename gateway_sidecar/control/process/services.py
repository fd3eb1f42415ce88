"""The services that run: added, given new settings, removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gateway_sidecar.config import AddressSettings, FrontendSettings, ServiceSettings
from gateway_sidecar.control.edge.destinations import hosts_of
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.routers.router import Router
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.routing import RouterPaths
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.errors import RouterUnavailable
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.config import ServiceAddress, shared_address
from gateway_sidecar.routers.base import RouterRules
from gateway_sidecar.sources.listing import Listing, Source
from gateway_sidecar.supervision.loops import cancelled
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ServiceHost:
    """What a service needs of the daemon it runs in.

    touch: called when there is something new to write down.
    move_address: makes nginx serve a service's address for its routers as they are now. Raises RouterUnavailable.
    write_down: writes down at once what runs, if it can soon.
    """

    touch: Callable[[], None]
    move_address: Callable[[str], Awaitable[None]]
    write_down: Callable[[], Awaitable[None]]


class Adapters(Protocol):
    """Builds the parts of a service from its settings."""

    def service(self, settings: ServiceSettings, host: ServiceHost) -> Service: ...

    def source(self, settings: ServiceSettings) -> Source: ...

    def router_setup(self, settings: ServiceSettings, kind: str) -> RouterRules: ...


class Services:
    """All services of the daemon, and their tasks."""

    def __init__(
        self, adapters: Adapters, host: ServiceHost, leases: PortLeases, departing: RetiredRouters, metrics: Metrics
    ) -> None:
        self._adapters = adapters
        self._host = host
        self._leases = leases
        self._departing = departing
        self._metrics = metrics
        self._logger = get_logger()
        self._services: dict[str, Service] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.shared: Sequence[AddressSettings] = ()

    # -- what there is

    def by_name(self) -> Mapping[str, Service]:
        """Service name -> service, as they are now."""
        return dict(self._services)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """Of those that run; none of them ends by itself."""
        return list(self._tasks.values())

    @property
    def routers(self) -> list[Router]:
        """The routers of all."""
        return [router for service in self._services.values() for router in service.routers]

    @property
    def have_looked(self) -> bool:
        """Whether each has seen everybody who is there once."""
        return all(service.has_looked for service in self._services.values())

    @property
    def tunnels(self) -> set[Tunnel]:
        """The tunnels that replicas need; one that is gone needs its own until it has drained."""
        tenures = (tenure for service in self._services.values() for tenure in service.tenures.values())
        return {tenure.sighting.tunnel for tenure in tenures if tenure.sighting.tunnel is not None}

    def may_have_in_flight(self, name: str) -> bool:
        """Whether connections of a service that was removed may be open: a port of it rests until there are none."""
        return self._leases.held_by(name) > 0

    def frontends(self) -> dict[str, FrontendSettings]:
        """What the frontend of each service, and of each shared address, is to be."""
        own = {name: service.settings.frontend for name, service in self._services.items()}
        return own | {it.name: it.frontend for it in self.shared}

    def addresses(self) -> list[ServiceAddress]:
        """What nginx is to serve."""
        own = {name: _address_of(service) for name, service in self._services.items()}
        return [*own.values(), *(shared_address(it, own) for it in self.shared)]

    def hosts(self) -> dict[str, str]:
        """Where the daemon itself has to get to: name or address -> what is there."""
        here = (t for service in self._services.values() for t in service.tenures.values() if not t.gone)
        tunnels = {t.sighting.tunnel for t in here if t.sighting.tunnel is not None}
        return hosts_of(list(tunnels), [service.settings for service in self._services.values()], self.shared)

    async def listing_by(self, settings: ServiceSettings) -> Listing:
        """The replicas that a service would have with these settings."""
        return await self._adapters.source(settings).look()

    # -- what becomes of them

    def share(self, addresses: Sequence[AddressSettings]) -> None:
        """These are the shared addresses from now on; nginx is to be told."""
        for gone in {it.name for it in self.shared} - {it.name for it in addresses}:
            self._metrics.forget_service(gone)
        self.shared = tuple(addresses)

    def add(self, settings: ServiceSettings, *, prepare: bool = False) -> Service:
        """One more service, not running yet. Raises ProcessError, nothing added, if it cannot be prepared."""
        service = self._adapters.service(settings, self._host)
        if prepare:
            service.slots.prepare()
        self._services[settings.name] = service
        self._leases.share_among(self._services)
        held = self._metrics.service_bridge_ports.labels(settings.name)
        held.set_function(partial(self._leases.held_by, settings.name))
        return service

    def start(self, *names: str) -> None:
        """Begins to run these."""
        for name in names:
            self._tasks[name] = asyncio.create_task(self._services[name].run())

    async def change(self, settings: ServiceSettings, changed: list[str]) -> str:
        """Gives a running service its new settings; why its router stays as it was, empty if that was not so."""
        service = self._services[settings.name]
        before = service.settings
        service.reconfigure(settings)
        if "replicas" in changed:
            service.reflector.use(self._adapters.source(settings))
        if "router" not in changed:
            await service.router.renew_client(self._adapters.router_setup(settings, settings.router.type))
            return ""
        try:
            await service.slots.replace()
        except RouterUnavailable as error:
            self._logger.error("router.not_replaced", service=service.name, reason=str(error))
            # Not taken over, so that the next reload tries it again and no other use of the settings meets it.
            service.reconfigure(settings.model_copy(update={"router": before.router}))
            return str(error)
        return ""

    def keep_router(self, name: str) -> None:
        """The configuration asks for this service's router as it is."""
        self._services[name].slots.note_kept()

    async def remove(self, name: str) -> None:
        """It is no more: its routers end in the background, and its ports rest."""
        await cancelled(self._tasks.pop(name))
        # In one go: its routers are written down as a service's, or as departing, at any time.
        service = self._services.pop(name)
        self._leases.share_among(self._services)
        for router in service.routers:
            if router.process is not None:
                self._departing.end(name, router.process)
        await service.endpoints.withdraw()
        service.abandon()
        for router in service.routers:
            if router.is_nginx:
                await router.stop(grace_s=0)  # A later service of this name must not find these engines.
            await router.close_client()
            router.close_log()
        self._metrics.forget_service(name)


def _address_of(service: Service) -> ServiceAddress:
    kinds, settings = [ROUTERS[kind] for kind in service.slots.kinds], service.settings
    return ServiceAddress(
        service.name,
        str(settings.listen),
        *service.slots.addresses(),
        RouterPaths.of_all(kind.paths_of(settings) for kind in kinds),
        tuple(kind.headers for kind in kinds),
        settings.frontend,
        hold_s=max(settings.hold.timeout_s, settings.hold.asleep_s),
    )
