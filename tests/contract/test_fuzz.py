"""A short piece of random input at each edge, the same each time; `make fuzz` is the long one."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.fuzz.frame import edges

SECONDS = 8


@pytest.mark.parametrize("edge", edges())
async def test_random_input_holds_up_nothing_and_forges_nothing(edge: str) -> None:
    """In a process of its own, whose memory and event loop are measured: 50 ms of CPU in one go, 32 MB."""
    argv = ("-m", "tests.fuzz", "--minutes", f"{SECONDS / 60}", "--seed", "623", "--edge", edge)
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
