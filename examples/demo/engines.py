"""The engines of the demo: simulated ones in this process, and on request real ones in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from examples.demo.gateway import DemoFailed, Gateway
from examples.simulated import SimulatedEngine
from examples.simulated.control import serve_control
from examples.simulated.fleet import Fleet

MLX_MODEL = "tiny-llama"
_REPOSITORY = Path(__file__).parents[2]
_END_PATIENCE_S = 10.0
_LAST_WORDS = 15


class RealEngine:
    """A real engine in a process of its own, in a session of its own with all that it starts."""

    def __init__(self, process: Process, socket: Path, log: Path) -> None:
        self._process = process
        self._log = log
        self.socket = socket
        self.name = socket.stem

    def send(self, sig: signal.Signals, *, to: str) -> None:
        """Sends a signal to the process of its session that has this name. Raises DemoFailed if there is none."""
        for pid in self._session():
            if _name_of(pid) == to:
                return os.kill(pid, sig)
        raise DemoFailed(f"{self.name} has no process {to}\n{self.last_words()}")

    async def get(self, path: str, port: int | None = None) -> bytes:
        """What it answers over HTTP: at its socket, or at a TCP port of its own."""
        connector = None if port else aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://127.0.0.1:{port or 80}{path}", raise_for_status=True) as answer,
        ):
            return await answer.read()

    async def post(self, path: str, body: dict[str, str]) -> None:
        """Tells it something over HTTP."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
            session.post(f"http://engine{path}", json=body) as answer,
        ):
            if answer.status != 200:
                raise DemoFailed(f"{self.name} answers {path} with {answer.status}: {await answer.text()}")

    async def stop(self) -> None:
        """Ends it and its children, of which a vLLM whose core was killed leaves some behind."""
        if self._process.returncode is None:
            self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_PATIENCE_S):
                    await self._process.wait()
        for pid in self._session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-_LAST_WORDS:])

    def _session(self) -> list[int]:
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_of(pid, self._process.pid)]


def _is_of(pid: int, session: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        return os.getsid(pid) == session
    return False


def _name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
    return ""


class Engines:
    """All engines that the demo started."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._control: web.AppRunner | None = None
        self._real: list[RealEngine] = []
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

    async def start_real(self, service: str, name: str, kind: str, *options: str, **environment: str) -> RealEngine:
        """Starts a real engine, `mlx` or `vllm`, behind a replica socket. Raises DemoFailed if it is not installed."""
        python = Path(os.environ.get(f"{kind.upper()}_PYTHON", sys.executable))
        if not python.exists():
            raise DemoFailed(f"{kind}: there is no {python}; `make {kind}` makes it")
        socket = self._gateway.sockets(service) / f"{name}.sock"
        arguments = ("--cache", str(self._gateway.directory / "models"), "--socket", str(socket), *options)
        log = self._gateway.directory / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(str(python), "-m", f"examples.{kind}_engine", *arguments), cwd=_REPOSITORY,
                env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        engine = RealEngine(process, socket, log)
        self._real.append(engine)
        return engine

    def last_words(self) -> str:
        """What the real engines wrote last, for a failure."""
        return "\n".join(engine.last_words() for engine in self._real)

    async def close(self) -> None:
        """Ends them all."""
        await self.fleet.stop_all()
        if self._control is not None:
            await self._control.cleanup()
        await asyncio.gather(*(engine.stop() for engine in self._real))
