"""Fixtures for tests of the SSH engines: either backend, a real sshd, and one daemon's tunnels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway_sidecar.domain.tunnels import BackendName
from tests.contract.tunnel_world import World
from tests.ssh_servers import Sshd


@pytest.fixture(params=["openssh", "asyncssh"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    backend: BackendName = request.param
    return backend


@pytest.fixture
def sshd(tmp_path: Path) -> Any:
    server = Sshd(tmp_path / "sshd")
    server.start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "tunnels")
    yield made
    await made.close()
