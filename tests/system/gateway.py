"""Runs the real daemon with the real nginx and the real SMG in a directory and on ports of its own."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import aiohttp
import yaml

from gateway_sidecar.nginx.server import busy_ports
from gateway_sidecar.supervision.process import start_ticks, writers_below
from tests.namespaces import Namespace
from tests.system.copies import Copy, can_be_a_copy

Status = dict[str, Any]
BRIDGES = 40
_BLOCK = BRIDGES + 20
_starts = list(range(10_000, 19_000, _BLOCK))
_blocks = itertools.islice(itertools.cycle(_starts), os.getpid() % len(_starts), None)


class NotThere(LookupError):
    """A status shows no such service, or no such replica; not yet, perhaps."""


class PortBlock:
    """`ports` of them that nobody listens on, `first` and the next ones; no other run of the tests on this machine has
    them.
    """

    def __init__(self, ports: int = _BLOCK) -> None:
        self._ports = ports
        for first in itertools.islice(_blocks, len(_starts)):
            self._locked: list[tuple[Path, IO[str]]] = []
            is_ours = all(self._lock(each) for each in range(first, first + ports, _BLOCK))
            if is_ours and not busy_ports([("127.0.0.1", port) for port in range(first, first + ports)]):
                self.first = first
                return
            self.release()
        raise AssertionError("no ports left")

    def __str__(self) -> str:
        return f"{self.first}-{self.first + self._ports - 1}"

    def _lock(self, first: int) -> bool:
        path = Path(tempfile.gettempdir()) / f"gateway-sidecar-test-ports-{first}"
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            is_ours = False  # Another run has them, or has just let go of them.
        if is_ours:
            self._locked.append((path, lock))
        else:
            lock.close()
        return is_ours

    def release(self) -> None:
        """Others may use them."""
        for path, lock in self._locked:
            path.unlink()
            lock.close()


PATIENCE_S = 60.0
"""What comes at all comes within this on a busy machine, where a daemon alone may take ten seconds to begin."""


class Gateway:
    """One gateway machine: a daemon that can be started, stopped, killed and asked."""

    def __init__(self, *, services: tuple[str, ...] = ("chat",), base: Path = Path("/tmp"), **settings: Any) -> None:
        # Short, because a Unix socket's path is.
        self.directory = Path(tempfile.mkdtemp(prefix="gw-", dir=base))
        self._ports = PortBlock()
        first = self._ports.first
        self.ports = {name: first + index for index, name in enumerate(services)}
        self.metrics_port = first + 9
        self.config_path = self.directory / "gateway-sidecar.yaml"
        self.settings: dict[str, Any] = {
            "state_dir": str(self.directory / "state"),
            "run_dir": str(self.directory / "run"),
            "log": {"format": "json", "level": "debug"},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "nginx": {"workers": 1},
            "bridges": {"ports": f"{first + 20}-{first + 20 + BRIDGES - 1}"},
            "router_ports": f"{first + 10}-{first + 19}",
            "services": [self.service(name) for name in services],
            **settings,
        }
        for name in services:
            self.sockets(name).mkdir(parents=True)
        self.namespace: Namespace | None = None
        self.before: list[str] = []
        """What the daemon's command line begins with."""
        self.module = "gateway_sidecar"
        self.process: asyncio.subprocess.Process | Copy | None = None
        self.may_be_copied = False
        self._session: aiohttp.ClientSession | None = None
        self._starts = 0

    # -- where things are

    def sockets(self, service: str = "chat") -> Path:
        return self.directory / "replicas" / service

    def socket(self, replica: str, service: str = "chat") -> Path:
        return self.sockets(service) / f"{replica}.sock"

    def service(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "listen": f"127.0.0.1:{self.ports[name]}",
            "replicas": {"sockets": f"{self.sockets(name)}/{{replica}}.sock"},
        }

    def url(self, service: str = "chat") -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def log_path(self) -> Path:
        return self.directory / f"daemon-{self._starts}.log"

    # -- life

    def configure(self, **settings: Any) -> None:
        self.settings |= settings
        self.config_path.write_text(yaml.safe_dump(self.settings))

    async def start(self, *, ready: bool = True, env: dict[str, str] | None = None) -> None:
        self.configure()
        self._starts += 1
        arguments = ["run", "--config", str(self.config_path)]
        env = {**os.environ, **(env or {})}
        if self._is_copied(self.before, env):
            self.process = Copy(self.module, arguments, self.log_path, self.log_path, env, self.namespace)
        else:
            with self.log_path.open("wb") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *(self.namespace.enter if self.namespace else ()), *self.before,
                    sys.executable, "-m", self.module, *arguments, stdout=log, stderr=log, env=env,
                )  # fmt: skip
        if ready:
            await self.until(lambda status: status["ready"], within_s=120)

    def _is_copied(self, before: Sequence[str], env: Mapping[str, str]) -> bool:
        return self.may_be_copied and not before and can_be_a_copy(env)

    async def terminate(self) -> int:
        """SIGTERM: the daemon ends, nginx and the routers go on."""
        assert self.process is not None
        self.process.terminate()
        return await self.process.wait()

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def close(self, *, keep_files: bool = False) -> None:
        """Ends all that was started here, and nothing else."""
        if self._session is not None:
            await self._session.close()
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        await self._kill_what_is_left()
        if not keep_files:
            shutil.rmtree(self.directory)
        self._ports.release()

    async def lose(self) -> None:
        """Daemon, nginx, routers and tunnels are killed."""
        await self.kill()
        await self._kill_what_is_left()

    async def _kill_what_is_left(self) -> None:
        killed = []
        for pid in self.everything_else():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        for pid in killed:  # On a busy machine one may yet write a file, or be found by the next daemon.
            await until_gone(pid)

    def everything_else(self) -> Iterator[int]:
        """All processes of the gateway beside its daemon."""
        yield from self.left_running()
        # Whoever writes below these was started by the daemon, whatever its records say: a removed service's router.
        for place in ("run/tunnels", "run/log", "state/log"):
            for found in writers_below(self.directory / place).values():
                yield from (one.pid for one in found)
        yield from self._writers_of_logs()  # A worker that nginx was just starting has no master any more then.

    def _writers_of_logs(self) -> Iterator[int]:
        """Processes whose standard error is a log of this daemon's, whoever their parents were."""
        for entry in Path("/proc").glob("[0-9]*/fd/2"):
            with suppress(OSError):
                if entry.readlink().is_relative_to(self.directory / "state" / "log"):
                    yield int(entry.parts[2])

    def left_running(self) -> Iterator[int]:
        """What the daemon has started for long: each nginx with its workers, each router."""
        for kind in ("peers", "keyed"):
            for pid_file in (self.directory / "run" / kind).glob("*/nginx.pid"):
                with suppress(OSError, ValueError):  # It begins, or ends; its output tells which it is.
                    yield from with_children(int(pid_file.read_text()))
        try:
            record = json.loads((self.directory / "run" / "processes.json").read_text())
        except (OSError, ValueError):
            return
        routers = [router["identity"] for rows in record["routers"].values() for router in rows]
        for row in (record["nginx"], *routers):  # None: being started; its output tells which it is.
            if row is not None:
                yield from with_children(int(row["pid"]))

    # -- asking it

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self.directory / "run" / "admin.sock"))
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    def client(self, **options: Any) -> aiohttp.ClientSession:
        """An HTTP client on the gateway's own network."""
        connector = aiohttp.TCPConnector(socket_factory=self.namespace.socket) if self.namespace else None
        return aiohttp.ClientSession(connector=connector, **options)

    async def status(self) -> Status:
        async with self.session.get("http://daemon/v1/status") as response:
            status: Status = await response.json()
            return status

    async def until(self, condition: Callable[[Status], bool], *, within_s: float = PATIENCE_S) -> Status:
        """The first status for which the condition holds."""
        status: Status | None = None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    with suppress(aiohttp.ClientError, NotThere):
                        status = await self.status()
                        if condition(status):
                            return status
                    if self.process is not None and self.process.returncode is not None:
                        raise AssertionError(f"the daemon ended: {self.log()[-3000:]}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            shown = json.dumps(status, indent=1)
            raise AssertionError(f"not within {within_s} s: {shown}\n{self.log()[-3000:]}") from None

    async def until_states(
        self, wanted: dict[str, str], *, within_s: float = PATIENCE_S, service: str = "chat"
    ) -> Status:
        """Waits until the service has just these replicas in these states."""
        return await self.until(lambda status: states_of(status, service) == wanted, within_s=within_s)

    async def until_state(
        self, replica: str, *wanted: str, within_s: float = PATIENCE_S, service: str = "chat"
    ) -> Status:
        """Waits until one replica is in one of these states, whatever the others do."""
        return await self.until(lambda s: states_of(s, service).get(replica) in wanted, within_s=within_s)

    async def cli(self, *arguments: str, config: bool = True, before: Sequence[str] = ()) -> tuple[int, str, str]:
        """Runs one command; its exit code, stdout and stderr. before: what its command line begins with."""
        where = ("--config", str(self.config_path)) if config else ()
        if self._is_copied(before, os.environ):
            with tempfile.TemporaryDirectory(prefix="cli-", dir="/tmp") as said:
                out_path, err_path = Path(said, "out"), Path(said, "err")
                command = [*arguments, *where]
                copy = Copy("gateway_sidecar", command, out_path, err_path, os.environ, self.namespace)
                return await copy.wait(), out_path.read_text(), err_path.read_text()
        process = await asyncio.create_subprocess_exec(
            *(self.namespace.enter if self.namespace else ()), *before,
            sys.executable, "-m", "gateway_sidecar", *arguments, *where,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    def log(self) -> str:
        return self.log_path.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The daemon's log events of one name."""
        lines = [line for line in self.log().splitlines() if line.startswith("{") and f'"{name}"' in line]
        return [row for row in map(json.loads, lines) if row.get("event") == name]

    async def until_logged(self, name: str, *, within_s: float = PATIENCE_S) -> None:
        """Waits for an event in its log, which is there also when the daemon takes no connections."""
        async with asyncio.timeout(within_s):
            while not self.events(name):
                await asyncio.sleep(0.02)

    async def until_written(self, replicas: int, service: str = "chat") -> None:
        """Waits until the next daemon will find leases of so many replicas, with what their engines are."""
        path = self.directory / "state" / "leases.json"
        async with asyncio.timeout(PATIENCE_S):
            while not path.exists() or len(identified(json.loads(path.read_text()), service)) < replicas:
                await asyncio.sleep(0.01)

    async def router_key(self, service: str = "chat") -> str:
        """The control-plane key of the router in service, once the daemon has written it down."""
        url = str(service_of(await self.status(), service)["router"]["url"])
        async with asyncio.timeout(60):
            while True:
                record = json.loads((self.directory / "run" / "processes.json").read_text())
                for row in record["routers"].get(service, []):
                    if url.endswith(f":{row['ports']['api']}"):
                        return str(row["key"])
                await asyncio.sleep(0.01)

    async def until_workers(
        self, condition: Callable[[list[dict[str, Any]]], bool], *, within_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        """SMG's own list of workers, once the condition holds for it."""
        end = time.monotonic() + within_s
        while not condition(workers := await self.workers()):
            assert time.monotonic() < end, f"not within {within_s} s: {workers}"
            await asyncio.sleep(0.005)
        return workers

    async def workers(self, service: str = "chat") -> list[dict[str, Any]]:
        """What SMG itself lists, asked with the daemon's key."""
        router = service_of(await self.status(), service)["router"]
        headers = {"Authorization": f"Bearer {await self.router_key(service)}"}
        async with (
            self.client(headers=headers) as session,
            session.get(f"{router['url']}/workers") as response,
        ):
            return list((await response.json())["workers"])


def identified(record: dict[str, Any], service: str) -> list[dict[str, Any]]:
    """The leases of a service's replicas whose engines are known, in what the daemon has written down."""
    return [row for row in record["services"].get(service, []) if row["facts"] is not None]


def with_children(pid: int) -> Iterator[int]:
    """A process and its children. The master of an nginx first: it would start a worker anew."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found: list[int] = []
    with suppress(OSError):
        found = [int(child) for child in children.read_text().split()]
    yield pid
    yield from found


def take_away(directory: Path) -> None:
    """Removes it with all that is in it, at once: the daemon may be about to write there."""
    gone = directory.with_name(f"{directory.name}-gone")
    directory.rename(gone)
    shutil.rmtree(gone)


async def until_gone(pid: int) -> None:
    """Within the time that a router is given to end by itself, and a little more."""
    async with asyncio.timeout(60):
        while start_ticks(pid) is not None:
            await asyncio.sleep(0.01)


def service_of(status: Status, name: str = "chat") -> dict[str, Any]:
    """One service's part of the status."""
    for service in status["services"]:
        if service["name"] == name:
            return dict(service)
    raise NotThere(name)


def only_ports_differ(status: Status) -> bool:
    """Whether nothing is amiss, but that gateways of one machine have ports of their own."""
    return all(problem.startswith("store: settings: bridges.ports is ") for problem in status["problems"])


def states_of(status: Status, service: str = "chat") -> dict[str, str]:
    """Replica id -> state."""
    return {replica["id"]: replica["state"] for replica in service_of(status, service)["replicas"]}


def replica_of(status: Status, replica: str, service: str = "chat") -> dict[str, Any]:
    """One replica's row of the status."""
    for row in service_of(status, service)["replicas"]:
        if row["id"] == replica:
            return dict(row)
    raise NotThere(f"{service}/{replica}")
