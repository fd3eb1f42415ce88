"""An HTTP server on a Unix socket, bound again if somebody removes its file. Who is connected stays connected."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

_MODE = 0o660


class UnixDoor:
    """Listens on `path`, mode 0660, from `open` to `close`."""

    def __init__(self, runner: web.AppRunner, path: Path, *, backlog: int = 128) -> None:
        self._runner = runner
        self._path = path
        self._backlog = backlog
        self._site: web.UnixSite | None = None
        self._bound: tuple[int, int] | None = None

    async def open(self) -> None:
        """Begins to listen. Raises OSError."""
        await self._runner.setup()
        await self._bind()

    async def mend(self) -> bool:
        """Listens there again if the socket is gone, or another; whether that was needed. Raises OSError."""
        if self._bound == self._found():
            return False
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()
        await self._bind()
        return True

    async def close(self) -> None:
        """Ends all connections."""
        await self._runner.cleanup()

    async def _bind(self) -> None:
        self._path.unlink(missing_ok=True)
        site = web.UnixSite(self._runner, str(self._path), backlog=self._backlog)
        try:
            await site.start()
        except OSError:
            await site.stop()
            raise
        self._site = site
        self._path.chmod(_MODE)
        self._bound = self._found()

    def _found(self) -> tuple[int, int] | None:
        try:
            there = self._path.stat()
        except OSError:
            return None
        return there.st_dev, there.st_ino
