"""Engines in another process, as the benchmark sees them."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any, Self

from examples.simulated import EngineKind

__all__ = ["EngineHost", "EngineKind", "settings"]


def settings(socket: Path, kind: EngineKind = EngineKind.SGLANG_HTTP, **options: object) -> dict[str, object]:
    """One engine's settings, as the host takes them."""
    return {"kind": str(kind), "socket": str(socket), **options}


class EngineHost:
    """A process with simulated engines in it. Use it as an async context manager."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.engine_host",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=1 << 24,
                start_new_session=True,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # It ends with its input.
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def start(self, *engines: dict[str, object]) -> list[float]:
        """Start engines; the monotonic instants at which each began to listen. Returns when all of them do."""
        answer = await self._ask(do="start", engines=engines)
        return list(answer["listening_at"])

    async def stop(self, name: str, *, grace_s: float = 0.0) -> None:
        """Stop an engine gracefully: its socket goes, requests in flight get `grace_s` seconds."""
        await self._ask(do="stop", name=name, grace_s=grace_s)

    async def behave(self, name: str, **changes: object) -> None:
        """Change how an engine behaves."""
        await self._ask(do="behave", name=name, changes=changes)

    async def counts(self) -> dict[str, dict[str, Any]]:
        """What each engine saw, by name."""
        return dict((await self._ask(do="counts"))["counts"])

    async def _ask(self, **ask: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        number = next(self._ids)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"id": number, **ask}).encode() + b"\n")
        answer = await self._asked[number]
        if "error" in answer:
            raise RuntimeError(f"the engines' process: {answer['error']}")
        return answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            answer = json.loads(line)
            self._asked.pop(answer["id"]).set_result(answer)
        for waiting in self._asked.values():
            waiting.set_exception(RuntimeError(f"the engines' process ended: {self._log.read_text()[-500:]}"))
