"""An hour's changes in minutes, and nothing may grow: `python -m tests.chaos.soak --minutes 10 [--seed N]`.

Replicas come and go without a pause, are drained and resumed, routers are replaced, the configuration is reloaded, and
clients ask all the while; nobody is killed, so that it is one daemon from beginning to end. Ends with 1 if something
grows, or if a law of the churn was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.chaos.check import check, story, summary
from tests.chaos.growth import Tolerance, judge_all
from tests.chaos.history import History
from tests.chaos.schedule import Mix, make_schedule
from tests.chaos.stage import Stage

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024
_GAP_S = 2.0
_RESTING_S = 2.5
MIX = Mix(
    round_s=30.0,
    slot_gap_s=0.25,
    shared_gap_s=6.0,
    calm_slots=16,
    wild_slots=0,
    pair_slots=0,
    shared=("restart router", "reload"),
)
TOLERANCES = {
    "daemon resident kB": Tolerance(3000, share=0.05),
    "daemon file descriptors": Tolerance(10),
    "daemon threads": Tolerance(2),
    "daemon zombies": Tolerance(0, most=0),
    "daemon children": Tolerance(2),
    "metric series": Tolerance(10, share=0.05),
    "bridge links": Tolerance(5, most=40),
    "ports leased": Tolerance(5, most=40),
    "ports quarantined": Tolerance(3, most=20),
    "nginx resident kB": Tolerance(2000, share=0.1),
    "nginx file descriptors": Tolerance(40, share=0.2),
    "largest log kB": Tolerance(17_000, most=17_000),
    "state directory files": Tolerance(3),
    "run directory files": Tolerance(6),
}
"""Logs may grow up to their bound of 16 MiB; everything else has to stay as it is once it is warm."""

Series = dict[str, list[tuple[float, float]]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rounds = max(1, round(options.minutes * 60 / (MIX.round_s + _RESTING_S)))
    schedule = make_schedule(options.seed, rounds, MIX)
    events = sum(len(one.events) for one in schedule.rounds)
    print(f"soak: seed {options.seed}, {events} events in {rounds} rounds of {MIX.round_s:g} s", flush=True)
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    stage = Stage(schedule, tell=tell)
    series: Series = defaultdict(list)
    history = asyncio.run(_soak(stage, series))
    verdicts = judge_all(series, TOLERANCES)
    violations = check(history)
    for violation in violations[:5]:
        print(story(history, violation))
    for line in [*summary(history), *map(str, verdicts)]:
        print(line)
    growing = [one.name for one in verdicts if not one.flat]
    if violations or growing:
        print(f"files            {stage.gateway.directory}")
    else:
        shutil.rmtree(stage.gateway.directory)
    words = [f"{len(violations)} violations"] if violations else []
    words += [f"growing: {', '.join(growing)}"] if growing else []
    print(f"verdict          {'; '.join(words) or 'flat and clean'}, seed {options.seed}")
    return 1 if words else 0


async def _soak(stage: Stage, series: Series) -> History:
    sampling = asyncio.create_task(_sample(stage, series))
    try:
        return await stage.play()
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def _sample(stage: Stage, series: Series) -> None:
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        while True:
            await asyncio.sleep(_GAP_S)
            at = time.monotonic() - began
            with suppress(OSError, aiohttp.ClientError):
                values = _measured(stage) | {"metric series": float(await _count_series(session, stage))}
                for name, value in values.items():
                    series[name].append((at, value))


async def _count_series(session: aiohttp.ClientSession, stage: Stage) -> int:
    async with session.get(f"http://127.0.0.1:{stage.gateway.metrics_port}/metrics") as response:
        text = await response.text()
    return sum(1 for line in text.splitlines() if line and not line.startswith("#"))


def _measured(stage: Stage) -> dict[str, float]:
    """One sample of everything. Raises OSError if the daemon is not there."""
    process, latest = stage.gateway.process, stage.history.snapshots[-1:]
    if process is None or not latest or latest[0].nginx is None:
        raise OSError("not there yet")
    directory = stage.gateway.directory
    children = _children(process.pid)
    nginx = [latest[0].nginx, *_children(latest[0].nginx)]
    return {
        "daemon resident kB": _resident_kb(process.pid),
        "daemon file descriptors": float(_descriptors(process.pid)),
        "daemon threads": float(len(list(Path(f"/proc/{process.pid}/task").iterdir()))),
        "daemon zombies": float(sum(_is_zombie(pid) for pid in children)),
        "daemon children": float(len(children)),
        "bridge links": float(sum(path.suffix == ".sock" for path in (directory / "run" / "bridges").iterdir())),
        "ports leased": float(latest[0].leased),
        "ports quarantined": float(latest[0].quarantined),
        "nginx resident kB": sum(map(_resident_kb, nginx)),
        "nginx file descriptors": float(sum(map(_descriptors, nginx))),
        "largest log kB": max(path.stat().st_size for path in (directory / "state" / "log").iterdir()) / 1024,
        "state directory files": float(_files(directory / "state")),
        "run directory files": float(_files(directory / "run") - _files(directory / "run" / "bridges")),
    }


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return False


def _resident_kb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KB
    except OSError:
        return 0.0


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _files(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    sys.exit(main())
