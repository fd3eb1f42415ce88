"""One router process: started or adopted, judged by its API, started again when it ends or stops answering."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.routers.router import Router, RouterState
from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.errors import ProcessError, RouterError
from gateway_sidecar.nginx.server import busy_ports
from gateway_sidecar.routers.base import USAGE_EXIT, MeshMember, RouterClient, RouterPorts, RouterRules, RouterSetup
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.process import Identity, Process
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_RESTARTS = Backoff(first_s=0.2, most_s=30.0)
_CONNECT_S = 1.0  # On loopback a connection takes microseconds: the router's queue is full, or it hangs.
_PORTS_PATIENCE_S = 2.0  # A choice: after it, to reload nginx for other ports is the lesser evil.
_SPAWN_S = 2.0  # The daemon's end, or a reload, waits for it: a program on a disk that hangs is left behind.
_LOOK_AGAIN_S = 1.0  # Somebody has just installed another program, or is about to; to look is one `stat`.
_STEADY_S = 60.0  # a router that ran this long starts with a clean record


@dataclass(frozen=True, slots=True)
class SavedRouter:
    """What the next daemon needs to adopt a router. `kind` and `digest` say what it is and of what it was made.

    `identity` is None from before it is started until that is known; meanwhile its output tells which process it is.
    """

    slot: str
    identity: Identity | None
    ports: RouterPorts
    key: str
    kind: str
    digest: str = ""


ChoosePort = Callable[[str], int]
"""A port on an address of this machine. Raises ProcessError."""
JoinMesh = Callable[[str, str, ChoosePort], Awaitable[MeshMember | None]]
"""(service, slot, how it gets a port) -> its place."""


class PrivatePorts(Protocol):
    """Where a router's private ports come from."""

    def choose(self, slot: str) -> RouterPorts:
        """Two ports that can be listened on; the slot's own, unless somebody took them. Raises ProcessError."""
        ...

    def choose_in_mesh(self, slot: str, host: str) -> int:
        """One more, on an address of this machine; the slot's own, unless somebody took it. Raises ProcessError."""
        ...

    def restore(self, slot: str, ports: RouterPorts) -> None:
        """The slot's router, started by an earlier daemon, listens on these."""
        ...

    def give_back(self, slot: str) -> None:
        """There will be no router in this slot any more."""
        ...


@dataclass(frozen=True, slots=True)
class RouterHost:
    """What a router process needs of the daemon that keeps it.

    write_down: writes down what `saved` says now, if it can soon.
    on_change: called whenever the state changes.
    join_mesh: a place in the mesh of a service for the router in a slot; None while it can have none. None for a
        gateway that works alone.
    """

    private_ports: PrivatePorts
    metrics: Metrics
    write_down: Callable[[], Awaitable[None]]
    on_change: Callable[[], None]
    join_mesh: JoinMesh | None = None


