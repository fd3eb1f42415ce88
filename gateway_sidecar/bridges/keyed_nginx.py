"""One small nginx between a bridge and an engine that asks for an API key: it shows the key, whoever asks.

A router does not show it everywhere: SMG passes a client's own `Authorization` on in its place, and shows none where
it asks for health, nor over gRPC. The bridge's link leads to this nginx, and this nginx to the engine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.bridges.nginx import ENGINE_LINK, KEYED, own_user, stop_orphans
from gateway_sidecar.bridges.nginx_config import keyed_config
from gateway_sidecar.bridges.small_nginx import SmallNginx, SmallPlaces, small_left_running
from gateway_sidecar.errors import BridgeError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file, replace_link
from gateway_sidecar.supervision.process import Identity


@dataclass(frozen=True, slots=True)
class Keyed:
    """What one leads to, and what it shows there.

    inode: the socket's device and inode, where there is a descriptor of it, `pin`. The key is then shown to that very
        socket, and never to another that somebody binds in its place, whether a daemon is there to notice it or not.
    """

    socket: Path
    key: str
    grpc: bool
    inode: tuple[int, int] | None = None
    pin: int | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Keyed({self.socket})"

    def hold(self) -> int | None:
        """A descriptor of the socket, the caller's to close; None where it is known by its path. Raises BridgeError."""
        if self.inode is None:
            return None
        try:
            held = os.dup(self.pin if self.pin is not None else -1)
        except OSError:
            raise BridgeError(f"{self.socket} is not held open any more") from None
        if _inode(os.fstat(held)) != self.inode:
            os.close(held)
            raise BridgeError(f"{self.socket} is another by now")
        return held


class KeyedNginx(SmallNginx):
    """The nginx of one bridge port."""

    def __init__(self, places: SmallPlaces, port: int) -> None:
        super().__init__(places, places.directory / KEYED / str(port), "the nginx that shows the API key")
        self.listens_at = self._directory / "in.sock"

    async def lead(self, to: Keyed) -> None:
        """Starts it, or gives one that runs its new key; returns when it listens. Raises BridgeError."""
        program = await self._places.find()
        if self.running and await asyncio.to_thread(self._holds, to):
            await self._give(to)
            return
        if self.running:
            await self.stop()
        held = to.hold()
        try:
            if self.process is not None:
                await stop_orphans(self.process.identity)
            await asyncio.to_thread(self._write, self._text(to, held), to.socket)
            self.listens_at.unlink(missing_ok=True)
            await self._spawn(program, self._listens, keep_fds=() if held is None else (held,))
        except OSError as error:
            raise BridgeError(f"cannot start {self._name}: {error}") from error
        finally:
            if held is not None:
                os.close(held)

    async def _give(self, to: Keyed) -> None:
        """Connections that are open keep the old key, new ones get the new."""
        assert self.process is not None
        try:
            number = await asyncio.to_thread(self._number_of, to)
            text = self._text(to, number)
            same = (self._directory / "nginx.conf").read_text() == text
            await asyncio.to_thread(self._write, text, to.socket)
        except OSError as error:
            raise BridgeError(f"cannot tell {self._name} of another key: {error}") from error
        if not same:
            self.process.send(signal.SIGHUP)

    def _text(self, to: Keyed, held: int | None) -> str:
        engine = self._directory / ENGINE_LINK if held is None else Path(f"/proc/self/fd/{held}")
        user = own_user() if os.geteuid() == 0 else None
        return keyed_config(self._directory, engine, to.key, grpc=to.grpc, user=user)

    def _holds(self, to: Keyed) -> bool:
        """Whether the one that runs can lead there."""
        return to.inode is None or self._number_of(to) is not None

    def _number_of(self, to: Keyed) -> int | None:
        """The descriptor by which the one that runs holds the socket; None if it does not. Blocks."""
        if self.process is None or to.inode is None:
            return None
        for entry in Path(f"/proc/{self.process.pid}/fd").glob("*"):
            with suppress(OSError):
                if _inode(entry.stat()) == to.inode:
                    return int(entry.name)
        return None

    async def stop(self) -> None:
        """Ends it, with the connections it has."""
        identity = self.process.identity if self.process is not None else None
        await super().stop()
        if identity is not None:
            await stop_orphans(identity)
        for name in ("nginx.conf", "nginx.pid", "in.sock", ENGINE_LINK):
            (self._directory / name).unlink(missing_ok=True)

    def _write(self, text: str, socket: Path) -> None:
        make_directory(self._directory.parent, 0o700)  # Whoever gets in needs no key.
        make_directory(self._directory, 0o700)
        make_directory(self._directory / "temp", 0o700)
        link = self._directory / ENGINE_LINK
        if not link.is_symlink() or link.readlink() != socket:
            replace_link(link, socket)
        replace_file(self._directory / "nginx.conf", text)

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


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
