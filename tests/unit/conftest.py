"""For all unit tests: a busy machine fails none of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.world import Worlds, running_world

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    """Makes a world that runs. Within the test, where time is fake."""
    return partial(running_world, tmp_path, monkeypatch)
