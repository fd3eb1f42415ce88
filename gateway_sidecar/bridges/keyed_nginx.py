"""One small nginx between a bridge and an engine that asks for an API key: it shows the key, whoever asks.

A router does not show it everywhere: SMG passes a client's own `Authorization` on in its place, and shows none where
it asks for health, nor over gRPC. The bridge's link leads to this nginx, and this nginx to the engine; it comes and
goes with the replica, and is found again like that of an advertised address.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.bridges.nginx import ENGINE_LINK, KEYED, own_user, stop_orphans
from gateway_sidecar.bridges.nginx_config import keyed_config
from gateway_sidecar.bridges.peer_nginx import PeerPlaces
from gateway_sidecar.errors import BridgeError, ProcessError
from gateway_sidecar.supervision.process import Identity, Process, writers_of

_START_S = 5.0
_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Keyed:
    """What one leads to, and what it shows there."""

    socket: Path
    key: str
    grpc: bool

    def __repr__(self) -> str:
        return f"Keyed({self.socket})"


class KeyedNginx:
    """The nginx of one bridge port."""

    def __init__(self, places: PeerPlaces, port: int) -> None:
        self._places = places
        self._directory = places.directory / KEYED / str(port)
        self.listens_at = self._directory / "in.sock"
        self.process: Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.running

    async def lead(self, to: Keyed) -> None:
        """Starts it, or gives one that runs its new key; returns when it listens. Raises BridgeError."""
        program = await self._places.find()
        config = self._directory / "nginx.conf"
        try:
            text = keyed_config(self._directory, to.key, grpc=to.grpc, user=own_user() if os.geteuid() == 0 else None)
            same = self.running and config.read_text() == text
            await asyncio.to_thread(self._write, text, to.socket)
            if same:
                return
            if self.running:
                assert self.process is not None
                self.process.send(signal.SIGHUP)  # Connections that are open keep the old key, new ones get the new.
                return
            if self.process is not None:
                await stop_orphans(self.process.identity)
            self.listens_at.unlink(missing_ok=True)
            argv = [program.path, "-p", str(self._directory), "-c", str(config)]
            log_fd = await self._places.log.open_for_child()
            process = await Process.spawn(argv, log_fd=log_fd, cwd=self._directory)
        except (OSError, ProcessError) as error:
            raise BridgeError(f"cannot start the nginx that shows the API key: {error}") from error
        self.process = process
        deadline = time.monotonic() + _START_S
        while not self._listens():
            if not process.running or time.monotonic() > deadline:
                await process.stop(grace_s=_STOP_S)
                last = " | ".join(self._places.log.tail(2)) or "it said nothing"
                raise BridgeError(f"the nginx that shows the API key does not listen: {last}")
            await asyncio.sleep(0.005)

    def adopt(self, identity: Identity) -> bool:
        """Takes over the process of an earlier daemon; False if it is gone."""
        self.process = Process.adopt(identity)
        return self.process is not None

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        if self.process is not None:
            await self.process.stop(grace_s=_STOP_S)
            await stop_orphans(self.process.identity)
            self.process = None
        for name in ("nginx.conf", "nginx.pid", "in.sock", ENGINE_LINK):
            (self._directory / name).unlink(missing_ok=True)

    def let_go(self) -> None:
        """Leaves it running for the next daemon."""
        if self.process is not None:
            self.process.let_go()

    def _write(self, text: str, socket: Path) -> None:
        self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # Whoever gets in needs no key.
        (self._directory / "temp").mkdir(parents=True, exist_ok=True)
        link, fresh = self._directory / ENGINE_LINK, self._directory / f".{ENGINE_LINK}.new"
        if not link.is_symlink() or link.readlink() != socket:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(socket)
            fresh.replace(link)
        config = self._directory / "nginx.conf"
        fd = os.open(config.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        config.with_suffix(".new").replace(config)

    def _listens(self) -> bool:
        """Whether the socket is there and bound: nginx listens at the same moment."""
        try:
            return stat.S_ISSOCK(self.listens_at.stat().st_mode)
        except OSError:
            return False


def keyed_left_running(places: PeerPlaces) -> dict[int, Identity]:
    """Those of an earlier daemon that still run, by the port of their bridge. Blocks: call in a thread."""
    found = {}
    for identity in writers_of(*places.log.places):
        try:
            directory = Path(f"/proc/{identity.pid}/cwd").readlink()
        except OSError:
            continue  # Gone meanwhile.
        if directory.parent == places.directory / KEYED and directory.name.isdigit():
            found[int(directory.name)] = identity
    return found
