"""What the daemon needs of a router, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway_sidecar.domain.model import Registered, WorkerSpec


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """How to start a router. `env` is added to the daemon's own and may hold secrets.

    `argv` holds the control-plane key only where there is no other way; `shows_key` says so.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    shows_key: bool = False


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """The private loopback ports of one router process."""

    api: int
    metrics: int

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
    itl: pause between tokens, upper bound in seconds -> cumulative count; empty where it does not say.
    """

    in_flight: float | None
    active: Mapping[str, float]
    requests: Mapping[str, float]
    errors: Mapping[str, float]
    itl: Mapping[float, float]


class RouterClient(Protocol):
    """A running router's API. Raises RouterError; never returns a guess."""

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker; the data-parallel ranks of an engine are one, as ready as the least ready of them."""
        ...

    async def register(self, spec: WorkerSpec) -> str:
        """Asks for a worker; its id. Accepted is not done. Raises WorkerExists if the URL is taken."""
        ...

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even one that is not listed yet; None if the router does not know it."""
        ...

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. One that is not there is no error."""
        ...

    async def close(self) -> None:
        """Closes the client's connections."""
        ...


class RouterKind(Protocol):
    """One kind of router, set up for one service."""

    @property
    def name(self) -> str:
        """The word of the configuration: `smg`."""
        ...

    def command(self, ports: RouterPorts, key: str) -> LaunchCommand:
        """How to start it. Raises ProcessError if its program cannot be found."""
        ...

    def digest(self) -> str:
        """The same as long as it would be started from the same program with the same arguments and environment.

        Ports and key do not count. Reads files. Raises ProcessError if its program cannot be found.
        """
        ...

    def client(self, ports: RouterPorts, key: str) -> RouterClient:
        """A client for its API."""
        ...

    def read_log_line(self, line: str) -> LogLine | None:
        """One line of its output; None for what is not worth passing on."""
        ...

    def read_metrics(self, text: bytes) -> RouterReading:
        """What its metrics page says."""
        ...
