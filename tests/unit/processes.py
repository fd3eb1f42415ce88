"""Processes that are played: they end when they are asked to, or when the test says so."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway_sidecar.supervision.process import Identity, Process


class PlayedProcess:
    """A `Process`; `stubborn` ends only after the grace that it is given."""

    def __init__(self, pid: int, *, stubborn: bool = False) -> None:
        self.identity = Identity(pid, 1, "boot")
        self.exit_code: int | None = None
        self.is_let_go = False
        self._stubborn = stubborn
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def end(self, exit_code: int = -9) -> None:
        """It ends by itself, or is killed."""
        self.exit_code = exit_code
        self._ended.set()

    async def wait(self) -> None:
        await self._ended.wait()

    async def stop(self, *, grace_s: float) -> None:
        if self._stubborn:
            await asyncio.sleep(grace_s)
        self.end()

    def detach(self) -> None:
        self.is_let_go = True


def as_process(played: PlayedProcess) -> Process:
    return cast("Process", cast("Any", played))
