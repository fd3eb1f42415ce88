"""A real etcd of Debian's package, in a directory and on ports of its own."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.stopping import stop
from tests.system.gateway import PortBlock

_START_S = 60.0
_PATIENCE = ("--dial-timeout=30s", "--command-timeout=50s")
"""Of etcdctl: its own 2 s and 5 s are too short for a busy machine."""


class Etcd:
    """One member, or a client-side view of nothing while it does not run.

    authority: with one it speaks TLS, with a certificate from it; `client_ca` has it ask its clients for one, too.
    before: what to put before its commands, to have them run in a network namespace; `host` is its address there.
    """

    def __init__(
        self,
        *,
        authority: Authority | None = None,
        client_ca: Authority | None = None,
        quota: int = 0,
        before: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._before, self._host = before, host
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-", dir="/tmp"))
        self._ports = PortBlock()
        self.port, self._peer_port = self._ports.first, self._ports.first + 1
        self.options = [f"--quota-backend-bytes={quota}"] if quota else []
        self.scheme = "http"
        if authority is not None:
            self.scheme = "https"
            self.issue(authority)
            self.options += [f"--cert-file={self.directory}/crt", f"--key-file={self.directory}/key"]
        if client_ca is not None:
            self.options += ["--client-cert-auth", f"--trusted-ca-file={client_ca.certificate}"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self._host}:{self.port}"

    def issue(self, authority: Authority, *, days: float = 30) -> None:
        """etcd reads it at the next connection."""
        certificate, key = authority.sign(f"etcd-{self.port}", days=days)
        certificate.replace(self.directory / "crt")
        key.replace(self.directory / "key")

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._before, "etcd", f"--data-dir={self.directory}/data", "--unsafe-no-fsync", "--name=m1",
                    f"--listen-client-urls={self.endpoint}", f"--advertise-client-urls={self.endpoint}",
                    f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=m1={peer}",
                    f"--listen-metrics-urls=http://127.0.0.1:{self._ports.first + 2}", *self.options,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + _START_S
        if self._before:
            command = [*self._before, "etcdctl", f"--endpoints={self.endpoint}", "endpoint", "health"]
            env = {**os.environ, "ETCDCTL_API": "3"}
            while subprocess.run(command, capture_output=True, check=False, env=env).returncode != 0:
                assert time.monotonic() < end, (self.directory / "log").read_text()[-2000:]
                time.sleep(0.05)
            return
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports.first + 2}/health", timeout=5) as answer:
                    if b"true" in answer.read():
                        return
            except OSError:
                assert time.monotonic() < end, (self.directory / "log").read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """As `kill -9`."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """As SIGSTOP: connections are taken, and nothing is answered."""
        assert self.process is not None
        stop(self.process.pid)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """All that it holds is gone. It must not run."""
        shutil.rmtree(self.directory / "data")

    def ctl(self, *arguments: str, stdin: str = "") -> str:
        """etcdctl, without TLS."""
        command = [*self._before, "etcdctl", f"--endpoints={self.endpoint}", *_PATIENCE, *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
            timeout=60,
            input=stdin,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def restore(self, backup: Path) -> None:
        """What a backup holds is all that it holds from the next start on. It must not run."""
        self.wipe()
        peer = f"http://127.0.0.1:{self._peer_port}"
        self.ctl(
            "snapshot", "restore", str(backup), f"--data-dir={self.directory}/data", "--name=m1",
            f"--initial-cluster=m1={peer}", f"--initial-advertise-peer-urls={peer}",
        )  # fmt: skip

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)
        self._ports.release()


class Front:
    """A TCP relay before one etcd, which a test may cut or slow: a network in between."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self.delay_s = 0.0
        self.answers_s = (0.0, 0.0)
        """Answers of connections from then on take so long, at random between the two."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Connections stay, and nothing passes: as a network that drops everything."""
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far, back = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._carry(reader, back, (0.0, 0.0)), self._carry(far, writer, self.answers_s))
        except (OSError, asyncio.CancelledError):
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, takes_s: tuple[float, float]
    ) -> None:
        try:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    await self._open.wait()
                    await asyncio.sleep(self.delay_s + random.uniform(*takes_s))
                    target.write(data)
        finally:
            target.close()


def skip_without_etcd() -> None:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd is not installed; `make test` installs it")


@contextmanager
def running(**options: Authority | int | str | Sequence[str] | None) -> Iterator[Etcd]:
    """An etcd that runs meanwhile."""
    skip_without_etcd()
    etcd = Etcd(**options)  # type: ignore[arg-type]
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.close()
