"""A small nginx that comes and goes with a replica: the nginx that serves all others is never reloaded for it.

It needs no record: it is found again by the log that all of them write to, and by the directory that it runs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.errors import NginxError, ProcessError
from gateway_sidecar.nginx.server import NginxProgram
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.supervision.process import Identity, Process, writers_of

_START_S = 5.0  # A plain nginx starts in 14 ms (docs/figures.md): for a machine under load.
_STOP_S = 2.0  # A choice: what it has open is cut at its end, whether soon or late.


@dataclass(frozen=True, slots=True)
class SmallPlaces:
    """What all of a kind share. `links` are the bridges' links, `find` says which nginx to run, `tasks` guard what
    waits for an end."""

    directory: Path
    links: Path
    log: ChildLog
    find: Callable[[], Awaitable[NginxProgram]]
    tasks: Tasks


class SmallNginx:
    """A process that runs `nginx.conf` in a directory of its own. `name` says in errors which one it is."""

    def __init__(self, places: SmallPlaces, directory: Path, name: str) -> None:
        self._places = places
        self._directory = directory
        self._name = name
        self._watch: asyncio.Task[None] | None = None
        self.process: Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.running

    def adopt(self, identity: Identity) -> bool:
        """Takes over the process of an earlier daemon; False if it is gone."""
        self.process = Process.adopt(identity)
        return self.process is not None

    def on_exit(self, then: Callable[[], None]) -> None:
        """Calls `then` when the process has ended by itself."""
        process = self.process
        assert process is not None

        async def watch() -> None:
            await process.wait()
            then()

        self._stop_watching()
        self._watch = self._places.tasks.spawn(watch(), again=then)

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        self._stop_watching()
        if self.process is not None:
            await self.process.stop(grace_s=_STOP_S)
            self.process = None

    def detach(self) -> None:
        """Leaves it running for the next daemon."""
        self._stop_watching()
        if self.process is not None:
            self.process.detach()

    async def _spawn(
        self, program: NginxProgram, listens: Callable[[], Awaitable[bool]], *, keep_fds: Sequence[int] = ()
    ) -> None:
        """Starts it with the configuration that lies there, and returns when it `listens`. Raises NginxError."""
        argv = [program.path, "-p", str(self._directory), "-c", str(self._directory / "nginx.conf")]
        try:
            log_fd = await self._places.log.open_for_child()
            process = await Process.spawn(argv, log_fd=log_fd, cwd=self._directory, keep_fds=keep_fds)
        except (OSError, ProcessError) as error:
            raise NginxError(f"cannot start {self._name}: {error}") from error
        self.process = process
        deadline = awake.now() + _START_S
        while not await listens():
            if not process.running or awake.now() > deadline:
                await process.stop(grace_s=_STOP_S)
                last = " | ".join(self._places.log.tail(2)) or "it said nothing"
                raise NginxError(f"{self._name} does not listen: {last}")
            await asyncio.sleep(0.005)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def small_left_running(places: SmallPlaces) -> Iterator[tuple[Path, Identity]]:
    """All that an earlier daemon started and that still run, with the directory of each. Blocks: call in a thread."""
    for identity in writers_of(*places.log.places):
        try:
            yield Path(f"/proc/{identity.pid}/cwd").readlink(), identity
        except OSError:
            continue  # Gone meanwhile.
