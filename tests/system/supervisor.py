"""What systemd does with `Type=notify`, `WatchdogSec=` and `Restart=always`, as far as the daemon can feel it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

_ABORT_S = 60.0  # A busy machine takes a while to write down where it hung.


class Supervisor:
    """Runs a command until the end of the `async with`: told by its notifications alone.

    A main process that was ready and does not ping for `watchdog_s` gets SIGABRT, then SIGKILL, and is started anew.
    """

    def __init__(self, argv: list[str], log: Path, *, watchdog_s: float, env: dict[str, str]) -> None:
        self._argv = argv
        self._log = log
        self._watchdog_s = watchdog_s
        self._address = log.with_name("notify")
        self._env = env
        self._ended = False
        self.starts = 0
        self.ready = asyncio.Event()
        self.pings: list[float] = []
        self.stopping = False
        self.statuses: list[str] = []
        self.exits: list[int] = []
        self.aborted_after_s: list[float] = []
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._address))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(self._socket, self._on_message)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._ended = True
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
        await self._task
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def until(self, condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
        """Returns when the condition holds. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not condition():
                assert not self._task.done() or self._task.result() is None
                await asyncio.sleep(0.02)

    async def _run(self) -> None:
        while not self._ended:
            self.ready.clear()
            with self._log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdout=log,
                    stderr=log,
                    env={
                        **os.environ,
                        **self._env,
                        "NOTIFY_SOCKET": str(self._address),
                        "WATCHDOG_USEC": str(int(self._watchdog_s * 1e6)),
                        "PYTHONPATH": os.pathsep.join(sys.path),
                    },
                )
            self.starts += 1
            ended = asyncio.create_task(self.process.wait())
            while not ended.done():
                await asyncio.wait({ended}, timeout=0.05)
                silent_s = time.monotonic() - self.pings[-1] if self.pings else 0.0
                if self.ready.is_set() and silent_s > self._watchdog_s and not self._ended:
                    self.aborted_after_s.append(silent_s)
                    self.process.send_signal(signal.SIGABRT)
                    await asyncio.wait({ended}, timeout=_ABORT_S)
                    if not ended.done():
                        self.process.kill()
                        await ended
            self.exits.append(ended.result())

    def _on_message(self) -> None:
        message, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(12))
        sender = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
        if self.process is None or sender != self.process.pid:
            return  # NotifyAccess=main
        for line in message.decode().splitlines():
            key, _, value = line.partition("=")
            match key:
                case "READY":
                    self.pings.append(time.monotonic())  # From here on the watchdog counts.
                    self.ready.set()
                case "WATCHDOG":
                    self.pings.append(time.monotonic())
                case "STATUS":
                    self.statuses.append(value)
