"""The engines of the demo: simulated ones in this process, and on request a real MLX engine in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from pathlib import Path

from aiohttp import web

from examples.demo.gateway import DemoFailed, Gateway
from examples.simulated import SimulatedEngine
from examples.simulated.control import serve_control
from examples.simulated.fleet import Fleet

MLX_MODEL = "tiny-llama"
_REPOSITORY = Path(__file__).parents[2]


class Engines:
    """All engines that the demo started."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._control: web.AppRunner | None = None
        self._mlx: Process | None = None
        self.fleet = Fleet()

    @property
    def control(self) -> Path:
        """The socket by which the simulated engines can be changed from outside."""
        return self._gateway.directory / "engines.sock"

    async def open_control(self) -> None:
        """Lets a visitor change the simulated engines while the demo runs."""
        self._control = await serve_control(self.fleet, self.control)

    async def start(self, service: str, name: str, kind: str, **settings: object) -> SimulatedEngine:
        """Starts a simulated engine behind a replica socket of the service."""
        socket = self._gateway.sockets(service) / f"{name}.sock"
        return await self.fleet.start({"grace_s": 0.2, **settings, "name": name, "kind": kind, "socket": socket})

    async def stop(self, *names: str) -> None:
        """Stops engines; their sockets vanish."""
        await asyncio.gather(*(self.fleet.stop(name) for name in names))

    async def start_mlx(self, name: str) -> None:
        """Starts the real one. Raises DemoFailed where it is not installed."""
        python = Path(os.environ.get("MLX_PYTHON", sys.executable))
        if not python.exists():
            raise DemoFailed(f"MLX: there is no {python}; `make mlx` makes it")
        with (self._gateway.directory / "mlx.log").open("wb") as log:
            self._mlx = await asyncio.create_subprocess_exec(
                *(str(python), "-m", "examples.mlx_engine", "--cache", str(self._gateway.directory / "models")),
                *("--socket", str(self._gateway.sockets("chat") / f"{name}.sock")),
                cwd=_REPOSITORY, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def mlx_words(self) -> str:
        """What the real engine wrote last, for a failure."""
        log = self._gateway.directory / "mlx.log"
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]) if log.exists() else ""

    async def close(self) -> None:
        """Ends them all."""
        await self.fleet.stop_all()
        if self._control is not None:
            await self._control.cleanup()
        if self._mlx is not None and self._mlx.returncode is None:
            self._mlx.terminate()
            try:
                async with asyncio.timeout(10):
                    await self._mlx.wait()
            except TimeoutError:
                self._mlx.kill()
                await self._mlx.wait()
