"""A simulated engine's life: started, changed, stopped or killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from examples.simulated.core import EngineCore
from examples.simulated.grpc_front import GrpcFront
from examples.simulated.http_front import HttpFront
from examples.simulated.ledger import Ledger
from examples.simulated.listening_socket import Front, ListeningSocket
from examples.simulated.options import Behaviour, EngineSpec
from examples.simulated.pages import SITES
from examples.simulated.services import SERVICES

LAST_REQUESTS_S = 1.0


class SimulatedEngine:
    """One engine behind one Unix socket, in the running event loop.

    Use it as an async context manager, or `start` it and `stop` or `kill` it. It is started once.
    """

    def __init__(self, spec: EngineSpec, behaviour: Behaviour | None = None) -> None:
        self._core = EngineCore(spec, behaviour or Behaviour())
        self._front = _front_for(self._core)
        self._socket: ListeningSocket | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def spec(self) -> EngineSpec:
        return self._core.spec

    @property
    def behaviour(self) -> Behaviour:
        return self._core.behaviour

    @property
    def ledger(self) -> Ledger:
        """What the engine saw so far."""
        return self._core.ledger

    async def start(self) -> None:
        """Bind the socket and, unless `listen_delay_s` says later, listen.

        Raises:
            OSError: the socket cannot be bound.
        """
        await self._core.bootstrap.start()
        self._socket = ListeningSocket(self._core, self._front.connection)
        await self._front.start()
        if self.behaviour.listen_delay_s:
            self._opening = asyncio.create_task(self._listen_later(self._socket))
        else:
            await self._socket.listen()

    def behave(self, **changes: object) -> None:
        """Change some of the behaviour from now on: `engine.behave(hang=True)`. Names are `Behaviour`'s.

        Raises:
            ValueError: a name is not a behaviour's, or a value does not fit.
        """
        self._core.behave(**changes)
        if changes.get("accept_close"):
            self._front.drop_connections()

    async def until(self, condition: Callable[[Ledger], bool], *, within_s: float = 60.0) -> None:
        """Wait until the ledger is as wanted: `await engine.until(lambda seen: seen.in_flight == 1)`.

        Raises:
            TimeoutError: it was not, within the time.
        """
        await self.ledger.until(condition, within_s=within_s)

    async def stop(self, *, grace_s: float | None = None, unlink: bool | None = None) -> None:
        """End as on SIGTERM: accept no more, let requests in flight finish within the grace, then close.

        `unlink` says whether the socket file goes; without it the engine does as its kind does.
        """
        self._core.stopping = True
        self._close_socket(unlink=not self.spec.leave_socket if unlink is None else unlink)
        with suppress(TimeoutError):
            grace = self.behaviour.grace_s if grace_s is None else grace_s
            await self.until(_idle, within_s=grace)
        await self._end()

    async def kill(self) -> None:
        """End as on SIGKILL: connections break at once, and the socket file stays with nobody behind it."""
        self._core.stopping = True
        self._close_socket(unlink=False)
        self._front.drop_connections()
        await self._end()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop(grace_s=0)

    def as_dict(self) -> dict[str, Any]:
        """The engine as the control API shows it."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "socket": str(self.spec.socket),
            "model": self.spec.model,
            "role": self.spec.role,
            "health": self._core.health.name.lower(),
            **self.ledger.as_dict(),
        }

    async def _listen_later(self, listening: ListeningSocket) -> None:
        await asyncio.sleep(self.behaviour.listen_delay_s)
        await listening.listen()

    async def _end(self) -> None:
        """Close what is open, and see the last requests counted."""
        await self._front.stop()
        await self._core.bootstrap.stop()
        with suppress(TimeoutError):
            await self.until(_idle, within_s=LAST_REQUESTS_S)

    def _close_socket(self, *, unlink: bool) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._socket is not None:
            self._socket.close(unlink=unlink)
            self._socket = None


async def start_engine(spec: EngineSpec, behaviour: Behaviour | None = None) -> SimulatedEngine:
    """Start one engine in the running event loop; `stop` it when done.

    Raises:
        OSError: the socket cannot be bound.
    """
    engine = SimulatedEngine(spec, behaviour)
    await engine.start()
    return engine


def _front_for(core: EngineCore) -> Front:
    if core.spec.kind.is_grpc:
        return GrpcFront(core, SERVICES[core.spec.kind](core))
    return HttpFront(core, SITES[core.spec.kind])


def _idle(seen: Ledger) -> bool:
    return seen.in_flight == 0
