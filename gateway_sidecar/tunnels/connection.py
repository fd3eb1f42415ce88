"""One SSH connection, kept: started or taken up, given its forwards, ended and begun again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute
from gateway_sidecar.errors import ProcessError
from gateway_sidecar.files.replace import open_to_append
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import LOOK_S
from gateway_sidecar.supervision.process import Identity, Process, writers_of
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.tunnels.base import SshBackend, TunnelFault, connection_name
from gateway_sidecar.tunnels.logins import Logins

_BACKOFF = Backoff(0.25, 5.0)
_STEADY_S = 5.0  # As long as the longest pause between tries (`_BACKOFF`): what ends sooner has its pauses grow.
_MOST_NAMED = 20  # A choice: replicas behind one connection; `status` has all.
_UP_POLL_S = 0.02  # Next to a login, which takes some round trips, it is little.
_GRACE_S = 3.0  # A choice: ssh ends at once, but for a far side that does not answer.
_MOST_LOG_BYTES = 256 * 1024  # A choice: ssh writes some lines for each connection; the end of the file is what counts.
_ENVIRONMENT = {"SHELL": "/bin/sh"}
"""What ssh gives a ProxyCommand to; the daemon's user may have one that lets nobody in."""


class SshConnection:
    """The connection of one route. `wanted` is what it should forward: local socket's name -> remote end."""

    def __init__(
        self,
        route: SshRoute,
        backend: SshBackend,
        directory: Path,
        logins: Logins,
        *,
        adopted: Identity | None,
        on_change: Callable[[], None],
    ) -> None:
        self.name = connection_name(route, backend.name)
        self.route = route
        self.wanted: dict[str, str] = {}
        self.replicas: list[str] = []
        """Whose tunnels these are, for people."""
        self.status = PathStatus(PathState.CONNECTING)
        self.since = time.monotonic()
        self.starts = 0
        self._backend = backend
        self._directory = directory
        self._logins = logins
        self._output = directory / f"{self.name}.log"
        self._log_file = ChildLog(self._output.with_suffix(backend.log_suffix), _MOST_LOG_BYTES)
        self._earlier = adopted
        self._on_change = on_change
        self._open: dict[str, str] = {}
        self._troubles: dict[str, PathStatus] = {}
        self._forbidden = ""
        self._process: Process | None = None
        self._changed = asyncio.Event()
        self._failures = 0
        self._logger = get_logger(tunnel_to=str(route.target))

    @property
    def pid(self) -> int | None:
        """The process of the connection, if it runs."""
        return self._process.pid if self._process is not None and self._process.running else None

    @property
    def _dead_s(self) -> float:
        """Who was silent for so long is dead, be it the path or the process."""
        return float(self.route.keepalive_s * (self.route.keepalive_failures + 1))

    def request(self, wanted: dict[str, str], replicas: list[str]) -> None:
        """Says what it should forward from now on, and whose tunnels these are."""
        self.replicas = replicas
        if wanted != self.wanted:
            self.wanted = wanted
            self._changed.set()

    def status_of(self, local: str) -> PathStatus:
        """How the tunnel behind this socket is."""
        if not self.status.is_up:
            return self.status
        if local in self._troubles:
            return self._troubles[local]
        if local not in self._open:
            return PathStatus(PathState.CONNECTING)
        return PathStatus(PathState.UP, self._forbidden)

    async def run(self) -> None:
        """Keeps the connection until cancelled; its process goes on then."""
        while True:
            up_at = None
            try:
                process = await self._begin()
                up_at = time.monotonic()
                await self._keep(process)
            except TunnelFault as fault:
                if up_at is not None:
                    self._logins.note_lost(self.route)
                    if time.monotonic() - up_at >= _STEADY_S:
                        self._failures = 0
                self._failures += 1
                pause_s = _BACKOFF.delay_s(self._failures) * (0.5 + random.random() / 2)
                self._note(fault.status, retry_in_s=round(max(pause_s, self._logins.pause_s(self.route)), 1))
                await asyncio.sleep(pause_s)

    async def end(self) -> None:
        """Ends the process; nothing it had open goes on. For when `run` was cancelled."""
        if self._process is not None and self._process.running:
            await self._process.stop(grace_s=_GRACE_S)
        # One that `run` was cancelled over, before it knew it.
        for identity in await asyncio.to_thread(writers_of, self._output):
            process = Process.adopt(identity)
            if process is not None:
                await process.stop(grace_s=_GRACE_S)
        for local in {*self._open, *self.wanted}:
            (self._directory / local).unlink(missing_ok=True)
        for path in self._directory.glob(f"{self.name}.*"):
            path.unlink(missing_ok=True)

    def detach(self) -> None:
        """Leaves the process running for the next daemon."""
        if self._process is not None:
            self._process.detach()

    async def _begin(self) -> Process:
        """Takes up the process that there is, or starts one; returns when it is connected. Raises TunnelFault."""
        earlier, self._earlier = self._earlier, None
        process = self._process if self._process is not None and self._process.running else None
        if process is None and earlier is not None:
            process = Process.adopt(earlier)
        if process is not None:
            await self._connect(process)
            self._note(PathStatus(PathState.UP), adopted=True)
            return process
        pause_s = self._logins.pause_s(self.route)
        if pause_s and self.status.state is PathState.CONNECTING:
            reason = f"waits up to {pause_s:.0f} s for its turn to log in, since others' logins were refused there"
            self.status = PathStatus(PathState.CONNECTING, reason)
        async with self._logins.login(self.route):
            process = await self._start()
            await self._connect(process)
        self._note(PathStatus(PathState.UP))
        return process

    async def _connect(self, process: Process) -> None:
        """Returns when the process is connected. Raises TunnelFault."""
        self._process = process
        self._open.clear()
        self._troubles.clear()
        self._forbidden = ""
        before_last = len(self.route.servers) - 1
        deadline = awake.now() + self.route.connect_timeout_s * (1 + len(self.route.servers))
        while not await self._answers():
            if not process.running:
                raise await self._why()
            if awake.now() > deadline:
                await process.stop(grace_s=_GRACE_S)
                # ssh itself gives up a server that does not even greet it: this one did not let us in.
                reason = "it did not accept our login in time"
                raise TunnelFault(PathState.UNREACHABLE, reason, before_last, PathState.UNREACHABLE)
            await asyncio.sleep(_UP_POLL_S)
        objection = await asyncio.to_thread(self._backend.objection, self.name, self.route)
        if objection is not None:
            await process.stop(grace_s=_GRACE_S)
            raise TunnelFault(objection.state, objection.reason, before_last, objection.state)

    async def _start(self) -> Process:
        argv = await asyncio.to_thread(self._backend.command, self.name, self.route)
        try:
            descriptor = await asyncio.to_thread(self._fresh_log)
            process = await Process.spawn(argv, log_fd=descriptor, cwd=self._directory, env=_ENVIRONMENT)
        except ProcessError as error:
            raise TunnelFault(PathState.LOCAL_TROUBLE, str(error)) from error
        except OSError as error:
            reason = f"cannot write {self._output}: {error.strerror}"
            raise TunnelFault(PathState.LOCAL_TROUBLE, reason) from error
        self.starts += 1
        return process

    def _fresh_log(self) -> int:
        """An empty file for what the process will say; how the next daemon knows the process, too."""
        self._output.unlink(missing_ok=True)
        descriptor = open_to_append(self._output)
        self._log_file.new_lines()  # From here on all of it is read.
        return descriptor

    async def _answers(self) -> bool:
        """Whether somebody listens on the control socket: from when the far side has let us in."""
        path = self._directory / f"{self.name}.ctl"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            return path.exists() and sock.connect_ex(str(path)) == 0

    async def _is_alive(self) -> bool:
        """Whether the process greets a connection to its control socket in time."""
        try:
            async with within(self._dead_s):
                reader, writer = await asyncio.open_unix_connection(self._directory / f"{self.name}.ctl")
                try:
                    return bool(await reader.read(1))
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def _why(self) -> TunnelFault:
        found = await asyncio.to_thread(self._backend.why_ended, self.name, self.route)
        return TunnelFault(found.state, found.reason, found.entered, found.refusal)

    async def _keep(self, process: Process) -> None:
        """Opens and ends forwards as wanted until the process ends. Raises TunnelFault when it has."""
        asked_at = time.monotonic()
        while process.running:
            self._changed.clear()
            await self._forward()
            ended = asyncio.create_task(process.wait())
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({ended, changed}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                changed.cancel()
            await self._read_log()
            if time.monotonic() < asked_at + self._dead_s:
                continue
            asked_at = time.monotonic()
            if process.running and not await self._is_alive() and process.running:
                await process.stop(grace_s=0)
                reason = f"the {self._backend.name} process (pid {process.pid}) did not answer, and was ended"
                raise TunnelFault(PathState.LOCAL_TROUBLE, reason)
        raise await self._why()

    async def _forward(self) -> None:
        for local, remote in list(self._open.items()):
            if local not in self.wanted:
                with contextlib.suppress(TunnelFault):
                    await self._backend.cancel(self.name, local, remote)
                (self._directory / local).unlink(missing_ok=True)
                del self._open[local]
            elif not (self._directory / local).exists():
                # Somebody removed it: the master would say that it has this forward already.
                with contextlib.suppress(TunnelFault):
                    await self._backend.cancel(self.name, local, remote)
                del self._open[local]
        for local, remote in list(self.wanted.items()):
            if local in self._open:
                continue
            try:
                await self._backend.forward(self.name, local, remote)
            except TunnelFault as fault:
                if self._troubles.get(local) != fault.status:
                    self._logger.error("tunnel.not_forwarded", remote=remote, reason=fault.status.reason)
                self._troubles[local] = fault.status
            else:
                self._troubles.pop(local, None)
                self._open[local] = remote
            self._on_change()

    async def _read_log(self) -> None:
        for line in await asyncio.to_thread(self._log_file.new_lines):
            if "open failed: administratively prohibited" in line:
                self._forbidden = printable(line)

    def _note(self, status: PathStatus, *, adopted: bool = False, retry_in_s: float | None = None) -> None:
        before, self.status = self.status, status
        if before == status:
            return
        lasted_s, self.since = round(time.monotonic() - self.since, 3), time.monotonic()
        if status.is_up:
            self._logger.info("tunnel.up", pid=self.pid, adopted=adopted, was=before.state.value, for_s=lasted_s)
        else:
            self._logger.warning(
                "tunnel.down",
                replicas=self.replicas[:_MOST_NAMED],
                state=status.state.value,
                reason=status.reason,
                was=before.state.value,
                for_s=lasted_s,
                retry_in_s=retry_in_s,
            )
        self._on_change()
