"""One small nginx for one address by which a replica's peers know it: it listens there and leads to a bridge's link.

It is a process of its own, without a master (3 MB), so that it comes and goes with its replica and the nginx that
serves all others is never reloaded for it. It serves connections of this machine only. It is found again without a
record: by the log that all of them write to, and by the directory that it runs in, named after its address.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.bridges.nginx import NginxProgram, busy_ports
from gateway_sidecar.bridges.nginx_config import peer_config
from gateway_sidecar.config import parse_endpoint
from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.errors import BridgeError, ProcessError
from gateway_sidecar.supervision.logfile import ChildLog
from gateway_sidecar.supervision.process import Identity, Process, writers_of

_START_S = 5.0
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class PeerPlaces:
    """What all of them share. `links` are the bridges' links, `find` says which nginx to run."""

    directory: Path
    links: Path
    log: ChildLog
    find: Callable[[], Awaitable[NginxProgram]]


class PeerNginx:
    """The nginx of one address. `port` names the bridge whose link it follows."""

    def __init__(self, places: PeerPlaces, address: PeerAddress, port: int) -> None:
        self._places = places
        self._address = address
        self._directory = places.directory / str(address)
        self._link = places.links / f"{port}.sock"
        self.process: Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.running

    async def start(self) -> None:
        """Starts it and returns when it listens. Raises BridgeError."""
        program = await self._places.find()
        self.process = None
        where = (self._address.host, self._address.port)
        if busy := await asyncio.to_thread(busy_ports, [where]):
            raise BridgeError(f"cannot listen on {self._address} ({busy[0][2]}); stop what uses the port")
        config = self._directory / "nginx.conf"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            config.write_text(self._config(program.stream_module))
            argv = [program.path, "-p", str(self._directory), "-c", str(config)]
            log_fd = await self._places.log.open_for_child()
            process = await Process.spawn(argv, log_fd=log_fd, cwd=self._directory)
        except (OSError, ProcessError) as error:
            raise BridgeError(f"cannot start nginx for {self._address}: {error}") from error
        self.process = process
        deadline = time.monotonic() + _START_S
        while not await asyncio.to_thread(busy_ports, [where]):
            if not process.running or time.monotonic() > deadline:
                await process.stop(grace_s=_STOP_S)
                last = " | ".join(self._places.log.tail(2)) or "it said nothing"
                raise BridgeError(f"nginx for {self._address} does not listen: {last}")
            await asyncio.sleep(0.005)

    def adopt(self, identity: Identity) -> bool:
        """Takes over the process of an earlier daemon; False if it is gone."""
        self.process = Process.adopt(identity)
        return self.process is not None

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        if self.process is not None:
            await self.process.stop(grace_s=_STOP_S)
            self.process = None
        forget(self._directory)

    def let_go(self) -> None:
        """Leaves it running for the next daemon."""
        if self.process is not None:
            self.process.let_go()

    def _config(self, stream_module: Path | None) -> str:
        return peer_config(self._address.host, self._address.port, self._link, self._directory, stream_module)


@dataclass(frozen=True, slots=True)
class LeftRunning:
    """One that an earlier daemon started; `port` is the bridge that it leads to."""

    address: PeerAddress
    port: int
    identity: Identity


def left_running(places: PeerPlaces) -> list[LeftRunning]:
    """All that an earlier daemon started and that still run. Blocks: call in a thread."""
    found = []
    for identity in writers_of(*places.log.places):
        try:
            directory = Path(f"/proc/{identity.pid}/cwd").readlink()
            endpoint = parse_endpoint(directory.name)
            config = (directory / "nginx.conf").read_text()
        except (OSError, ValueError):
            continue  # Gone meanwhile.
        leads_to = re.search(r"/(\d+)\.sock;", config)
        if leads_to is not None:
            found.append(LeftRunning(PeerAddress(endpoint.host, endpoint.port), int(leads_to[1]), identity))
    return found


def forget(directory: Path) -> None:
    """Removes one address's files."""
    for name in ("nginx.conf", "nginx.pid"):
        (directory / name).unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
