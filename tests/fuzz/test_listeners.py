"""A short run of `listeners.py`, with another seed each time."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.fuzz.listeners import run


@pytest.mark.system
@pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="nginx is not installed"
)
async def test_random_input_at_the_daemons_own_listeners() -> None:
    """Honest requests are answered all the while; a failure names the seed."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    await run(seed, 8.0)
