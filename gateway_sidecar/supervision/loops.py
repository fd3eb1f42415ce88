"""Background work that is guarded: a fault of ours in a loop or a task is logged, counted and survived.

`run_forever` runs what never ends, `Tasks.until_done` what has to succeed, `Tasks.spawn` what is tried once and says
what to look at again after a fault, as does `Tasks.guarded` for what the event loop calls. Nothing else makes a
background task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

Work = Coroutine[Any, Any, None]
Loop = Callable[[], Work]

PAUSE_S = 1.0
"""Between a fault and the next try: what fails at once does not take the CPU, and a person notices no pause."""
LOOK_S = 2.0
"""How often a loop looks for what nothing tells it of. A person who waits for it has patience for that, and a daemon
without replicas took 0.57 % of a core when loops looked more often, and 0.33 % since (docs/figures.md)."""
_BEAT_S = 1.0  # A tenth of what makes a loop late (`control/process/watchdog.py`).


@dataclass(slots=True, eq=False)
class Heartbeat:
    """One loop that runs: `name`, and when it last made progress (awake seconds)."""

    name: str
    at: float


class Heartbeats:
    """All loops that run and tell of their progress."""

    def __init__(self) -> None:
        self._beating: set[Heartbeat] = set()

    def stalest(self) -> Heartbeat | None:
        """The loop that is most behind."""
        return min(self._beating, key=lambda it: it.at, default=None)

    def note(self, beat: Heartbeat) -> None:
        """The loop comes round."""
        beat.at = awake.now()
        self._beating.add(beat)

    def forget(self, beat: Heartbeat) -> None:
        """The loop runs no more."""
        self._beating.discard(beat)


HEARTBEATS = Heartbeats()
"""The process's own: there is one daemon in it."""

_OWN: ContextVar[Heartbeat | None] = ContextVar("own heartbeat", default=None)


def heartbeat() -> None:
    """The loop that calls this, run by `run_forever`, makes progress. From the first call on it has to."""
    own = _OWN.get()
    if own is not None:
        HEARTBEATS.note(own)


class Tasks:
    """The background tasks of one owner.

    service: whose they are; "-" for the daemon's own.
    """

    def __init__(self, service: str, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Work, *, again: Callable[[], object] | None = None) -> asyncio.Task[None]:
        """Runs `work`. A second after a fault `again` is called, which looks again at what the work was about."""
        return self._keep(self._once(work, again))

    def guarded(self, act: Callable[[], object], *, again: Callable[[], object]) -> Callable[[], None]:
        """`act` as a timer or a connection may call it. A second after a fault `again` is called."""

        def call() -> None:
            with survived(self._service, _name(act), self._metrics):
                act()
                return
            self._keep(self._look_again(_name(act), again))

        return call

    def until_done(self, work: Loop) -> asyncio.Task[None]:
        """Runs `work`, and after each fault again, until it returns."""
        return self._keep(self._until_done(work))

    def run_forever(self, loop: Loop) -> asyncio.Task[None]:
        """Runs `loop` until cancelled."""
        return self._keep(run_forever(self._service, loop, self._metrics))

    async def close(self) -> None:
        """Cancels all that run, and waits for their end."""
        await cancelled(*self._tasks)

    def _keep(self, work: Work) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _once(self, work: Work, again: Callable[[], object] | None) -> None:
        name = _name(work)
        with survived(self._service, name, self._metrics):
            await work
            return
        if again is not None:
            await self._look_again(name, again)

    async def _look_again(self, name: str, again: Callable[[], object]) -> None:
        await asyncio.sleep(PAUSE_S)
        with survived(self._service, name, self._metrics):
            again()

    async def _until_done(self, work: Loop) -> None:
        while True:
            with survived(self._service, _name(work), self._metrics):
                return await work()
            await asyncio.sleep(PAUSE_S)


def _name(work: object) -> str:
    """As it stands in the log: of a coroutine, a function or a `partial` of one."""
    return str(getattr(getattr(work, "func", work), "__qualname__", work))


class survived:  # noqa: N801 - reads as contextlib.suppress does
    """The edge of what is guarded: a fault inside `with survived(...)` is logged and counted, and goes no further."""

    def __init__(self, service: str, name: str, metrics: Metrics) -> None:
        self._service = service
        self._name = name
        self._metrics = metrics

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> bool:
        if not isinstance(fault, Exception):
            return False  # Nothing happened, or somebody wants the task, or all of us, to end.
        self._metrics.loop_failures.labels(self._service).inc()
        get_logger(service=self._service).error("loop.failed", loop=self._name, exc_info=fault)
        return True


async def run_forever(service: str, loop: Loop, metrics: Metrics) -> None:
    """Runs `loop` until cancelled, and again a second after each fault."""
    own = Heartbeat(f"{service}: {_name(loop)}", awake.now())
    _OWN.set(own)
    try:
        while True:
            with survived(service, _name(loop), metrics):
                await loop()
                continue
            await asyncio.sleep(PAUSE_S)
    finally:
        HEARTBEATS.forget(own)


def watch_event_loop(metrics: Metrics) -> None:
    """Logs and counts what no guard caught: a callback's fault, or that of a task that was never awaited."""

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        if fault is None:
            loop.default_exception_handler(context)
            return
        metrics.loop_failures.labels("-").inc()
        what = str(context.get("future") or context.get("handle") or context["message"])
        get_logger().error("loop.failed", loop=what, exc_info=fault)

    asyncio.get_running_loop().set_exception_handler(report)


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels the tasks there are and waits for their end."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


async def beating(work: Work) -> None:
    """Awaits `work`, with a heartbeat each second meanwhile.

    For what waits for others, each time for so long and no longer: that they are slow is no fault of the loop's.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            heartbeat()
            await asyncio.wait({task}, timeout=_BEAT_S)
    finally:
        if not task.done():
            await cancelled(task)
    task.result()
