"""What every edge is judged by, and how its trials are run.

What the other side says is a pure function of the seed. A trial runs on asyncio's own loop, whose callbacks can be
measured one by one, in CPU time of the loop's thread: a busy machine does not make them longer. The other side
therefore runs in threads (`servers.py`), and takes little memory: what the process grows by is the subject's.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import collections
import contextlib
import gc
import importlib
import pkgutil
import random
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tests.fuzz

MOST_CALLBACK_S = 0.05
"""CPU time of one callback: nobody else has his turn for so long."""
MOST_GROWTH_MB = 32
"""Resident memory at its highest in a trial, over what it was before it."""
_TRIES = 3
"""A callback that took too long is played again: garbage that is collected, and a neighbour of the CPU, only add."""
_TRIAL_S = 30.0
"""A trial that takes longer hangs. Wall-clock, and far beyond what any takes."""

_MOST_SHOWN = 10

Trial = Callable[[random.Random], Awaitable[str]]
"""Plays one random input; what came of it, in a word or two, to be counted. Raises AssertionError for a forgery."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of the daemon.

    `open` sets up what all its trials share, such as a router's client or an admin API, in a directory of its own.
    """

    name: str
    open: Callable[[Path], contextlib.AbstractAsyncContextManager[Trial]]


def edges() -> dict[str, Edge]:
    """Every edge that has a module here, by name."""
    names = [each.name for each in pkgutil.iter_modules(tests.fuzz.__path__) if each.name != "__main__"]
    modules = [importlib.import_module(f"tests.fuzz.{name}") for name in names]
    found: list[Edge] = [module.EDGE for module in modules if hasattr(module, "EDGE")]
    return {edge.name: edge for edge in found}


@dataclass(slots=True)
class Report:
    """What a run found."""

    trials: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    worst_callback_s: float = 0.0
    worst_callback_of: str = ""
    worst_growth_mb: float = 0.0
    worst_growth_of: str = ""
    faults: list[str] = field(default_factory=list)

    def render(self) -> str:
        """For people."""
        lines = [f"{self.trials} trials"]
        lines += [f"  {count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        lines.append(f"longest callback {self.worst_callback_s * 1000:.1f} ms of CPU: {self.worst_callback_of}")
        lines.append(f"largest growth {self.worst_growth_mb:.1f} MB: {self.worst_growth_of}")
        lines += [f"FAULT {fault}" for fault in self.faults[:_MOST_SHOWN]]
        if len(self.faults) > _MOST_SHOWN:
            lines.append(f"and {len(self.faults) - _MOST_SHOWN} faults more")
        return "\n".join(lines)


class _CallbackMeter:
    """The longest callback of asyncio's loop since it was last asked, in CPU time of its thread."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest = ""

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """While this is open every callback of every asyncio loop is measured."""
        handle: Any = asyncio.events.Handle
        run = handle._run

        def measured(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            # Before it runs: afterwards a coroutine does not say any more where it was.
            try:
                run(handle)
            finally:
                took = time.thread_time() - began
                if took > self.longest_s:
                    self.longest_s, self.longest = took, repr(handle)

        handle._run = measured
        try:
            yield
        finally:
            handle._run = run

    def restart(self) -> None:
        """Forget what was measured."""
        self.longest_s, self.longest = 0.0, ""


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"the kernel tells no {name}")


def run(chosen: list[Edge], seed: str, seconds: float, only: int | None = None) -> Report:
    """Plays trials of the chosen edges in turn for some seconds, or one alone by its number."""
    report = Report()
    meter = _CallbackMeter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory, meter.measuring(), asyncio.Runner() as runner:
        gc.collect()
        gc.freeze()  # What was imported is looked through no more: that is no work of a trial.
        runner.run(_play(chosen, seed, seconds, only, Path(directory), meter, report))
    return report


async def _play(
    chosen: list[Edge],
    seed: str,
    seconds: float,
    only: int | None,
    directory: Path,
    meter: _CallbackMeter,
    report: Report,
) -> None:
    loose: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: loose.append(_fault_of(about)))
    async with contextlib.AsyncExitStack() as stack:
        trials: dict[str, Trial] = {}
        for edge in chosen:
            place = directory / edge.name
            place.mkdir()
            trials[edge.name] = await stack.enter_async_context(edge.open(place))
        for name, trial in trials.items():  # What is done once, such as compiling patterns, is done by now.
            await _try(name, trial, f"{seed}/{name}/warm-up", meter, Report())
        end = time.monotonic() + seconds
        number = only or 0
        while time.monotonic() < end:
            for name, trial in trials.items():
                await _try(f"{name} {number}", trial, f"{seed}/{name}/{number}", meter, report)
                report.faults += [f"{name} {number}: {fault}" for fault in loose]
                loose.clear()
            number += 1
            if only is not None:
                return


async def _try(name: str, trial: Trial, seed: str, meter: _CallbackMeter, report: Report) -> None:
    report.trials += 1
    for _ in range(_TRIES):
        Path("/proc/self/clear_refs").write_text("5")  # The highest is counted anew.
        before_mb = _status_mb("VmRSS")
        meter.restart()
        outcome = "failed"
        try:
            async with asyncio.timeout(_TRIAL_S):
                outcome = await trial(random.Random(seed))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next trial is played
            report.faults.append(f"{name}: {''.join(traceback.format_exception(error))}")
        await asyncio.sleep(0)  # The callback that this runs in counts as well.
        growth_mb = _status_mb("VmHWM") - before_mb
        if meter.longest_s <= MOST_CALLBACK_S:
            break
    report.outcomes[f"{name.split()[0]}: {outcome}"] += 1
    if meter.longest_s > report.worst_callback_s:
        report.worst_callback_s, report.worst_callback_of = meter.longest_s, f"{name} ({outcome}): {meter.longest}"
    if growth_mb > report.worst_growth_mb:
        report.worst_growth_mb, report.worst_growth_of = growth_mb, f"{name} ({outcome})"
    if meter.longest_s > MOST_CALLBACK_S:
        report.faults.append(f"{name} ({outcome}): {meter.longest_s * 1000:.0f} ms of CPU in one go: {meter.longest}")
    if growth_mb > MOST_GROWTH_MB:
        report.faults.append(f"{name} ({outcome}): {growth_mb:.0f} MB of memory")


def _fault_of(about: dict[str, Any]) -> str:
    error = about.get("exception")
    return f"{about.get('message')}: {error!r}"
