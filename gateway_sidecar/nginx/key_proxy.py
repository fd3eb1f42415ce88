"""One small nginx between a bridge and an engine that needs an API key, speaks TLS or has its API below another prefix:
it adds the key to every request, and says `/v1` as the engine does. A router does not always send a key: SMG passes on
a client's own `Authorization` instead, and sends none with health questions or over gRPC. The bridge's symlink leads to
this nginx, and this nginx to the engine.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gateway_sidecar.domain.model import Access
from gateway_sidecar.errors import NginxError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file, replace_link
from gateway_sidecar.nginx.config import ALIVE, QUEUE_LUA, KeyedConfig, Rendered
from gateway_sidecar.nginx.connections import holds_listener
from gateway_sidecar.nginx.server import (
    ENGINE_LINK,
    KEYED,
    NginxProgram,
    ask_in_force,
    own_user,
    refusal,
    stop_orphans,
    write_script,
)
from gateway_sidecar.nginx.small import SmallNginx, SmallPlaces, small_left_running
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.process import Identity, Process, descriptors_of, session_members

_IN_FORCE_S = 5.0  # Half of `nginx/server.py`'s: it listens on one socket of its own, where nobody else does.
_LINES = 20  # What nginx writes at one reload is a few lines.


@dataclass(frozen=True, slots=True)
class Keyed:
    """What one leads to, and how: the key that it shows there, TLS, the prefix.

    inode: the socket's device and inode, where there is a descriptor of it (`handle`). The key is then shown to that
        very socket, and never to another that somebody binds in its place, whether a daemon notices it or not.
    """

    socket: Path
    access: Access
    grpc: bool
    inode: tuple[int, int] | None = None
    handle: int | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Keyed({self.socket})"

    def hold(self) -> int | None:
        """A descriptor of the socket, the caller's to close; None where it is known by its path. Raises NginxError."""
        if self.inode is None:
            return None
        try:
            held = os.dup(self.handle if self.handle is not None else -1)
        except OSError:
            raise NginxError(f"{self.socket} is no longer held open") from None
        if _inode(os.fstat(held)) != self.inode:
            os.close(held)
            raise NginxError(f"{self.socket} has been replaced")
        return held


class KeyedNginx(SmallNginx):
    """The nginx of one bridge port."""

    def __init__(self, places: SmallPlaces, port: int) -> None:
        super().__init__(places, places.directory / KEYED / str(port), "the nginx before its engine")
        self.listens_at = self._directory / "in.sock"
        self._alive = self._directory / ALIVE

    async def lead(self, to: Keyed) -> None:
        """Starts it, or gives one that runs its new key; returns when no new connection is shown anything else.

        Raises NginxError. One that runs may then show what it did before.
        """
        program = await self._places.find()
        if self.running and await asyncio.to_thread(self._holds, to):
            await self._give(program, to)
            return
        if self.running:
            await self.stop()
        held = to.hold()
        try:
            if self.process is not None:
                await stop_orphans(self.process.identity)
            config = self._config(program, to, held)
            await asyncio.to_thread(self._write, config.text, to.socket)
            for left in (self.listens_at, self._alive):  # nginx does not listen where a killed one did.
                left.unlink(missing_ok=True)
            says = partial(self._says, config.number)
            await self._spawn(program, says, keep_fds=() if held is None else (held,))
        except OSError as error:
            raise NginxError(f"cannot start {self._name}: {error}") from error
        finally:
            if held is not None:
                os.close(held)

    async def _give(self, program: NginxProgram, to: Keyed) -> None:
        """Connections that are open keep the old key, new ones get the new."""
        process = self.process
        assert process is not None
        config = self._config(program, to, await asyncio.to_thread(self._descriptor_of, to))
        said_before = Counter(await self._places.log.read_tail(_LINES))
        if not await self._says(config.number):
            try:
                await asyncio.to_thread(self._write, config.text, to.socket)
            except OSError as error:
                raise NginxError(f"cannot give {self._name} its new key: {error}") from error
            process.send(signal.SIGHUP)
        await self._until_in_force(config.number, process, said_before)

    async def _until_in_force(self, number: str, process: Process, said_before: Counter[str]) -> None:
        """Returns when its workers have the configuration of this number. Raises NginxError if they do not get it.

        A signal says nothing: nginx may refuse what it is told, and its old worker takes connections on for a while.
        """
        deadline = awake.now() + _IN_FORCE_S
        while True:
            if await self._says(number):
                if await asyncio.to_thread(self._takers, process.identity) == 1:
                    return
            elif not process.running:
                raise NginxError(f"{self._name} has ended")
            else:
                its_own = [it for it in await self._places.log.read_tail(_LINES) if f" {process.pid}#" in it]
                if words := refusal(its_own, said_before):
                    raise NginxError(f"{self._name} refuses its new key and shows the old one: {words}")
            if awake.now() > deadline:
                raise NginxError(f"{self._name} has not taken its new key within {_IN_FORCE_S:g} s; it may hang")
            await asyncio.sleep(0.01)

    def _takers(self, master: Identity) -> int:
        """How many workers take connections: the new one, and the old one for a while."""
        return sum(1 for it in session_members(master) if holds_listener(it.pid, self.listens_at))

    def _config(self, program: NginxProgram, to: Keyed, held: int | None) -> Rendered:
        engine = self._directory / ENGINE_LINK if held is None else Path(f"/proc/self/fd/{held}")
        return KeyedConfig(self._directory, engine, to.access, to.grpc, program.lua_modules, own_user()).rendered()

    def _holds(self, to: Keyed) -> bool:
        """Whether the one that runs can lead there, and would not show another engine the key that it has now."""
        if to.inode is not None:
            return self._descriptor_of(to) is not None
        try:
            return (self._directory / ENGINE_LINK).readlink() == to.socket
        except OSError:
            return False

    def _descriptor_of(self, to: Keyed) -> int | None:
        """The descriptor by which the one that runs holds the socket; None if it does not. Blocks."""
        if self.process is None or to.inode is None:
            return None
        for entry in descriptors_of(self.process.pid):
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
        for name in ("nginx.conf", "nginx.pid", "in.sock", ALIVE, ENGINE_LINK, QUEUE_LUA):
            (self._directory / name).unlink(missing_ok=True)

    def _write(self, text: str, socket: Path) -> None:
        make_directory(self._directory.parent, 0o700)  # Whoever gets in needs no key.
        make_directory(self._directory, 0o700)
        make_directory(self._directory / "temp", 0o700)
        link = self._directory / ENGINE_LINK
        if not link.is_symlink() or link.readlink() != socket:
            replace_link(link, socket)
        write_script(self._directory, QUEUE_LUA)
        replace_file(self._directory / "nginx.conf", text)

    async def _says(self, number: str) -> bool:
        """Whether it says that it serves the configuration of this number."""
        return await ask_in_force(self._alive) == number


def keyed_left_running(places: SmallPlaces) -> dict[int, Identity]:
    """Those of an earlier daemon that still run, by the port of their bridge. Blocks: call in a thread."""
    return {
        int(directory.name): identity
        for directory, identity in small_left_running(places)
        if directory.parent == places.directory / KEYED and directory.name.isdigit()
    }


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
