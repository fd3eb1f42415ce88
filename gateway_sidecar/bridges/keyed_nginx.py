"""One small nginx between a bridge and an engine that asks for an API key: it shows the key, whoever asks.

A router does not show it everywhere: SMG passes a client's own `Authorization` on in its place, and shows none where
it asks for health, nor over gRPC. The bridge's link leads to this nginx, and this nginx to the engine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.bridges.nginx import ENGINE_LINK, KEYED, own_user, stop_orphans
from gateway_sidecar.bridges.nginx_config import keyed_config
from gateway_sidecar.bridges.small_nginx import SmallNginx, SmallPlaces, small_left_running
from gateway_sidecar.errors import BridgeError
from gateway_sidecar.supervision.process import Identity


@dataclass(frozen=True, slots=True)
class Keyed:
    """What one leads to, and what it shows there."""

    socket: Path
    key: str
    grpc: bool

    def __repr__(self) -> str:
        return f"Keyed({self.socket})"


class KeyedNginx(SmallNginx):
    """The nginx of one bridge port."""

    def __init__(self, places: SmallPlaces, port: int) -> None:
        super().__init__(places, places.directory / KEYED / str(port), "the nginx that shows the API key")
        self.listens_at = self._directory / "in.sock"

    async def lead(self, to: Keyed) -> None:
        """Starts it, or gives one that runs its new key; returns when it listens. Raises BridgeError."""
        program = await self._places.find()
        try:
            text = keyed_config(self._directory, to.key, grpc=to.grpc, user=own_user() if os.geteuid() == 0 else None)
            same = self.running and (self._directory / "nginx.conf").read_text() == text
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
        except OSError as error:
            raise BridgeError(f"cannot start {self._name}: {error}") from error
        await self._spawn(program, self._listens)

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        identity = self.process.identity if self.process is not None else None
        await super().stop()
        if identity is not None:
            await stop_orphans(identity)
        for name in ("nginx.conf", "nginx.pid", "in.sock", ENGINE_LINK):
            (self._directory / name).unlink(missing_ok=True)

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

    async def _listens(self) -> bool:
        """Whether the socket is there and bound: nginx listens at the same moment."""
        try:
            return stat.S_ISSOCK(self.listens_at.stat().st_mode)
        except OSError:
            return False


def keyed_left_running(places: SmallPlaces) -> dict[int, Identity]:
    """Those of an earlier daemon that still run, by the port of their bridge. Blocks: call in a thread."""
    return {
        int(directory.name): identity
        for directory, identity in small_left_running(places)
        if directory.parent == places.directory / KEYED and directory.name.isdigit()
    }
