"""A simulated engine in a process and a network namespace of its own, watched and steered over its control socket."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from examples.simulated import EngineKind


class Host(Protocol):
    """Where, or as whom, a process runs: what its command line begins with."""

    @property
    def enter(self) -> list[str]: ...


class EngineProcess:
    """One engine on a host of its own."""

    def __init__(self, host: Host, socket: Path, kind: EngineKind, **options: Any) -> None:
        self.host = host
        self.socket = socket
        self._control = socket.with_name(f".{socket.stem}.control")
        words = {"kind": kind.value, "socket": str(socket), "model": "tiny", **options}
        self._arguments = [
            word
            for name, value in words.items()
            for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        ]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it; returns when it listens."""
        self.process = await asyncio.create_subprocess_exec(
            *self.host.enter, sys.executable, "-m", "examples.simulated", *self._arguments,
            "--control", str(self._control), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        while json.loads(await self.process.stdout.readline())["event"] != "ready":
            pass

    async def stop(self) -> None:
        """Ends it as SIGTERM does: what is in flight may finish, and the socket goes."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    async def kill(self) -> None:
        """Ends it as SIGKILL does."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def behave(self, **changes: object) -> None:
        """Changes some of its behaviour from now on."""
        await self._ask("PATCH", f"/engines/{self.socket.stem}", changes)

    async def seen(self) -> dict[str, Any]:
        """Its counters."""
        return dict(await self._ask("GET", f"/engines/{self.socket.stem}"))

    async def requests(self) -> list[dict[str, Any]]:
        """The bodies of its last inference requests."""
        answer = await self._ask("GET", f"/engines/{self.socket.stem}/requests")
        return [row["body"] for row in answer["requests"]]

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        connector = aiohttp.UnixConnector(str(self._control))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://x{path}", json=body) as answer,
        ):
            said = await answer.json()
            assert answer.status == 200, said
            return said
