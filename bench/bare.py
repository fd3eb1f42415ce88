"""The floors: SMG and nginx with nobody between them and the benchmark."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bench import processes
from bench.engines import EngineKind
from bench.ports import free_ports
from bench.wire import Connection, ExchangeFailed
from gateway_sidecar.nginx.server import find_nginx
from gateway_sidecar.routers.base import RouterPorts
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import find_smg, launch_command


def worker_body(port: int, kind: EngineKind, model: str) -> dict[str, object]:
    """What a script would POST for a worker behind a bridge's port; it settles at once when deleted."""
    runtime, _, mode = kind.partition("-")
    return {
        "url": f"{mode}://127.0.0.1:{port}",
        "worker_type": "regular",
        "connection_mode": mode,
        "runtime_type": runtime,
        "model_id": model,
        "health": {"drain_settle_secs": 0},
    }


class Workers:
    """The workers of one SMG, asked directly over one kept connection."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = Connection("127.0.0.1", port, key=key)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def rows(self) -> list[dict[str, Any]]:
        """What SMG lists."""
        return list((await self._connection.ask("GET", "/workers")).json()["workers"])

    async def status(self, worker_id: str) -> str | None:
        """One worker's status; None if SMG does not know it."""
        answer = await self._connection.ask("GET", f"/workers/{worker_id}")
        return str(answer.json()["status"]) if answer.status == 200 else None

    async def add(self, body: Mapping[str, object]) -> str:
        """POST one; its id. Accepted is not ready."""
        answer = await self._connection.ask("POST", "/workers", body)
        if answer.status != 202:
            raise RuntimeError(f"SMG refused a worker: {answer.status} {answer.body!r:.300}")
        return str(answer.json()["worker_id"])

    async def delete(self, worker_id: str) -> None:
        """DELETE one; accepted is not gone."""
        await self._connection.ask("DELETE", f"/workers/{worker_id}")

    async def until_ready(self, count: int, *, within_s: float = 60.0, gap_s: float = 0.02) -> None:
        """Returns when SMG lists `count` workers, all of them ready. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while [row["status"] for row in await self.rows()] != ["ready"] * count:
                await asyncio.sleep(gap_s)


class BareSmg:
    """An SMG launched with the very options that the daemon gives it. Use it as an async context manager."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "bare-smg.log"
        first = free_ports(2)
        self.ports = RouterPorts(first, first + 1)
        self.key = secrets.token_urlsafe(16)
        self.workers = Workers(self.ports.api, self.key)

    async def __aenter__(self) -> Self:
        command = launch_command(find_smg("smg"), self.ports, SmgSettings(), key=self.key)
        self._process = await processes.start(command.argv, self._log, command.env)
        async with asyncio.timeout(30):
            while True:
                with suppress(ExchangeFailed):
                    await self.workers.rows()
                    return self
                if self._process.returncode is not None:
                    raise RuntimeError(f"SMG ended: {self._log.read_text()[-500:]}")
                await asyncio.sleep(0.02)

    async def __aexit__(self, *_exc: object) -> None:
        self.workers.close()
        await processes.end(self._process, grace_s=0.5)


class BareNginx:
    """A plain proxy as one writes it by hand: a `listen` and a `proxy_pass` for each socket, no more. `http`: one that
    reads HTTP, and opens a connection for each request; `balanced`: it does so over these, the least loaded first.

    Use it as an async context manager.
    """

    def __init__(
        self,
        directory: Path,
        sockets: Mapping[int, Path],
        *,
        worker_processes: int = 1,
        http: bool = False,
        balanced: Sequence[Path] = (),
    ) -> None:
        self._directory = directory / f"bare-nginx-{next(iter(sockets))}"
        self._http = http
        self._balanced = balanced
        self._sockets = sockets
        self._worker_processes = worker_processes

    async def __aenter__(self) -> Self:
        self._directory.mkdir()
        program = await find_nginx("nginx")
        config = self._directory / "nginx.conf"
        config.write_text(self._text(program.stream_module))
        argv = [program.path, "-p", str(self._directory), "-c", str(config)]
        self._process = await processes.start(argv, self._directory / "output.log")
        await until_accepting(next(iter(self._sockets)), self._process)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await processes.end(self._process)

    @property
    def pids(self) -> list[int]:
        """The master's and its workers'."""
        return [self._process.pid, *processes.children(self._process.pid)]

    def _text(self, module: Path | None) -> str:
        passes = (
            "access_log off; location / {{ proxy_pass http://unix:{0}:; }}" if self._http else "proxy_pass unix:{0};"
        )
        if self._balanced:
            passes = "access_log off; location / {{ proxy_pass http://balanced; }}"
        members = " ".join(f"server unix:{socket};" for socket in self._balanced)
        servers = f"    upstream balanced {{ least_conn; {members} }}\n" * bool(self._balanced)
        servers += "\n".join(
            f"    server {{ listen 127.0.0.1:{port}; {passes.format(path)} }}" for port, path in self._sockets.items()
        )
        temps = "".join(
            f"    {kind}_temp_path {self._directory}/{kind};\n"
            for kind in (("client_body", "proxy", "fastcgi", "uwsgi", "scgi") if self._http else ())
        )
        return "\n".join(
            [
                "daemon off;",
                f"worker_processes {self._worker_processes};",
                "pid nginx.pid;",
                "error_log error.log;",
                "user root;" if os.geteuid() == 0 else "",
                f"load_module {module};" if module else "",
                f"events {{ worker_connections {4096 + len(self._sockets)}; }}",
                f"{'http' if self._http else 'stream'} {{\n{temps}{servers}\n}}",
            ]
        )


async def until_accepting(port: int, process: asyncio.subprocess.Process, *, within_s: float = 10.0) -> None:
    """Returns when somebody listens on the port. Raises TimeoutError, or RuntimeError if the process ended."""
    async with asyncio.timeout(within_s):
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if process.returncode is not None:
                raise RuntimeError(f"process {process.pid} ended with {process.returncode}")
            await asyncio.sleep(0.01)
