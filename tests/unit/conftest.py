"""For all unit tests: a busy machine fails none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from gateway_sidecar.supervision.own_thread import OwnThread
from tests.unit.world import Worlds, running_world

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    """Makes a world that runs. Within the test, where time is fake."""
    return partial(running_world, tmp_path, monkeypatch)


THREADS = (asyncio.to_thread, OwnThread.run)


@pytest.fixture(autouse=True)
def _nothing_stays_in_place_of_threads() -> Iterator[None]:
    """Tests of other directories may run after these, in the same process."""
    yield
    assert (asyncio.to_thread, OwnThread.run) == THREADS
