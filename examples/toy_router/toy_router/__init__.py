"""`router: {type: toy}`: a kind of router in a package of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import aiohttp
from pydantic import Field

from gateway_sidecar.config.router import CommandValue, RouterSettings
from gateway_sidecar.domain.findings import Finding, Level
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerStatus, WorkerType
from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths
from gateway_sidecar.errors import ProcessError, RouterRefused, RouterUnavailable
from gateway_sidecar.routers.base import LaunchCommand, RouterKind, RouterPorts, RouterSetup, Surroundings, find_program

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings

BALANCER = Path(__file__).with_name("balancer.py")


class ToySettings(RouterSettings):
    """A balancer of 70 lines, for engines that speak HTTP."""

    type: Literal["toy"] = Field(description="The kind of router.")
    command: CommandValue = Field(default="python3", description="The Python that runs it; it needs aiohttp.")
    order: Literal["in_turn", "random"] = Field(default="in_turn", description="How a worker is chosen for a request.")


class ToyClient:
    """Its API: what is asked for is done when it answers."""

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"}, timeout=aiohttp.ClientTimeout(timeout_s)
        )

    async def list_workers(self) -> Mapping[str, Registered]:
        rows = (await self._ask("GET", "/workers"))["workers"]
        return {row["url"]: _registered(worker_id, row) for worker_id, row in rows.items()}

    async def register(self, spec: WorkerSpec) -> str:
        if spec.connection_mode is not ConnectionMode.HTTP:
            raise RouterRefused(f"{spec.url}: the toy speaks HTTP only", 400)
        return str((await self._ask("POST", "/workers", asdict(spec)))["id"])

    async def find(self, worker_id: str) -> Registered | None:
        workers = await self.list_workers()
        return next((worker for worker in workers.values() if worker.worker_id == worker_id), None)

    async def deregister(self, worker_id: str) -> None:
        await self._ask("DELETE", f"/workers/{worker_id}")

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            async with self._session.request(method, self._url + path, json=body) as answer:
                answer.raise_for_status()
                said: dict[str, Any] = await answer.json()
                return said
        except (aiohttp.ClientError, TimeoutError, ValueError, RuntimeError) as error:  # The last: it is closed.
            raise RouterUnavailable(f"{method} {path}: {error or type(error).__name__}") from error


def _registered(worker_id: str, row: Mapping[str, Any]) -> Registered:
    return Registered(
        worker_id,
        row["url"],
        WorkerStatus.READY,
        WorkerType(row["worker_type"]),
        ConnectionMode(row["connection_mode"]),
        row["runtime_type"],
        model_id=row["model_id"],
    )


@dataclass(frozen=True)
class ToySetup(RouterSetup):
    """One service's toy."""

    late_s: ClassVar[float] = 0.0  # A registration is done when it is answered.
    settings: ToySettings

    def program(self) -> Path:
        return BALANCER

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        python = find_program(self.settings.command, "install Python")
        argv = [str(python), str(BALANCER), "--port", str(ports.api), "--metrics-port", str(ports.metrics)]
        return LaunchCommand([*argv, "--order", self.settings.order], {**self.settings.env, "TOY_KEY": key})

    def client(self, ports: RouterPorts, key: str) -> ToyClient:
        return ToyClient(ports.url, key, self.settings.api_timeout_s)


def build(settings: ToySettings, _service: ServiceSettings, _around: Surroundings) -> ToySetup:
    """One service's toy. It passes all headers on to engines, so the bridges see their key in nginx's header."""
    return ToySetup(settings)


async def check(services: Mapping[str, ToySettings]) -> list[Finding]:
    """Whether there is a Python to run it with."""
    findings = []
    for service, settings in services.items():
        try:
            python = find_program(settings.command, "install Python")
            findings.append(Finding(Level.OK, f"{service}: the toy is run by {python}"))
        except ProcessError as error:
            findings.append(Finding(Level.FAIL, f"{service}: {error}"))
    return findings


PATHS = RouterPaths(
    inference=("/health", "/v1/chat/completions", "/v1/completions", "/v1/models"),
    control=("/workers",),
)
HEADERS = RouterHeaders(bridge_key="X-Toy-Bridge-Key")
ROUTER = RouterKind("toy", ToySettings, build, PATHS, HEADERS, check)
