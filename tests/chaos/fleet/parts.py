"""The machines of a fleet beside its gateways, each in its namespace: members of etcd, HAProxy, nodes with engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp

from examples.demo.outside import Balancer, Program
from tests.chaos.engines import EngineHost
from tests.chaos.fleet.network import BALANCER, Network, address_of
from tests.ssh_servers import Sshd

SERVICE_PORT, BALANCER_PORT = 30000, 8000
_CLIENT_PORT, _PEER_PORT = 2379, 2380
_START_S = 120.0
_SLOW_STOPPED_S, _SLOW_RUNS_S = 0.4, 0.1


class Member(Program):
    """One member of etcd; what it holds stays when it is killed."""

    def __init__(self, directory: Path, network: Network, number: int, members: int) -> None:
        self.name = f"etcd-{number}"
        super().__init__("etcd", directory, enter=network[self.name].enter, log=self.name)
        self._network = network
        self._directory = directory
        self._cluster = ",".join(
            f"etcd-{n}=http://{address_of(f'etcd-{n}')}:{_PEER_PORT}" for n in range(1, members + 1)
        )
        self.endpoint = f"http://{address_of(self.name)}:{_CLIENT_PORT}"

    async def begin(self) -> None:
        """Starts it; it answers once most members run."""
        peer = f"http://{address_of(self.name)}:{_PEER_PORT}"
        await self.start(
            f"--data-dir={self._directory}/{self.name}", f"--name={self.name}", "--unsafe-no-fsync",
            f"--listen-client-urls={self.endpoint}", f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={self._cluster}",
        )  # fmt: skip

    async def until_well(self) -> None:
        """Returns when it takes part in a quorum."""
        connector = aiohttp.TCPConnector(socket_factory=self._network[self.name].socket, force_close=True)
        async with asyncio.timeout(_START_S), aiohttp.ClientSession(connector=connector) as session:
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{self.endpoint}/health", timeout=aiohttp.ClientTimeout(3)) as answer:
                        if "true" in await answer.text():
                            return
                self.check()
                await asyncio.sleep(0.1)

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def stutter(self, for_s: float) -> None:
        """It runs a fifth of the time only, in short pieces: what it answers is late."""
        async with asyncio.timeout(for_s):
            while True:
                self.freeze()
                try:
                    await asyncio.sleep(_SLOW_STOPPED_S)
                finally:
                    self.thaw()
                await asyncio.sleep(_SLOW_RUNS_S)

    async def compact(self) -> None:
        """All versions but the newest are forgotten. Raises OSError."""
        status = json.loads(await self._ctl("endpoint", "status", "--write-out=json"))
        await self._ctl("compact", str(status[0]["Status"]["header"]["revision"]))

    async def _ctl(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._network[self.name].enter, "etcdctl", f"--endpoints={self.endpoint}", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        out = (await process.communicate())[0].decode()
        if process.returncode != 0:
            raise OSError(f"etcdctl {' '.join(words)}: {out.strip()}")
        return out


def balancer(directory: Path, network: Network, gateways: list[str]) -> Balancer:
    """HAProxy as the guide has it, on a machine of its own."""
    addresses = {name: f"{address_of(name)}:{SERVICE_PORT}" for name in gateways}
    place = network[BALANCER].enter
    return Balancer(directory, BALANCER_PORT, addresses, host=address_of(BALANCER), enter=place)


class Node:
    """A machine with engines: one process with all of them, on Unix sockets, and a real sshd that leads there."""

    def __init__(self, directory: Path, network: Network, number: int) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.host = EngineHost(directory, number)
        self.sshd = Sshd(directory / self.name, host=address_of(self.name), prefix=tuple(network[self.name].enter))

    async def begin(self) -> None:
        """Starts both."""
        self.sshd.start()
        await self.host.start()

    async def end(self) -> None:
        """Ends both."""
        self.sshd.kill()
        await self.host.kill()
