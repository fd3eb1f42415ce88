"""For all unit tests: a busy machine fails none of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.fake_time import no_threads
from tests.unit.world import Worlds, running_world

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    """Makes a world that runs. Within the test, where time is fake."""
    return partial(running_world, tmp_path, monkeypatch)


@pytest.fixture
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tests in fake time. By the same `monkeypatch` as the test's own: what it puts in its place is undone first."""
    no_threads(monkeypatch)
