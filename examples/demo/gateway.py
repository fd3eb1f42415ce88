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
from collections.abc import Sequence
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
_given = set[int]()
"""The first ports of the blocks that this process has been given."""


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
    """One daemon, from its configuration to its end. `router` is the kind that the service `chat` has.

    directory: where it is to be, which is there; otherwise one that it makes. settings: what its configuration has
    besides, or instead.
    """

    def __init__(
        self, router: str, services: Sequence[str] = SERVICES, directory: Path | None = None, **settings: Any
    ) -> None:
        self.router = router
        self.directory = directory or new_directory()
        self.config = self.directory / "gateway-sidecar.yaml"
        self.log = self.directory / "daemon.log"
        first = free_block()
        self.ports = {name: first + index for index, name in enumerate(services)}
        self.spare_ports = range(first + len(services), first + 9)
        self.metrics_port = first + 9
        self._run_dir = self.directory / "run"
        self._daemon: Process | None = None
        self.bridge_ports = f"{first + 30}-{first + _BLOCK - 1}"
        for name in services:
            self.sockets(name).mkdir(parents=True)
        self.config.write_text(yaml.safe_dump(self._settings(first) | settings, sort_keys=False))

    def _settings(self, first: int) -> dict[str, Any]:
        is_smg = self.router == "smg"
        return {
            "state_dir": str(self.directory / "state"),
            "run_dir": str(self._run_dir),
            "log": {"format": "json"},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "router_ports": f"{first + 10}-{first + 29}",
            "nginx": {"workers": 1},
            "bridges": {"ports": self.bridge_ports},
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
        with self.log.open("ab") as log:
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

    async def left(self) -> None:
        """Waits until the daemon has ended by itself."""
        if self._daemon is not None:
            await self._daemon.wait()

    async def power_off(self) -> None:
        """Kills the daemon and all that it started at once, as if their machine had lost its power."""
        if self._daemon is None:
            return
        for pid in (self._daemon.pid, *_descendants(self._daemon.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._daemon.wait()

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


def _descendants(ancestor: int) -> list[int]:
    """All processes that it started, and that they started."""
    children = dict[int, list[int]]()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(pid))
    found = [ancestor]
    for each in found:
        found += children.get(each, ())
    return found[1:]


def new_directory() -> Path:
    """One of its own. In /tmp whatever TMPDIR says: the path of a Unix socket has to be short."""
    return Path(tempfile.mkdtemp(prefix="gateway-sidecar-", dir="/tmp"))


def free_block() -> int:
    """The first of many ports in a row that nobody has. Raises DemoFailed."""
    firsts = [first for first in range(_LOWEST, _HIGHEST - _BLOCK, _BLOCK) if first not in _given]
    random.shuffle(firsts)
    for first in firsts:
        if not busy_ports([("127.0.0.1", port) for port in range(first, first + _BLOCK)]):
            _given.add(first)
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
