"""Services of a daemon that are played, and the `Services` that has them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway_sidecar.config import ServiceSettings, Settings
from gateway_sidecar.config.load import parse_config
from gateway_sidecar.control.process.services import ServiceHost, Services
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.model import ReplicaState
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.errors import ProcessError, RouterUnavailable
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import Identity
from gateway_sidecar.telemetry.metrics import Metrics
from tests.smg import SMG
from tests.unit.processes import PlayedProcess

CHAT = "- {name: chat, listen: '127.0.0.1:8000', replicas: {sockets: '/run/chat/{replica}.sock'}}\n"
CODE = "- {name: code, listen: '127.0.0.1:8001', replicas: {sockets: '/run/code/{replica}.sock'}}\n"


def configured(*services: str, head: str = "") -> str:
    """A configuration of these services, as text."""
    return f"{head}run_dir: /run/gateway\nstate_dir: /var/gateway\nservices:\n" + "".join(services)


def settings_of(*services: str) -> Settings:
    return parse_config(configured(*services))


class PlayedRouter:
    """The router of a service, and its process."""

    def __init__(self, service: str, pid: int) -> None:
        self.service = self.slot = service
        self.process = PlayedProcess(pid)
        self.pid = pid
        self.ports = RouterPorts(23001, 23002)
        self.state, self.reason = RouterState.UP, ""
        self.is_let_go = False
        self.trouble = ""
        self.adopted: list[SavedRouter] = []
        self.kinds = 0
        self.kind, self.setup = "smg", SMG
        self.log = self
        self.is_nginx = False

    @property
    def up(self) -> bool:
        return self.state is RouterState.UP

    async def adopt(self, saved: SavedRouter, identity: Identity, setup: object) -> bool:
        self.adopted.append(saved)
        return True

    async def renew_client(self, setup: object) -> None:
        self.kinds += 1

    async def close_client(self) -> None:
        return

    async def stop(self, grace_s: float) -> None:
        self.process.end()

    async def detach(self) -> None:
        self.is_let_go = True

    async def read(self) -> list[str]:
        """Of its log, as is what follows."""
        return []

    def close_log(self) -> None:
        return


class PlayedService:
    """Remembers what became of it. `refuses`: its router cannot be replaced; `no_ports`: it cannot be prepared."""

    def __init__(self, settings: ServiceSettings, number: int) -> None:
        self.settings = settings
        self.name = settings.name
        self.router = PlayedRouter(settings.name, 100 + number)
        self.routers = [self.router]
        self.has_looked = True
        self.tenures: dict[int, Any] = {}
        self.refuses = self.no_ports = False
        self.sources = 0
        self.replaced = self.kept = 0
        self.is_abandoned = False
        self.asked_again = self.measured = 0
        self.running = asyncio.Event()
        self.fault: Exception | None = None
        self.hold_policy = SimpleNamespace(models=["tiny"], restore=lambda _: None)
        self.slots = self.reflector = self.prober = self.restoring = self.bridges = self.hold = self
        self.tunnels = self
        self.waiting, self.missing = 0, None
        self.endpoints = SimpleNamespace(withdraw=_nothing)
        self.drains = SimpleNamespace(places_to_count=set, connections_counted=lambda *_: None)

    async def run(self) -> None:
        self.running.set()
        while self.fault is None:
            await asyncio.sleep(1)
        raise self.fault

    def has(self, state: ReplicaState, tunnel: Tunnel | None = None) -> None:
        """One replica more, in this state."""
        self.tenures[len(self.tenures)] = SimpleNamespace(
            status=SimpleNamespace(state=state), sighting=SimpleNamespace(tunnel=tunnel), gone=False
        )

    def prepare(self) -> None:
        if self.no_ports:
            raise ProcessError("no ports")

    def begin_in(self, slot: str, _kind: str) -> None:
        """Its router is started there."""

    def repair(self, *_: object) -> bool:
        return False

    def note_memory(self, rss: int) -> None:
        """Of its router."""

    @property
    def kinds(self) -> list[str]:
        return [self.settings.router.type]

    def addresses(self) -> tuple[str, str]:
        return "127.0.0.1:1", "127.0.0.1:2"

    def reconfigure(self, settings: ServiceSettings) -> None:
        self.settings = settings

    def use(self, source: object) -> None:
        self.sources += 1

    async def replace(self) -> None:
        if self.refuses:
            raise RouterUnavailable("its arguments are refused")
        self.replaced += 1

    def note_kept(self) -> None:
        self.kept += 1

    def abandon(self) -> None:
        self.is_abandoned = True

    def saved(self) -> list[Any]:
        return []

    def owing(self) -> list[Any]:
        return []

    def tunnels_changed(self) -> None:
        self.asked_again += 1

    def measure(self) -> None:
        self.measured += 1


class PlayedAdapters:
    """Makes such services. `without_ports`: names of those that cannot be prepared."""

    def __init__(self) -> None:
        self.made: list[PlayedService] = []
        self.without_ports: set[str] = set()

    def service(self, settings: ServiceSettings, host: ServiceHost) -> Any:
        self.made.append(PlayedService(settings, len(self.made)))
        self.made[-1].no_ports = settings.name in self.without_ports
        return self.made[-1]

    def source(self, settings: ServiceSettings) -> Any:
        return object()

    def router_setup(self, settings: ServiceSettings, kind: str) -> Any:
        return object()


class Fleet:
    """Services that run, and what they share."""

    def __init__(self, *services: str) -> None:
        self.metrics = Metrics()
        self.adapters = PlayedAdapters()
        self.leases = PortLeases(range(24001, 24011))
        self.settings = settings_of(*services)
        self.departing = RetiredRouters(Tasks("-", self.metrics), lambda: None)
        host = ServiceHost(lambda: None, _nothing, _nothing)
        self.services = Services(self.adapters, host, self.leases, self.departing, self.metrics)
        for each in self.settings.services:
            self.services.add(each)
            self.services.start(each.name)

    def of(self, name: str) -> PlayedService:
        return cast("PlayedService", cast("Any", self.services.by_name()[name]))


async def _nothing(*_: object) -> None:
    return None
