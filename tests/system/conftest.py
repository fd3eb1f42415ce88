"""Fixtures for tests on the real parts. What they start they end, by pid."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from examples.simulated import Behaviour, EngineKind, EngineSpec, SimulatedEngine, start_engine
from tests.system.gateway import Gateway

StartEngine = Callable[..., Awaitable[SimulatedEngine]]
MakeGateway = Callable[..., Gateway]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)
            if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
                item.add_marker(pytest.mark.skip(reason="nginx is not installed; `make test` installs it"))


@pytest_asyncio.fixture
async def make_gateway() -> AsyncIterator[MakeGateway]:
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        made.append(Gateway(**settings))
        return made[-1]

    yield make
    for gateway in made:
        await gateway.close()


@pytest_asyncio.fixture
async def gateway(make_gateway: MakeGateway) -> Gateway:
    """A gateway with one service, `chat`, that runs."""
    made = make_gateway()
    await made.start()
    return made


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[StartEngine]:
    """Starts simulated engines in this process: `await engine(socket, kind=..., model=..., load_s=...)`."""
    started: list[SimulatedEngine] = []

    async def start(
        socket: Path, kind: EngineKind = EngineKind.SGLANG_HTTP, model: str = "tiny", **options: Any
    ) -> SimulatedEngine:
        of_spec = {k: v for k, v in options.items() if k in EngineSpec.__dataclass_fields__}
        of_behaviour = {k: v for k, v in options.items() if k not in of_spec}
        spec = EngineSpec(kind=kind, socket=socket, model=model, **of_spec)
        started.append(await start_engine(spec, Behaviour(**of_behaviour)))
        return started[-1]

    yield start
    for one in started:
        await one.stop(grace_s=0)
