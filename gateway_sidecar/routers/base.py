"""What the daemon needs of a router: its kind (`RouterKind`), and how it is run for one service (`RouterSetup`).

docs/guides/write-your-own-router.md shows a whole kind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from gateway_sidecar.config.router import RouterSettings
from gateway_sidecar.domain.findings import Finding
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerType
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.routing import RouterHeaders, RouterPaths
from gateway_sidecar.errors import ProcessError

if TYPE_CHECKING:
    from gateway_sidecar.config import ServiceSettings

S = TypeVar("S", bound=RouterSettings)

LONGEST_MESSAGE = 2000
"""Characters of a router's word that are passed on: a screen of it. Its own log has all."""
USAGE_EXIT = 2
"""What argparse and clap end with where a program cannot be called like this."""


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """How to start a router. `env` is added to the daemon's own and may hold secrets.

    `argv` holds the control-plane key only where there is no other way; `shows_key` says so.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    shows_key: bool = False


@dataclass(frozen=True, slots=True)
class MeshMember:
    """A router's place in the mesh of its service: where the others find it, and how it shows itself to them.

    name: no other router ever has it. peer: one that it joins by, `host:port`; empty for the first.
    ca, certificate, key: files in PEM. ends: when the certificate does, in seconds since 1970.
    trusts: the authorities of `ca`, by when they were made.
    """

    name: str
    host: str
    port: int
    peer: str
    ca: str
    certificate: str
    key: str
    ends: float
    trusts: tuple[float, ...] = ()

    @property
    def address(self) -> str:
        """Where the others reach it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """The private loopback ports of one router process, and its place in a mesh, if it has one."""

    api: int
    metrics: int
    mesh: MeshMember | None = None

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"http://127.0.0.1:{self.api}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the router's own metrics."""
        return f"http://127.0.0.1:{self.metrics}/metrics"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a router's output, read."""

    level: str
    message: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouterReading:
    """What a router's own metrics say at one moment.

    in_flight: inference requests that it works on; None where it does not say.
    active, requests: worker URL -> requests on it now, and ever since the router began.
    errors: worker_type -> requests that failed on workers of this type.
    failed: worker URL -> tries that failed there, ever since the router began.
    itl: pause between tokens, upper bound in seconds -> cumulative count; empty where it does not say.
    """

    in_flight: float | None
    active: Mapping[str, float]
    requests: Mapping[str, float]
    errors: Mapping[str, float]
    itl: Mapping[float, float]
    failed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a gateway gives one service's router.

    bridge_key: what it shows the bridges of HTTP engines.
    directory: its own, below `run_dir`, for files that need not outlive a reboot; made by who writes there.
    """

    bridge_key: str = field(repr=False)
    directory: Path


class RouterClient(Protocol):
    """A running router's API. Raises RouterError; never returns a guess."""

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker; the data-parallel ranks of an engine are one, as ready as the least ready of them."""
        ...

    async def register(self, spec: WorkerSpec) -> str:
        """Asks for a worker; its id. Accepted is not done. Raises WorkerExists if the URL is taken."""
        ...

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even if it is not listed yet; None if the router does not know it."""
        ...

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. An unknown worker is no error."""
        ...

    async def close(self) -> None:
        """Closes the client's connections, for good: it is asked nothing any more, except by who did not know yet. That
        raises RouterUnavailable.
        """
        ...


class RouterRules:
    """What holds of one service's router, be it a process or nginx itself.

    by_model: whether a request finds its worker by the model that it names.
    refuses_unknown: whether it refuses a request at once whose model none of its workers has.
    late_s: for how long a registration that was accepted may still come about after it was given up.
    still_listed_s: how long after an accepted removal the list may still show the worker as it was.
    ready_within_s: how long a worker may be listed there as not ready, while its engine is well, before it is taken out
        and registered anew; twice as long after each time. None where the router asks soon again by itself.
    """

    by_model: ClassVar[bool] = True
    refuses_unknown: ClassVar[bool] = False
    late_s: ClassVar[float] = 30.0
    still_listed_s: ClassVar[float] = 0.1
    ready_within_s: ClassVar[float | None] = None

    @property
    def wants_mesh(self) -> bool:
        """Whether it is to tell the routers of other gateways where a prefix is cached."""
        return False

    def objection(self, worker_type: WorkerType, mode: ConnectionMode) -> str | None:
        """Why it cannot take a worker of this type that is spoken to like this, and what to do; None if it can."""
        return None

    def models_of(self, workers: Iterable[Registered]) -> set[str]:
        """The models that these workers answer for, or a part of."""
        return {worker.model_id or "-" for worker in workers if worker.worker_type is not WorkerType.ENCODE}

    def unanswered(self, workers: Iterable[Registered]) -> Mapping[str, str]:
        """Model -> why its requests cannot be answered, of models that ready workers are there for."""
        return {}

    def read_mesh(self, text: bytes) -> Mapping[str, float]:
        """What the metrics page says of its mesh: another router -> a number that grows while they are connected."""
        return {}


class RouterSetup(RouterRules, ABC):
    """One service's router as it is configured: how its process is started, talked to and read.

    A kind must say `program`, `command` and `client`; the rest says what holds of a router of which nothing is known.
    """

    @abstractmethod
    def program(self) -> Path:
        """The file that is run. Raises ProcessError if it cannot be found."""

    @abstractmethod
    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """How to start it. Raises ProcessError if its program cannot be found."""

    @abstractmethod
    def client(self, ports: RouterPorts, key: str) -> RouterClient:
        """A client for its API."""

    def digest(self) -> str:
        """The same as long as it would be started from the same program with the same arguments and environment.

        Ports and key do not count. A package that is installed anew writes its programs anew. Reads files. Raises
        ProcessError if the program cannot be found.
        """
        command = self.command(RouterPorts(0, 0), "")
        try:
            stat = self.program().stat()
        except OSError as error:
            raise ProcessError(f"router.command: {error}") from error
        parts = [*command.argv, stat.st_size, stat.st_mtime_ns, *sorted(command.env.items())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def read_log_line(self, line: str) -> LogLine | None:
        """One line of its output; None for what is not worth passing on."""
        return LogLine("info", printable(line.strip()))

    def read_metrics(self, text: bytes) -> RouterReading:
        """What its metrics page says."""
        return RouterReading(None, {}, {}, {}, {})


async def nothing_to_say(_services: Mapping[str, RouterSettings]) -> list[Finding]:
    """A kind's `check` that looks at nothing."""
    return []


