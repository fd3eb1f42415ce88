"""Figures: a path that dies and comes back, through the whole daemon with its default settings.

One replica behind an sshd of our own, serving. Every process of the sshd is stopped (SIGSTOP), so that nothing comes
back and nobody says so, as when packets vanish; when the worker has left SMG's list they go on (SIGCONT).

dead path       From the stop until SMG does not list the worker any more. The floor is what the keepalives' settings
                ask for: `keepalive_s * (keepalive_failures + 1)`, less what has passed of the first question's time.
back            From the moment the processes go on until the replica is serving again, on the same port.
restarted       sshd is killed, the worker leaves, sshd is started: from when it listens until the replica serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from bench.engines import EngineHost
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale, median
from bench.staged import stage
from examples.simulated import EngineKind
from tests.ssh_servers import SSHD, Sshd

NAME = "tunnel-path"
_MOST_DEAD_S = 15.0
_SETTINGS_ASK_S = 12.0


async def run(scale: Scale) -> list[Row]:
    """Three rounds; one with `--quick`."""
    if SSHD is None:
        return [Row.not_measured(NAME, "openssh-server is not installed")]
    dead, back, restarted = [], [], []
    with scratch_directory() as directory:
        sshd = Sshd(directory / "sshd")
        sshd.start()
        try:
            async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
                (socket,) = await stage(engines, directory / "staged", [EngineKind.SGLANG_HTTP])
                port = await _begin(ours, sshd, socket)
                for _ in range(scale.pick(3, 1)):
                    dead.append(await _timed(ours, sshd.freeze, serving=False))
                    back.append(await _timed(ours, sshd.thaw, serving=True))
                    sshd.kill()
                    await _until(ours, serving=False)
                    restarted.append(await _timed(ours, sshd.start, serving=True))
                kept = await _port(ours) == port
        finally:
            sshd.kill()
    numbers = {
        "dead_s": _rounded(dead),
        "back_s": _rounded(back),
        "restarted_s": _rounded(restarted),
        "same_port": kept,
    }
    return [
        Row(NAME, "dead path, to the worker out", f"< {_MOST_DEAD_S:g} s", f"{_SETTINGS_ASK_S:g} s", _shown(dead),
            f"{max(dead):.1f} s", max(dead) < _MOST_DEAD_S, numbers),
        Row(NAME, "path back, to serving", "-", "-", _shown(back), "-", None, numbers),
        Row(NAME, "sshd restarted, to serving", "-", "-", _shown(restarted), "-", None, numbers),
        Row(NAME, "port of the replica", "the same", "-", "the same" if kept else "another", "", kept, numbers),
    ]  # fmt: skip


def _shown(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s, at most {max(seconds):.1f}"


async def _begin(ours: Ours, sshd: Sshd, far: Path) -> str:
    """One replica, serving; its bridge."""
    ours.gateway.settings["services"][0]["replicas"] = {
        "ssh": {"r0": {"host": sshd.host, "forward": str(far)}},
        "ssh_defaults": {
            "port": sshd.port,
            "user": "root",
            "key_file": str(sshd.user_key),
            "known_hosts": str(sshd.known_hosts),
        },
    }
    ours.gateway.configure()
    await ours.gateway.cli("reload")
    await ours.until_serving("r0")
    return await _port(ours)


async def _port(ours: Ours) -> str:
    return str((await ours.gateway.status())["services"][0]["replicas"][0]["bridge"])


async def _timed(ours: Ours, event: Callable[[], None], *, serving: bool) -> float:
    event()
    began = time.monotonic()
    await _until(ours, serving=serving)
    return time.monotonic() - began


async def _until(ours: Ours, *, serving: bool) -> None:
    if serving:
        await ours.until_serving("r0")
        return
    async with asyncio.timeout(60):
        while await ours.workers.rows():
            await asyncio.sleep(0.02)


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]
