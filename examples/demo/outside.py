"""What a fleet needs besides gateways, and both real: etcd, and HAProxy with the configuration of the guide."""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from examples.demo.gateway import DemoFailed

EXAMPLE = Path(__file__).parents[1] / "balancers" / "haproxy.cfg"
_PATIENCE_S = 60.0
_LOOK_S = 0.05
PATH = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"


class Program:
    """A program that is not ours, in a directory of its own. enter: what its command line begins with."""

    def __init__(self, name: str, directory: Path, *, enter: Sequence[str] = (), log: str | None = None) -> None:
        self._name = name
        self._enter = enter
        self._process: Process | None = None
        self.log = directory / f"{log or name}.log"

    @property
    def pid(self) -> int:
        """The process. It must have been started."""
        assert self._process is not None
        return self._process.pid

    async def start(self, *arguments: str) -> None:
        """Raises DemoFailed if it is not installed."""
        program = shutil.which(self._name, path=PATH)
        if program is None:
            raise DemoFailed(f"{self._name} is not installed; `make run FLEET=3` installs it")
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._enter, program, *arguments, stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> None:
        """Raises DemoFailed if it has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise DemoFailed(f"{self._name} ended: {self.log.read_text('utf-8', 'replace')[-1000:]}")

    async def stop(self) -> None:
        """Ends it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Etcd(Program):
    """One member; what it holds goes away with the directory."""

    def __init__(self, directory: Path, port: int, peer_port: int) -> None:
        super().__init__("etcd", directory)
        self._data = directory / "etcd"
        self.endpoint, self._peer = (f"http://127.0.0.1:{number}" for number in (port, peer_port))

    async def run(self) -> None:
        """Starts it, and returns when it answers."""
        await self.start(
            f"--data-dir={self._data}", "--name=m1", f"--initial-cluster=m1={self._peer}",
            f"--listen-client-urls={self.endpoint}", f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self._peer}", f"--initial-advertise-peer-urls={self._peer}",
        )  # fmt: skip
        async with asyncio.timeout(_PATIENCE_S), aiohttp.ClientSession() as session:
            while not await self._is_well(session):
                self.check()
                await asyncio.sleep(_LOOK_S)

    async def _is_well(self, session: aiohttp.ClientSession) -> bool:
        with suppress(aiohttp.ClientError):
            async with session.get(f"{self.endpoint}/health") as answer:
                return answer.status == 200
        return False


class Balancer(Program):
    """HAProxy in front of gateways: name -> `HOST:PORT`. Its configuration is the example's, on other addresses."""

    def __init__(
        self,
        directory: Path,
        port: int,
        gateways: Mapping[str, str],
        *,
        host: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> None:
        super().__init__("haproxy", directory, enter=enter)
        self.url = f"http://{host}:{port}"
        self._stats = directory / "haproxy.sock"
        self._config = directory / "haproxy.cfg"
        servers = "".join(f"    server {name} {address}\n" for name, address in gateways.items())
        text = re.sub(r"(    server .*\n)+", servers, EXAMPLE.read_text("utf-8"))
        text = text.replace("bind :8000", f"bind {host}:{port}").replace("maxconn 4000", "maxconn 200")
        self._config.write_text(text.replace("/run/haproxy/admin.sock", str(self._stats)), "utf-8")

    async def run(self) -> None:
        """Starts it, and returns when it sends requests to every gateway."""
        await self.start("-db", "-f", str(self._config))
        await self.until(lambda states: bool(states) and set(states.values()) == {"UP"}, "HAProxy finds all gateways")

    async def until(self, condition: Callable[[dict[str, str]], bool], what: str) -> None:
        """Waits until it sees its gateways like this: name -> `UP`, `DOWN` or on the way. Raises DemoFailed."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not condition(await self._states()):
                    self.check()
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise DemoFailed(f"{what}: not within {_PATIENCE_S:g} s") from None

    async def in_flight(self, gateway: str) -> int:
        """How many requests it has sent there that are not answered whole."""
        return int((await self._rows())[gateway][4])

    async def _states(self) -> dict[str, str]:
        return {name: row[17] for name, row in (await self._rows()).items()}

    async def _rows(self) -> dict[str, list[str]]:
        """Gateway -> its row of `show stat`; none while it does not answer."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._stats))
        except OSError:
            return {}
        writer.write(b"show stat\n")
        rows = [line.split(",") for line in (await reader.read()).decode().splitlines()]
        writer.close()
        return {row[1]: row for row in rows if len(row) > 17 and row[0] == "gateways" and row[1] != "BACKEND"}
