"""The edge of every loop: a fault of ours in one is told and counted, and touches no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_PAUSE_S = 1.0


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels the tasks there are and waits for their end."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


async def keep_running(service: str, loop: Callable[[], Coroutine[Any, Any, None]], metrics: Metrics) -> None:
    """Runs `loop` until cancelled, and again a second after each fault."""
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001 - this is the edge
            metrics.loop_failures.labels(service).inc()
            get_logger(service=service).exception("loop.failed", loop=loop.__qualname__)
            await asyncio.sleep(_PAUSE_S)