class RouterProcess(Router):
    """Keeps one router running. `slot` tells a service's router from the successor that is started beside it."""

    setup: RouterSetup
    log: ChildLog

    def __init__(
        self, settings: ServiceSettings, slot: str, setup: RouterSetup, log: ChildLog, host: RouterHost
    ) -> None:
        super().__init__(settings, slot, setup, host.on_change)
        self._next_setup = setup
        self.log = log
        self._private_ports = host.private_ports
        self._metrics = host.metrics
        self._write_down = host.write_down
        self._join_mesh = host.join_mesh
        self._joins = False
        self._start_timeout_s = settings.router.start_timeout_s
        self._logger = get_logger(service=settings.name)
        self.starts = 0
        self._key = self._digest = ""
        self._prospect: SavedRouter | None = None
        self._failures = 0
        self._unresponsive = asyncio.Event()

    @property
    def cannot_start(self) -> bool:
        return self.state is RouterState.BACKING_OFF and self.process is None

    @property
    def is_adopted(self) -> bool:
        """Whether an earlier daemon started it."""
        return self.process is not None and self.starts == 0

    def saved(self) -> SavedRouter | None:
        """What to write down, so that a later daemon can adopt it; its key and its place before it is started."""
        if self._prospect is not None:
            return self._prospect
        if self.process is None or not self.process.running or self.ports is None:
            return None
        return SavedRouter(self.slot, self.process.identity, self.ports, self._key, self.kind, self._digest)

    async def adopt(self, saved: SavedRouter, identity: Identity, setup: RouterRules) -> bool:
        """Takes over the router of an earlier daemon if it is that very process and its API answers with our key.

        setup: how it is talked to, as the kind that it is of.
        """
        process = Process.adopt(identity)
        if process is None:
            return False
        its = cast("RouterSetup", setup)  # Only a process is ever written down.
        client = its.client(saved.ports, saved.key)
        try:
            await awake.asked_again(client.list_workers, RouterError)
        except RouterError as error:
            await client.close()
            self._logger.warning("router.not_adopted", pid=process.pid, reason=str(error))
            await process.stop(grace_s=1)
            return False
        self._private_ports.restore(self.slot, saved.ports)
        self.process, self.ports, self.client = process, saved.ports, client
        self.kind, self.setup = saved.kind, its
        if saved.slot != self.slot:
            self.log = self.log.beside(f"router-{saved.slot}.log")
        self._key, self._digest, self.slot = saved.key, saved.digest, saved.slot
        self.log.follow(process.pid)
        self.epoch += 1
        self._set(RouterState.UP)
        self._logger.info("router.adopted", pid=process.pid, url=saved.ports.url)
        return True

    async def run(self) -> None:
        """Runs until cancelled. The router itself goes on then: `stop` ends it."""
        while True:
            if not self.up and not await self._start():
                await (self._until_it_changes() if self.state is RouterState.REFUSED else self._back_off())
                continue
            await self._until_lost()

    def another_client(self) -> RouterClient | None:
        return None if self.ports is None else self.setup.client(self.ports, self._key)

    async def renew_client(self, setup: RouterRules) -> None:
        """Talks to the router as `setup` has it, from now on; to one of another kind as before."""
        if self.kind != self.next_kind:
            return
        self._next_setup = cast("RouterSetup", setup)
        self.setup = self._next_setup
        if self.client is not None and self.ports is not None:
            old, self.client = self.client, self.setup.client(self.ports, self._key)
            await old.close()

    async def is_outdated(self) -> bool:
        """Whether it was started from another program, or otherwise, than it would be now."""
        try:
            return self._digest not in ("", await asyncio.to_thread(self._next_setup.digest))
        except ProcessError:
            return False  # There is nothing to start now.

    async def accepts_connections(self) -> bool:
        """Whether it takes a new connection now, whatever it says on old ones."""
        if self.ports is None:
            return False
        try:
            async with within(_CONNECT_S):
                _, writer = await asyncio.open_connection("127.0.0.1", self.ports.api)
        except OSError:
            return False
        writer.transport.abort()
        return True

    def join_mesh(self) -> None:
        self._joins = True

    def report_unresponsive(self) -> None:
        """Its API has not answered for too long: it must be replaced even if its process lives."""
        self._unresponsive.set()

    async def stop(self, grace_s: float) -> None:
        """Ends the router."""
        if self.process is not None and self.process.running:
            await self.process.stop(grace_s=grace_s)
            self._logger.info("router.stopped", pid=self.process.pid)
        if self.client is not None:
            await self.client.close()
        self._set(RouterState.STOPPED)

    async def _start(self) -> bool:
        began = awake.monotonic()
        self._unresponsive.clear()
        self._set(RouterState.STARTING)
        self.kind, self.setup = self.next_kind, self._next_setup
        key = secrets.token_urlsafe(32)
        await self._until_its_ports_are_free()
        try:
            ports = await self._choose_ports()
            command = self.setup.command(ports, key)
            digest = await asyncio.to_thread(self.setup.digest)
            # Before it runs: a daemon that dies in the next moment must not leave a router that nobody has the key of.
            self._prospect = SavedRouter(self.slot, None, ports, key, self.kind, digest)
            await self._write_down()
            log_fd = await self.log.open_for_child()
            if self.log.trouble:
                to = str(self.log.file) if self.log.file else None
                self._logger.error("router.log_elsewhere", reason=self.log.trouble, path=to)
            spawning = asyncio.ensure_future(Process.spawn(command.argv, log_fd=log_fd, env=command.env))
            try:
                process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                await asyncio.wait({spawning}, timeout=_SPAWN_S)
                if spawning.done() and spawning.exception() is None:
                    # Whoever cancelled us writes it down for the next daemon, or ends it.
                    self.process, self.ports, self._key, self._digest = spawning.result(), ports, key, digest
                    self._prospect = None
                raise
        except (ProcessError, OSError) as error:
            self._prospect = None
            self._failures += 1
            self.reason = str(error)
            self._logger.error("router.not_started", reason=self.reason)
            return False
        if command.shows_key:
            self._logger.warning("router.key_visible", program=command.argv[0])
        if self.client is not None:
            await self.client.close()
        self.process, self.ports, self._key, self._digest = process, ports, key, digest
        self._prospect = None
        self.client = self.setup.client(ports, key)
        self._on_change()  # It runs: that has to be written down before anything can happen to us.
        self.starts += 1
        self.restarts += self.starts > 1
        self._metrics.router_starts.labels(self.service).inc()
        deadline = awake.now() + self._start_timeout_s
        while process.running and awake.now() < deadline:
            try:
                await self.client.list_workers()
            except RouterError as error:
                if not self._failures:  # Else why the last one ended says more.
                    self.reason = str(error)
                await asyncio.sleep(0.01)
                continue
            took = awake.monotonic() - began
            self.epoch += 1
            self._metrics.router_start_seconds.labels(self.service).set(took)
            self._logger.info("router.started", pid=process.pid, url=ports.url, took_s=round(took, 3))
            self._set(RouterState.UP)
            return True
        if process.running:
            await self._ended("did not answer within its start timeout")
        else:
            await self._ended("ended while starting", starting=True)
        return False

    async def _choose_ports(self) -> RouterPorts:
        """Raises ProcessError. One that begins again in its place gets its requests at once, before it has its own
        workers: it joins no mesh, where it would learn of others'.
        """
        ports = self._private_ports.choose(self.slot)
        if self._join_mesh is None or not self._joins or self.starts or not self.setup.wants_mesh:
            return ports
        place = await self._join_mesh(self.service, self.slot, partial(self._private_ports.choose_in_mesh, self.slot))
        return replace(ports, mesh=place)

    async def _until_its_ports_are_free(self) -> None:
        """A killed router's sockets may live on for a moment. On other ports nginx would have to be reloaded."""
        if self.ports is None:
            return
        own = [("127.0.0.1", self.ports.api), ("127.0.0.1", self.ports.metrics)]
        deadline = awake.now() + _PORTS_PATIENCE_S
        while await asyncio.to_thread(busy_ports, own) and awake.now() < deadline:
            await asyncio.sleep(0.01)

    async def _until_lost(self) -> None:
        assert self.process is not None
        process, began = self.process, awake.now()
        ended = asyncio.create_task(process.wait())
        mute = asyncio.create_task(self._unresponsive.wait())
        try:
            await asyncio.wait({ended, mute}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            mute.cancel()
        if awake.now() - began > _STEADY_S:
            self._failures = 0
        await self._ended("its API stopped answering" if process.running else "ended")

    async def _ended(self, what: str, *, starting: bool = False) -> None:
        assert self.process is not None
        if not starting:
            # Said first, before anything is waited for: requests must not be sent where nobody is.
            self._set(RouterState.UNRESPONSIVE if self.process.running else RouterState.BACKING_OFF)
        if self.process.running:
            await self.process.stop(grace_s=0)
        self._failures += 1
        code = self.process.exit_code
        refused = starting and code == USAGE_EXIT
        last = await self.log.read_tail(5)
        said = self.setup.read_log_line(last[-1]) if starting and last else None
        words = [f"{what}, exit code {code}" if code is not None else what, *([said.message] if said else [])]
        self.reason = ": ".join(words) + ("; fix router.args" if refused else "")
        self._logger.error(
            "router.exited", pid=self.process.pid, reason=self.reason, exit_code=code, last_lines=last,
            restart_in_s=None if refused else round(self._delay_s(), 2),
        )  # fmt: skip
        self._set(RouterState.REFUSED if refused else RouterState.BACKING_OFF)

    def _delay_s(self) -> float:
        # The first restart is at once: the fleet is waiting, and one exit proves nothing.
        return _RESTARTS.delay_s(self._failures - 1)

    async def _until_it_changes(self) -> None:
        """The same program says the same of the same arguments, however often it is asked."""
        while not await self.is_outdated():
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _back_off(self) -> None:
        self._set(RouterState.BACKING_OFF)
        await asyncio.sleep(self._delay_s() * (1 - random.random() / 4))
