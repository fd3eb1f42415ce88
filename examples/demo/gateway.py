"""A gateway of its own for the demo: the real daemon in a directory that goes away with it, on ports that are free."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import yaml

from gateway_sidecar.api.client import Client
from gateway_sidecar.api.models import Replica, Status
from gateway_sidecar.control.state.records import identity_from_json, read_record
from gateway_sidecar.errors import AdminError, StateError
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.server import busy_ports, stop_orphans
from gateway_sidecar.supervision.process import Process as Adopted
from gateway_sidecar.supervision.process import writers_of

SERVICES = ("chat", "pair")
BRIDGES = 50
_BLOCK = BRIDGES + 30
_LOWEST, _HIGHEST = 10_000, 32_000  # below the kernel's range for outgoing connections
_END_PATIENCE_S = 20.0


def _of_kind(kind: str) -> dict[str, str]:
    """A router of this kind; `make` says where one is that has an environment of its own."""
    name = kind.replace("-", "_").upper()
    program = os.environ.get(name) or os.environ.get(f"{name}_PYTHON")
    policy = ROUTERS[kind].settings.model_fields.get("policy")
    may_take_turns = policy is not None and "round_robin" in get_args(policy.annotation)
    said = {"command": program, "policy": "round_robin" if may_take_turns else None}
    return {"type": kind, **{name: value for name, value in said.items() if value}}


class DemoFailed(Exception):
    """A step did not go as it should; the message says which."""


class Gateway:
    """One daemon, from its configuration to its end. `router` is the kind that the service `chat` has."""

    def __init__(self, router: str) -> None:
        self.router = router
        # In /tmp whatever TMPDIR says: the path of a Unix socket has to be short.
        self.directory = Path(tempfile.mkdtemp(prefix="gateway-sidecar-", dir="/tmp"))
        self.config = self.directory / "gateway-sidecar.yaml"
        self.log = self.directory / "daemon.log"
        first = _free_block()
        self.ports = {name: first + index for index, name in enumerate(SERVICES)}
        self.spare_ports = range(first + len(SERVICES), first + 9)
        self.metrics_port = first + 9
        self._run_dir = self.directory / "run"
        self._daemon: Process | None = None
        for name in SERVICES:
            self.sockets(name).mkdir(parents=True)
        self.config.write_text(yaml.safe_dump(self._settings(first), sort_keys=False))

    def _settings(self, first: int) -> dict[str, Any]:
        is_smg = self.router == "smg"
        return {
            "state_dir": str(self.directory / "state"),
            "run_dir": str(self._run_dir),
            "log": {"format": "json"},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "router_ports": f"{first + 10}-{first + 29}",
            "bridges": {"ports": f"{first + 30}-{first + _BLOCK - 1}", "nginx_workers": 1},
            "services": [
                {
                    "name": name,
                    "listen": f"127.0.0.1:{port}",
                    "replicas": {"sockets": f"{self.sockets(name)}/{{replica}}.sock"},
                    "router": {"policy": "round_robin"} if name == "pair" or is_smg else _of_kind(self.router),
                    "health": {"interval_s": 2, "timeout_s": 1},  # a visitor does not wait half a minute
                }
                for name, port in self.ports.items()
            ],
        }

    def sockets(self, service: str) -> Path:
        """Where the service's replica sockets are looked for."""
        return self.directory / "replicas" / service

    def url(self, service: str) -> str:
        """The service address."""
        return f"http://127.0.0.1:{self.ports[service]}"

    async def start(self) -> None:
        """Starts the daemon; it is not ready yet."""
        with self.log.open("wb") as log:
            # In a session of its own: Ctrl-C is for the demo, which then ends the daemon in its own time.
            self._daemon = await asyncio.create_subprocess_exec(
                *self._command("run"), stdout=log, stderr=log, start_new_session=True
            )

    async def status(self) -> Status | None:
        """What `status --json` shows; None while the daemon does not listen yet. Raises DemoFailed if it ended."""
        if self._daemon is not None and self._daemon.returncode is not None:
            raise DemoFailed(f"the daemon ended with exit code {self._daemon.returncode}")
        try:
            return await asyncio.to_thread(Client(self._run_dir / "admin.sock").status)
        except AdminError:
            return None

    async def cli(self, *arguments: str) -> str:
        """Runs one command of `gateway-sidecar`; what it printed. Raises DemoFailed if it fails."""
        process = await asyncio.create_subprocess_exec(*self._command(*arguments), stdout=PIPE, stderr=STDOUT)
        output, _ = await process.communicate()
        text = output.decode("utf-8", "replace").rstrip()
        if process.returncode != 0:
            raise DemoFailed(f"gateway-sidecar {' '.join(arguments)} ended with {process.returncode}: {text}")
        return text

    def last_words(self, lines: int = 15) -> str:
        """The end of the daemon's log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    async def stop(self) -> None:
        """Ends the daemon and all that it started."""
        if self._daemon is None:
            return
        if self._daemon.returncode is None:
            self._daemon.send_signal(signal.SIGINT)  # takes nginx and the routers down too
            try:
                async with asyncio.timeout(_END_PATIENCE_S):
                    await self._daemon.wait()
            except TimeoutError:
                self._daemon.kill()
                await self._daemon.wait()
        await self._stop_left_behind()

    def remove(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _stop_left_behind(self) -> None:
        """Ends what a daemon that was killed has left running; each process only if it is the very one it started."""
        try:
            record = read_record(self._run_dir / "processes.json")
            rows = [router["identity"] for routers in record.get("routers", {}).values() for router in routers]
            identities = [identity_from_json(row) for row in (*rows, record.get("nginx")) if row]
        except StateError:
            return
        for identity in (*identities, *writers_of(self._run_dir / "log" / "hold.log")):
            process = Adopted.adopt(identity)
            if process is not None:
                await process.stop(grace_s=1)
            await stop_orphans(identity)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gateway_sidecar", *arguments, "--config", str(self.config)]


def replicas_of(status: Status) -> dict[tuple[str, str], Replica]:
    """(service, replica) -> its row; while an old engine drains beside the new one, the newer of the two."""
    found: dict[tuple[str, str], Replica] = {}
    for service in status["services"]:
        for row in service["replicas"]:
            found.setdefault((service["name"], row["id"]), row)
    return found


def _free_block() -> int:
    firsts = list(range(_LOWEST, _HIGHEST - _BLOCK, _BLOCK))
    random.shuffle(firsts)
    for first in firsts:
        if not busy_ports([("127.0.0.1", port) for port in range(first, first + _BLOCK)]):
            return first
    raise DemoFailed(f"no {_BLOCK} free ports in a row between {_LOWEST} and {_HIGHEST}")


def pretty(row: Replica) -> str:
    """One replica's row of the status, in a line."""
    engine = "/".join(filter(None, (row["runtime_type"], row["connection_mode"])))
    words = (
        f"{row['state']:<11}",
        f"{engine or '-':<13}",
        f"{row['worker_type'] or '-':<8}",
        f"{row['bridge'] or '-'}",
    )
    return "  ".join((*words, row["reason"] or "")).rstrip()