@dataclass(frozen=True, slots=True)
class RouterKind(Generic[S]):
    """One kind of router: all that the gateway knows of it.

    name: the word of the configuration, `router: {type: NAME}`.
    settings: what may be said below `router`, its defaults and bounds.
    build: the router of one service, of its settings and what the gateway gives it; no `RouterSetup` where nginx itself
        balances and no process is started.
    check: what `gateway-sidecar check` says of these services' routers (name -> settings); starts none.
    applications: the paths of any HTTP application (`services[].engine: http`); None for a kind that serves inference
        engines alone.
    """

    name: str
    settings: type[S]
    build: Callable[[S, ServiceSettings, Surroundings], RouterRules]
    paths: RouterPaths
    headers: RouterHeaders
    check: Callable[[Mapping[str, S]], Awaitable[list[Finding]]] = nothing_to_say
    applications: RouterPaths | None = None

    @property
    def is_nginx(self) -> bool:
        """Whether nginx itself is the router, and so needs no key for the bridges."""
        return not self.headers.bridge_key

    def paths_of(self, service: ServiceSettings) -> RouterPaths:
        """Which paths are for whom in this service."""
        return self.applications if service.engine == "http" and self.applications is not None else self.paths


def find_program(command: str, cure: str) -> Path:
    """A router's program: a path as it is, else the one beside this interpreter, else on PATH. Raises ProcessError.

    cure: what to do if it is nowhere.
    """
    if "/" in command:
        path = Path(command)
        if not os.access(path, os.X_OK):
            raise ProcessError(f"router.command: {command} is not an executable file")
        return path
    beside = Path(sys.executable).parent / command
    found = beside if os.access(beside, os.X_OK) else shutil.which(command)
    if found is None:
        where = f"neither beside {sys.executable} nor on PATH"
        raise ProcessError(f"router.command: '{command}' is {where}; {cure}, or give its path")
    return Path(found)
