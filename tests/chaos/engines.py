"""Processes with simulated engines in them, as the stage uses them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.events import Engine
from tests.chaos.history import Served


class EngineHost:
    """One process. It can be killed, and started again without its engines."""

    def __init__(self, directory: Path, number: int) -> None:
        self.control = directory / f"host-{number}.sock"
        self.journal = directory / f"journal-{number}.jsonl"
        self._errors = directory / f"host-{number}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Returns when the control API answers."""
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.chaos.host", str(self.control), str(self.journal),
                stdin=asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.control)))
        async with asyncio.timeout(20):
            while True:
                try:
                    async with self._session.get("http://host/engines") as response:
                        await response.read()
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL. What it served breaks, and its socket files stay."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._session is not None:
            await self._session.close()

    async def ask(self, method: str, path: str, body: object = None, **query: str) -> None:
        """One request of the control API. Raises OSError where it refuses, or is not there."""
        assert self._session is not None
        try:
            async with self._session.request(
                method, f"http://host/engines{path}", data=None if body is None else json.dumps(body), params=query
            ) as response:
                if response.status >= 400:
                    raise OSError(f"{method} {path}: {await response.text()}")
        except (aiohttp.ClientError, RuntimeError) as error:
            raise OSError(f"{method} {path}: {error!r}") from error

    async def begin(self, engine: Engine, socket: Path) -> None:
        """Starts an engine behind a path."""
        settings: dict[str, Any] = {
            "name": engine.name,
            "kind": engine.kind,
            "model": engine.model,
            "role": engine.role,
            "socket": str(socket),
            "token_interval_s": engine.token_interval_s,
            "load_s": engine.load_s,
            "listen_delay_s": engine.listen_delay_s,
        }
        await self.ask("POST", "", settings)


def read_journal(path: Path) -> Iterator[Served]:
    """What the engines of a journal served, in the order of its ends; last those that never ended."""
    begun: dict[tuple[str, int], list[float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # Half a line: the process was killed while it wrote.
        key = (row["engine"], row["request"])
        if row["what"] == "begun":
            begun.setdefault(key, []).append(row["at"])
        else:
            yield Served(*key, begun[key].pop(0), row["at"], row["what"])
    for (engine, request), instants in begun.items():
        for at in instants:
            yield Served(engine, request, at, None, None)
