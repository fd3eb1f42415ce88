"""For all unit tests: worlds to run in, and a look at what they leave behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog

from gateway_sidecar.supervision.own_thread import OwnThread
from tests.unit.world import Worlds, running_world


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    """Makes a world that runs. Within the test, where time is fake."""
    return partial(running_world, tmp_path, monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def _no_disk_is_waited_for() -> Iterator[None]:
    """No machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def own_logs() -> Iterator[None]:
    """The test may set up the log: later ones have it as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


THREADS = (asyncio.to_thread, OwnThread.run)


@pytest.fixture(autouse=True)
def _nothing_stays_in_place_of_threads() -> Iterator[None]:
    """Tests of other directories may run after these, in the same process."""
    yield
    assert (asyncio.to_thread, OwnThread.run) == THREADS
