"""Processes of a benchmark: started with their output in a file, measured through /proc, ended by pid."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.system.gateway import Gateway

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


async def start(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start a child whose output goes to `log`.

    In a session of its own, as the daemon starts its own: where the kernel shares out the CPU by sessions, a floor that
    shared one with the benchmark would be scheduled otherwise.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )


async def end(process: asyncio.subprocess.Process, grace_s: float = 3.0) -> None:
    """SIGTERM to this very child, SIGKILL after the grace."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(*pids: int) -> float:
    """CPU time that these processes used so far, in user and system mode, all their threads."""
    return sum(_ticks(pid) for pid in pids) / _TICKS_A_SECOND


def rss_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


def _ticks(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    user, system = stat[stat.rindex(")") + 2 :].split()[11:13]
    return int(user) + int(system)


def cpu_us(pid: int) -> float:
    """CPU time that a process's first thread has used, by its schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


async def only_worker(gateway: Gateway) -> int:
    """The one worker of a gateway's nginx."""
    (pid,) = children(int((await gateway.status())["nginx"]["pid"]))
    return pid
