"""nginx as the router: it balances by itself over the bridges that it is told, and there is no process to keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.routers.router import Router, RouterState
from gateway_sidecar.domain.model import Registered, WorkerSpec, WorkerStatus
from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.errors import RouterRefused, RouterUnavailable
from gateway_sidecar.routers.base import RouterReading, RouterRules


class Endpoints(Protocol):
    """Where nginx finds the engines of each slot. Raises OSError."""

    def read(self, slot: str) -> dict[str, Registered]: ...

    def write(self, slot: str, workers: Mapping[int, list[Registered]]) -> None: ...

    def remove(self, slot: str) -> None: ...


class Counts(Protocol):
    """What nginx has counted: bridge port -> number."""

    def count(self, ports: Iterable[int]) -> Mapping[int, int]: ...

    def requests(self, ports: Iterable[int]) -> Mapping[int, float]: ...


@dataclass(frozen=True, slots=True)
class Balancer:
    """nginx, as it balances. bridge_host: where its bridges of HTTP engines listen."""

    endpoints: Endpoints
    counts: Counts
    bridge_host: str


class NginxClient:
    """The engines of one slot, as a router's workers (a `RouterClient`). What is asked for is done when it answers."""

    def __init__(self, slot: str, rules: RouterRules, nginx: Balancer) -> None:
        self._slot = slot
        self._rules = rules
        self._endpoints = nginx.endpoints
        self._changes: dict[str, Registered | None] = {}
        host = nginx.bridge_host
        self._base = f"http://[{host}]:" if ":" in host else f"http://{host}:"

    async def list_workers(self) -> Mapping[str, Registered]:
        return self.workers()

    async def register(self, spec: WorkerSpec) -> str:
        if (objection := self._objection(spec)) is not None:
            raise RouterRefused(f"{spec.url}: {objection}", 400)
        await self._change(spec.url, _registered(spec))
        return spec.url

    async def find(self, worker_id: str) -> Registered | None:
        return self.workers().get(worker_id)

    async def deregister(self, worker_id: str) -> None:
        await self._change(worker_id, None)

    async def close(self) -> None:
        """There is no connection."""

    def workers(self) -> dict[str, Registered]:
        """Worker URL -> worker, as nginx has them. Raises RouterUnavailable."""
        try:
            return {u: it for u, it in self._endpoints.read(self._slot).items() if u.startswith(self._base)}
        except OSError as error:
            raise RouterUnavailable(f"the list of nginx's engines cannot be read: {error}") from error

    def port_of(self, url: str) -> int:
        """The bridge's port that a worker is behind."""
        return int(base_of(url).removeprefix(self._base))

    def _objection(self, spec: WorkerSpec) -> str | None:
        if (objection := self._rules.objection(spec.worker_type, spec.connection_mode)) is not None:
            return objection
        if not spec.bridged or not spec.url.startswith(self._base):
            return "nginx leads to the replica's socket, so nobody needs its address; remove `advertise`"
        return None

    async def _change(self, url: str, worker: Registered | None) -> None:
        """Returns when nginx has it. Those that come together are written together: a crowd is one file."""
        self._changes[url] = worker
        await asyncio.sleep(0)
        if self._changes.get(url, _WRITTEN) is worker:
            try:
                self._write()
            except RouterUnavailable:
                del self._changes[url]  # Those of the others are theirs to try, and to fail at.
                raise

    def _write(self) -> None:
        by_port: dict[int, list[Registered]] = {}
        for it in {**self.workers(), **self._changes}.values():
            if it is not None:
                by_port.setdefault(self.port_of(it.url), []).append(it)
        try:
            self._endpoints.write(self._slot, by_port)
        except OSError as error:
            raise RouterUnavailable(f"nginx cannot be told of its engines: {error}") from error
        self._changes = {}


_WRITTEN = object()


def _registered(spec: WorkerSpec) -> Registered:
    return Registered(
        worker_id=spec.url,
        url=spec.url,
        status=WorkerStatus.READY,
        worker_type=spec.worker_type,
        connection_mode=spec.connection_mode,
        runtime_type=spec.runtime_type,
        model_id=spec.model_id,
        bootstrap_port=spec.bootstrap_port,
        kv_connector=spec.kv_connector,
        kv_role=spec.kv_role,
        kv_engine_id=spec.kv_engine_id,
    )


class NginxRouter(Router):
    """A slot whose requests nginx balances. It is up as long as the daemon is: nginx itself is kept by others."""

    def __init__(
        self, settings: ServiceSettings, slot: str, setup: RouterRules, nginx: Balancer, on_change: Callable[[], None]
    ) -> None:
        super().__init__(settings, slot, setup, on_change)
        self._nginx = nginx
        self._client = self.client = NginxClient(slot, setup, nginx)

    @property
    def is_nginx(self) -> bool:
        return True

    async def run(self) -> None:
        if not self._client.workers():  # Else nginx would go on with those of the slot's last time.
            self._nginx.endpoints.write(self.slot, {})
        self.epoch += 1
        self._set(RouterState.UP)
        await asyncio.Event().wait()

    def reading(self) -> RouterReading | None:
        ports = {base_of(url): self._client.port_of(url) for url in self._client.workers()}
        counts = self._nginx.counts
        active, requests = counts.count(ports.values()), counts.requests(ports.values())
        return RouterReading(
            in_flight=float(sum(active.values())),
            active={url: float(active.get(port, 0)) for url, port in ports.items()},
            requests={url: requests.get(port, 0.0) for url, port in ports.items()},
            errors={},
            itl={},
        )

    async def stop(self, grace_s: float) -> None:
        self._nginx.endpoints.remove(self.slot)
        self._set(RouterState.STOPPED)
