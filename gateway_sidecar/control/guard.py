"""The edge of every loop: a fault of ours in one is told and counted, and touches no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_PAUSE_S = 1.0
_BEAT_S = 1.0


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels the tasks there are and waits for their end."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


async def beating(work: Coroutine[Any, Any, None], beat: Callable[[], None]) -> None:
    """Awaits `work` and calls `beat` each second meanwhile.

    For what waits for others, each time for so long and no longer: that they are slow is no fault of the loop's.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            beat()
            await asyncio.wait({task}, timeout=_BEAT_S)
    finally:
        if not task.done():
            await cancelled(task)
    task.result()


async def keep_running(service: str, loop: Callable[[], Coroutine[Any, Any, None]], metrics: Metrics) -> None:
    """Runs `loop` until cancelled, and again a second after each fault."""
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001 - this is the edge
            metrics.loop_failures.labels(service).inc()
            get_logger(service=service).exception("loop.failed", loop=loop.__qualname__)
            await asyncio.sleep(_PAUSE_S)
