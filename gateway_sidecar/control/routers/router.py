"""A service's router in one slot, as the rest of the core knows it: a process (`process.py`), or nginx itself
(`balanced.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.routers.base import MeshMember, RouterClient, RouterPorts, RouterReading, RouterRules

if TYPE_CHECKING:
    from gateway_sidecar.control.routers.process import SavedRouter
    from gateway_sidecar.supervision.logfile import ChildLog
    from gateway_sidecar.supervision.process import Identity, Process


class RouterState(StrEnum):
    """Where a router stands; a word of `status`."""

    STARTING = "starting"
    UP = "up"
    UNRESPONSIVE = "unresponsive"
    BACKING_OFF = "backing_off"
    REFUSED = "refused"  # it refuses its arguments, and is not started with them again
    STOPPED = "stopped"


class Router(ABC):
    """What every router has. What is said here holds of one that is no process.

    `kind` and `setup` are those of the router that runs: an adopted one may be of another kind than `next_kind`, which
    is started should it end.

    epoch: counts processes, so that what one of them said is never taken for what its successor knows.
    """

    process: Process | None = None
    ports: RouterPorts | None = None
    log: ChildLog | None = None
    client: RouterClient | None = None
    reason: str = ""
    restarts: int = 0

    def __init__(self, settings: ServiceSettings, slot: str, setup: RouterRules, on_change: Callable[[], None]) -> None:
        self.service = settings.name
        self.slot = slot
        self.kind = self.next_kind = settings.router.type
        self.setup = setup
        self.state = RouterState.STOPPED
        self.epoch = 0
        self._on_change = on_change

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.process is not None and self.process.running else None

    @property
    def up(self) -> bool:
        """Whether its API answers."""
        return self.state is RouterState.UP

    @property
    def cannot_start(self) -> bool:
        """Whether its program could not even be run, so far."""
        return False

    @property
    def is_adopted(self) -> bool:
        """Whether an earlier daemon started it."""
        return False

    @property
    def is_nginx(self) -> bool:
        """Whether nginx itself is the router."""
        return False

    @property
    def mesh(self) -> MeshMember | None:
        """Its place in the mesh of its service, if it has one."""
        return None if self.ports is None else self.ports.mesh

    def join_mesh(self) -> None:  # noqa: B027 - most have none
        """It is to have a place there from its first start on: it gets no request before it has its own workers."""

    @abstractmethod
    async def run(self) -> None:
        """Runs until cancelled. The router itself goes on then: `stop` ends it."""

    def saved(self) -> SavedRouter | None:
        """What to write down, so that a later daemon can adopt it; None where there is no process to adopt."""
        return None

    async def adopt(self, _saved: SavedRouter, _identity: Identity, _setup: RouterRules) -> bool:
        """Takes over the router of an earlier daemon, if it is that very process."""
        return False

    async def renew_client(self, setup: RouterRules) -> None:  # noqa: B027 - most have nothing to do
        """Talks to the router as `setup` has it, from now on."""

    async def is_outdated(self) -> bool:
        """Whether it was started otherwise than it would be now."""
        return False

    async def accepts_connections(self) -> bool:
        """Whether it takes a new connection now."""
        return True

    def report_unresponsive(self) -> None:  # noqa: B027
        """Its API has not answered for too long: it must be replaced even if its process lives."""

    def reading(self) -> RouterReading | None:
        """What it has counted; None for a router that says so on a page of its own (`ports`)."""
        return None

    @abstractmethod
    async def stop(self, grace_s: float) -> None:
        """Ends the router."""

    def another_client(self) -> RouterClient | None:
        """A client beside `client`, for who closes it when he is done; None where there is no router to ask."""
        return self.client

    async def close_client(self) -> None:
        """Ends our own connections to the router, which would count as somebody's; `client` is asked no more."""
        if self.client is not None:
            await self.client.close()

    async def detach(self) -> None:
        """Leaves the router running for the next daemon."""
        if self.process is not None:
            self.process.detach()
        await self.close_client()

    def close_log(self) -> None:
        """Reads what it writes no longer."""
        if self.log is not None:
            self.log.close()

    def _set(self, state: RouterState) -> None:
        if state is RouterState.UP:
            self.reason = ""
        if state is not self.state:
            self.state = state
            self._on_change()
