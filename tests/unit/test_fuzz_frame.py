"""The fuzz suite's own eyes: what is held up, filled or forged is seen, and named by edge and number."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.fuzz.frame import Edge, Report, Trial, edges, run


def played(trial: Trial) -> Report:
    @contextlib.asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Trial]:
        yield trial

    return run([Edge("made-up", opened)], "seed", 60, only=7)


async def good(_source: random.Random) -> str:
    return "well"


async def slow(_source: random.Random) -> str:
    began = time.thread_time()
    while time.thread_time() - began < 0.1:
        pass
    return "slow"


async def greedy(_source: random.Random) -> str:
    return f"greedy {len(b'x' * 64 * 1024 * 1024)}"


async def forged(source: random.Random) -> str:
    assert source.random() > 1, "forged"
    return ""


def test_each_kind_of_fault_is_seen() -> None:
    """And nothing where there is none."""
    assert played(good).faults == []
    for trial, told in ((slow, "ms of CPU in one go"), (greedy, "MB of memory"), (forged, "forged")):
        faults = played(trial).faults
        assert any(told in fault for fault in faults)
        assert all(fault.startswith("made-up 7") for fault in faults)


def test_every_module_with_an_edge_is_found() -> None:
    """Whoever adds one has nothing else to do."""
    there = {
        path.stem for path in Path(__file__).parents[1].joinpath("fuzz").glob("*.py") if "EDGE = " in path.read_text()
    }
    assert set(edges()) == there
