"""A real engine, from the outside in: MLX on gRPC behind a Unix socket, as `make mlx` installs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.mlx_engine import MODEL_NAME
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, ProbeResult, Ready
from gateway_sidecar.engines.probe import EngineProbe
from tests.system.clients import ask
from tests.system.gateway import Gateway, replica_of, states_of

REPOSITORY = Path(__file__).parents[2]
STARTS_WITHIN_S = 120.0
HAS_MLX = """
from importlib.util import find_spec
raise SystemExit(not all(find_spec(name) for name in ("mlx", "mlx_lm", "smg_grpc_servicer")))
"""


def _python_with_mlx() -> str | None:
    """The interpreter that has MLX: MLX_PYTHON, the one of `make mlx`, or this one."""
    for python in (os.environ.get("MLX_PYTHON"), REPOSITORY / ".venv-mlx" / "bin" / "python", sys.executable):
        if python and Path(python).exists():
            asked = subprocess.run([python, "-c", HAS_MLX], check=False)
            if asked.returncode == 0:
                return str(python)
    return None


MLX_PYTHON = _python_with_mlx()
HAS_NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is not None

pytestmark = [
    pytest.mark.skipif(MLX_PYTHON is None, reason="MLX is not installed; `make mlx` installs it into .venv-mlx"),
    pytest.mark.skipif(not HAS_NGINX, reason="nginx is not installed; `make test` installs it"),
]


class Mlx:
    """One MLX engine in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, socket: Path, cache: Path) -> Mlx:
        assert MLX_PYTHON is not None
        path = cache / f"{socket.stem}.log"
        command = ("-m", "examples.mlx_engine", "--cache", str(cache), "--socket", str(socket))
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(MLX_PYTHON, *command, cwd=REPOSITORY, stdout=log, stderr=log)
        return cls(process, path)

    def words(self) -> str:
        """What it wrote last, for a failure."""
        return f"engine, exit code {self._process.returncode}: {self._log.read_text()[-3000:]}"

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def stop(self) -> None:
        if self.running:
            self._process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        await self._process.wait()


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """Where the model is made, once for all tests here."""
    directory = Path(tempfile.mkdtemp(prefix="mlx-", dir="/tmp"))  # short, because a Unix socket's path is
    yield directory
    shutil.rmtree(directory)


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    await made.start()
    yield made
    await made.close()


async def identified(socket: Path, engine: Mlx) -> ProbeResult:
    """The probe's first result that is Ready."""
    probe, deadline, result = EngineProbe(), time.monotonic() + STARTS_WITHIN_S, None
    while not isinstance(result, Ready):
        assert engine.running, engine.words()
        assert time.monotonic() < deadline, f"{result}; {engine.words()}"
        result = await probe.identify(str(socket), timeout_s=2)
        await asyncio.sleep(0.05)
    return result


async def test_the_probe_knows_a_real_engine(cache: Path) -> None:
    """It is identified as what it is, and its health is asked without asking again what it is."""
    socket = cache / "probed.sock"
    engine = await Mlx.start(socket, cache)
    try:
        facts = EngineFacts("mlx", ConnectionMode.GRPC, model=MODEL_NAME)
        assert await identified(socket, engine) == Ready(facts)
        assert await EngineProbe().check_health(str(socket), facts, timeout_s=60) == Ready(facts)
    finally:
        await engine.stop()


async def test_a_real_engine_answers_through_the_service_address(cache: Path, gateway: Gateway) -> None:
    """Socket, bridge, probe, router, service address: a client's chat reaches a real engine, streamed and not."""
    engine = await Mlx.start(gateway.socket("mlx"), cache)
    try:
        status = await gateway.until(
            lambda seen: not engine.running or states_of(seen) == {"mlx": "serving"}, within_s=STARTS_WITHIN_S
        )
        assert engine.running, engine.words()
        row = replica_of(status, "mlx")
        assert (row["runtime_type"], row["connection_mode"], row["worker_type"]) == ("mlx", "grpc", "regular")
        assert row["model"] == MODEL_NAME
        for stream in (False, True):
            assert await ask(gateway, MODEL_NAME, stream=stream, tokens=8)
    finally:
        await engine.stop()
    await gateway.until_states({}, within_s=60)
    assert await gateway.workers() == []
