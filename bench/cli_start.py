"""Figures: what a command costs that only asks the daemon, or none.

A daemon with eight replicas runs. CPU is user and system time of the command's process, from its start to its end, as
the kernel accounts it; the daemon's own for the answer is not in it. Floor: `python -c pass` with the same Python, in
turn with the commands.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from bench.engines import EngineHost
from bench.fleet import start_fleet
from bench.gateway import running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median, rounded_ms

NAME = "cli-start"
_REPLICAS = 8
_MOST = 6.0  # floors: 150 ms where Python alone takes 25
_FLOOR = "python"


def _cpu_s(arguments: Sequence[str]) -> float:
    """Runs Python; its CPU seconds. Raises RuntimeError if it fails."""
    argv = [sys.executable, *arguments]
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    _, status, used = os.wait4(os.posix_spawn(sys.executable, argv, os.environ, file_actions=silent), 0)
    if status:
        raise RuntimeError(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


async def run(scale: Scale) -> list[Row]:
    """30 runs of each; 5 with `--quick`."""
    runs = scale.pick(30, 5)
    with scratch_directory() as directory:
        keys = directory / "keys"
        keys.write_text(f"client:{'0' * 64}\n")
        keys.chmod(0o600)
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            drained, *_ = await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.02)
            where = ("--config", str(ours.gateway.config_path))
            ours_alone = ("-m", "gateway_sidecar")
            commands: Mapping[str, Sequence[str]] = {
                _FLOOR: ("-c", "pass"),
                "status": (*ours_alone, "status", *where),
                "explain": (*ours_alone, "explain", "chat", drained, *where),
                "events": (*ours_alone, "events", *where),
                "drain": (*ours_alone, "drain", "chat", drained, *where),
                "key list": (*ours_alone, "key", "list", "--file", str(keys)),
                "--help": (*ours_alone, "--help"),
            }
            took: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(runs):
                for name, arguments in commands.items():
                    took[name].append(await asyncio.to_thread(_cpu_s, arguments))
    floor_s = median(took.pop(_FLOOR))
    return [_row(name, seconds, floor_s) for name, seconds in took.items()]


def _row(name: str, seconds: Sequence[float], floor_s: float) -> Row:
    """One command's."""
    typical_s = median(seconds)
    ratio = typical_s / floor_s
    return Row(NAME, f"CPU of `{name}`", f"p50 <= {_MOST:g} x floor", in_ms(floor_s), in_ms(typical_s),
               f"{ratio:.1f} x", ratio <= _MOST, {"cpu_ms": rounded_ms(seconds)})  # fmt: skip
