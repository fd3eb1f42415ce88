"""Whether a load balancer should send requests here: to the gateway as a whole, each service and each shared address.

nginx answers that question at each address by itself, by the files of `ReadyMarks`. What is not known changes none of
them: a daemon that has just begun leaves them as the last one did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway_sidecar.control.edge.nginx_supervisor import NginxSupervisor
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.routers.router import RouterState
from gateway_sidecar.control.service import Service
from gateway_sidecar.nginx.ready_marks import ReadyMarks
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problem

_SOON_S = 0.25
"""While something is not ready: others wait for it."""
LEAVING = "the gateway is leaving"
_UNDECIDED = (RouterState.STOPPED, RouterState.STARTING)


class Readiness:
    """Judges, and has nginx say so. A service without replicas is ready: its requests wait here as they would anywhere.

    is_leaving: whether the gateway is; then nothing is ready, and all is served.
    """

    def __init__(
        self,
        services: Services,
        supervisor: NginxSupervisor,
        is_leaving: Callable[[], bool],
        problem: Problem,
        metrics: Metrics,
    ) -> None:
        self._services = services
        self._supervisor = supervisor
        self._is_leaving = is_leaving
        self._problem = problem
        self._metrics = metrics
        self._touched = asyncio.Event()
        self._were_up: set[str] = set()
        """Services whose routers this daemon has seen up."""
        self._logger = get_logger()

    @property
    def _marks(self) -> ReadyMarks:
        return self._supervisor.nginx.ready_marks

    @property
    def is_leaving(self) -> bool:
        """Whether the gateway is leaving; all is served meanwhile."""
        return self._is_leaving()

    @property
    def names(self) -> list[str]:
        """Whom one may ask about: services and shared addresses."""
        return sorted([*self._services.by_name(), *(it.name for it in self._services.shared)])

    @property
    def ready(self) -> bool:
        """Whether the gateway and each service are."""
        return not any(self.objection(name) for name in self._services.by_name())

    def objection(self, name: str) -> str:
        """Why no requests for a service or shared address should come here; empty if they should. Raises KeyError."""
        lacking = self._unserved(name) or self._lacking(name)
        return LEAVING if self._is_leaving() else lacking

    def touch(self) -> None:
        """Something may be ready now, or not any more."""
        self._touched.set()

    def begin(self, *, afresh: bool) -> None:
        """Before nginx serves: where none ran before, nothing is ready until it has been looked at."""
        if afresh:
            for name in self.names:
                self._mark(name, ready=False)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            self._touched.clear()
            self.look()
            await awake.until_set(self._touched, LOOK_S if self.ready else _SOON_S)

    def look(self) -> None:
        """Has nginx say of each what holds now; what nobody knows yet stays as it is."""
        services = self._services.by_name()
        self._were_up = {name for name, it in services.items() if it.router.up or name in self._were_up}
        try:
            for name in self.names:
                if self._is_known(name):
                    self._mark(name, ready=not self._lacking(name))
            self._marks.keep_only(set(self.names))
        except OSError as error:
            self._problem.set(f"{error.filename}: {error.strerror}; load balancers are answered as before")
        else:
            self._problem.set("")

    def _mark(self, name: str, *, ready: bool) -> None:
        if self._marks.mark(name, ready=ready):
            self._logger.info(
                "service.ready" if ready else "service.not_ready", service=name, reason=self._lacking(name)
            )
        self._metrics.service_ready.labels(name).set(ready and not self.objection(name))

    def _lacking(self, name: str) -> str:
        """What nginx is told of one: not whether it has an address, for nobody can ask there, and of a gateway that is
        leaving it is told once for all. Raises KeyError.
        """
        services = self._services.by_name()
        if (service := services.get(name)) is not None:
            return _lacks_inside(service)
        # A shared address is ready while one of its services is: others' requests wait, or go to their fallback.
        lacking = [_lacks_inside(it) for it in self._behind(name)]
        return f"none of its services is ready: {lacking[0]}" if lacking and all(lacking) else ""

    def _behind(self, name: str) -> list[Service]:
        """The services of a shared address. Raises KeyError."""
        services = self._services.by_name()
        addresses = {it.name: it for it in self._services.shared}
        return [services[it] for it in addresses[name].services if it in services]

    def _is_known(self, name: str) -> bool:
        """A router that an earlier daemon left, and sources, prove nothing before they were looked at."""
        services = self._services.by_name()
        behind = [services[name]] if name in services else self._behind(name)
        return self._supervisor.applied is not None and all(
            it.has_looked and (it.name in self._were_up or it.router.state not in _UNDECIDED) for it in behind
        )

    def _unserved(self, name: str) -> str:
        if not self._supervisor.up:
            return f"nginx is down: {self._supervisor.reason}"
        return "nginx serves no address for it" if name in self._supervisor.unserved else ""


def _lacks_inside(service: Service) -> str:
    if not service.has_looked:
        return f"{service.name} has not looked at its replicas yet"
    return "" if service.router.up else f"the router of {service.name} is {service.router.state.value}"
