"""Figures: what tokens cost that go through a tunnel, and what 200 tunnels cost at rest.

An sshd of our own on a loopback port, a source of tokens of 150 bytes behind it, and three ways there:

floor     `ssh -N -L` as a person would run it, one process for the forward.
openssh   The daemon's tunnel, made by the OpenSSH client.
asyncssh  The daemon's tunnel, made by asyncssh.

CPU is that of the process which holds the tunnel on this side, from the kernel's scheduler statistics (nanoseconds),
while 20 streams carry 50 tokens a second each. Ours and the floor are measured in the very same seconds, side by side:
how many tokens a process finds waiting when it wakes depends on whatever else the machine does. Tokens/s is what 20
streams carry that are read as fast as they come, in turns; the source, sshd and this reader share the machine's cores
with the tunnel.

At rest: 200 forwards that nobody uses, over one connection and over 25, and for comparison one hand-run process for
each forward. Memory is proportional (PSS), as processes share the program's pages.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copy
from typing import Any

from bench import processes
from bench.place import scratch_directory
from bench.report import Row, Scale, median
from bench.token_source import TOKEN
from gateway_sidecar.domain.tunnels import BackendName, SshRoute, SshServer, Tunnel
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.logs import set_up_logs
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.tunnels.fleet import TunnelFleet
from tests.ssh_servers import SSHD, Sshd

NAME = "tunnel-cost"
_MOST_RATIO = 1.1
_STREAMS = 20
_TOKENS_A_SECOND = 50
_TUNNELS = 200
_REPLICAS_A_HOST = 8


async def run(scale: Scale) -> list[Row]:
    """Five rounds of 4 s for each way; three of 2 s with `--quick`."""
    if SSHD is None:
        return [Row.not_measured(NAME, "openssh-server is not installed")]
    set_up_logs("console", "error")
    with scratch_directory() as directory:
        sshd = Sshd(directory / "sshd")
        sshd.start()
        try:
            rows = await _cost(directory, sshd, scale.pick(5, 3), scale.pick(4, 2))
            return rows + await _at_rest(directory, sshd, scale.pick(10, 5))
        finally:
            sshd.kill()


def _route(sshd: Sshd, backend: BackendName, known_hosts: Path | None = None) -> SshRoute:
    server = SshServer(
        sshd.host, sshd.port, "root", str(sshd.user_key), known_hosts=str(known_hosts or sshd.known_hosts)
    )
    return SshRoute((server,), backend=backend)


@asynccontextmanager
async def _fleet(directory: Path) -> AsyncIterator[TunnelFleet]:
    fleet = TunnelFleet(directory, Tasks("-", Metrics()))
    fleet.prepare()
    try:
        yield fleet
    finally:
        await fleet.end()


async def _until_up(fleet: TunnelFleet, *tunnels: Tunnel) -> None:
    fleet.request(tunnels, complete=True)
    async with asyncio.timeout(120):
        while not all(fleet.status(tunnel).is_up for tunnel in tunnels):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _by_hand(directory: Path, sshd: Sshd, local: Path, remote: Path) -> AsyncIterator[int]:
    """The pid of an ssh client that a person could have started."""
    options = ("BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={sshd.known_hosts}", "ServerAliveInterval=4")
    argv = [
        *("ssh", "-F", "none", "-N", "-L", f"{local}:{remote}", "-p", str(sshd.port), "-i", str(sshd.user_key)),
        *(word for option in options for word in ("-o", option)),
        f"root@{sshd.host}",
    ]
    process = await processes.start(argv, directory / "by-hand.log")
    try:
        async with asyncio.timeout(20):
            while not local.exists():
                await asyncio.sleep(0.01)
        yield process.pid
    finally:
        await processes.end(process)


async def _cost(directory: Path, sshd: Sshd, rounds: int, round_s: float) -> list[Row]:
    far = directory / "tokens.sock"
    source = await processes.start([sys.executable, "-m", "bench.token_source", str(far)], directory / "source.log")
    backends: list[BackendName] = ["openssh"]
    if importlib.util.find_spec("asyncssh") is not None:
        backends.append("asyncssh")
    tunnels = {backend: Tunnel(f"bench/{backend}", _route(sshd, backend), str(far)) for backend in backends}
    try:
        async with (
            _fleet(directory / "tunnels") as fleet,
            _by_hand(directory, sshd, directory / "hand.sock", far) as by_hand,
        ):
            await _until_up(fleet, *tunnels.values())
            pids = {it.route.backend: it.pid for it in fleet.connections}
            ways: dict[str, tuple[Path, int]] = {"by hand": (directory / "hand.sock", by_hand)}
            ways |= {backend: (fleet.socket_of(it), pids[backend] or 0) for backend, it in tunnels.items()}
            return _cost_rows(await _rounds(ways, rounds, round_s))
    finally:
        await processes.end(source)


@dataclass(frozen=True, slots=True)
class _Round:
    """CPU in ms for 10,000 tokens and tokens/s, by hand and ours."""

    floor_cpu_ms: float
    cpu_ms: float
    floor_tokens_s: float
    tokens_s: float


Measured = Mapping[str, list[_Round]]


async def _rounds(ways: Mapping[str, tuple[Path, int]], rounds: int, round_s: float) -> Measured:
    floor = ways["by hand"]
    found: dict[str, list[_Round]] = {way: [] for way in ways if way != "by hand"}
    for number in range(rounds):
        for way, rows in found.items():
            cpu = await asyncio.gather(*(_cpu_ms(each, round_s) for each in (floor, ways[way])))
            in_turn = (floor, ways[way]) if number % 2 else (ways[way], floor)
            speeds = [await _speed(each, round_s / 2) for each in in_turn]
            rows.append(_Round(*cpu, *(speeds if number % 2 else reversed(speeds))))
    return found


async def _cpu_ms(way: tuple[Path, int], seconds: float) -> float:
    path, pid = way
    used = _cpu_ns(pid)
    tokens = await _read(path, _TOKENS_A_SECOND, seconds)
    return (_cpu_ns(pid) - used) / 1e6 / tokens * 10_000


async def _speed(way: tuple[Path, int], seconds: float) -> float:
    began = time.monotonic()
    tokens = await _read(way[0], 0, seconds)
    return tokens / (time.monotonic() - began)


async def _read(path: Path, rate: float, seconds: float) -> int:
    """So many tokens came through all streams together."""

    async def one() -> int:
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        writer.write(f"{rate} {seconds}\n".encode())
        size = 0
        while data := await reader.read(1 << 18):
            size += len(data)
        writer.close()
        return size

    return sum(await asyncio.gather(*(one() for _ in range(_STREAMS)))) // len(TOKEN)


def _cost_rows(found: Measured) -> list[Row]:
    rows = []
    for way, rounds in found.items():
        cpu = median([each.cpu_ms / each.floor_cpu_ms for each in rounds])
        speed = median([each.tokens_s / each.floor_tokens_s for each in rounds])
        held = way == "openssh"
        numbers = {"rounds": [asdict(each) for each in rounds]}
        there, here = (median([each.floor_cpu_ms for each in rounds]), median([each.cpu_ms for each in rounds]))
        plain, fast = (median([each.floor_tokens_s for each in rounds]), median([each.tokens_s for each in rounds]))
        rows += [
            Row(NAME, f"CPU for 10,000 tokens, {way}", f"<= {_MOST_RATIO:g} x floor" if held else "-",
                f"{there:.0f} ms", f"{here:.0f} ms", f"{cpu:.2f} x", cpu <= _MOST_RATIO if held else None, numbers),
            Row(NAME, f"tokens/s, {way}", "-", f"{plain:.0f}", f"{fast:.0f}", f"{speed:.2f} x", None, numbers),
        ]  # fmt: skip
    return rows


async def _at_rest(directory: Path, sshd: Sshd, interval_s: float) -> list[Row]:
    apiece = await _memory_by_hand(directory, sshd)
    many = _TUNNELS // _REPLICAS_A_HOST
    ways: list[tuple[int, BackendName]] = [(1, "openssh"), (many, "openssh")]
    if importlib.util.find_spec("asyncssh") is not None:
        ways.append((many, "asyncssh"))
    return [await _rest(directory, sshd, hosts, backend, interval_s, apiece) for hosts, backend in ways]


async def _rest(
    directory: Path, sshd: Sshd, hosts: int, backend: BackendName, interval_s: float, apiece_mb: float
) -> Row:
    """One sshd stands for all hosts: a list of known hosts of its own makes a way another."""
    routes = [_route(sshd, backend, Path(copy(sshd.known_hosts, directory / f"known-{n}"))) for n in range(hosts)]
    tunnels = [Tunnel(f"bench/r{n}", replace(routes[n % hosts]), f"127.0.0.1:{1 + n}") for n in range(_TUNNELS)]
    async with _fleet(directory / f"rest-{backend}-{hosts}") as fleet:
        began = time.monotonic()
        await _until_up(fleet, *tunnels)
        up_s = time.monotonic() - began
        pids = [it.pid for it in fleet.connections if it.pid is not None]
        before, own, began = sum(map(_cpu_ns, pids)), time.process_time(), time.monotonic()
        await asyncio.sleep(interval_s)
        took_s = time.monotonic() - began
        cpu_percent = (sum(map(_cpu_ns, pids)) - before) / 1e7 / took_s
        keeper_percent = 100 * (time.process_time() - own) / took_s
        memory_mb = sum(map(_pss_mb, pids))
    numbers = {
        "connections": hosts,
        "memory_mb": round(memory_mb, 1),
        "by_hand_mb": round(apiece_mb * _TUNNELS, 1),
        "cpu_percent": round(cpu_percent, 3),
        "keeper_cpu_percent": round(keeper_percent, 3),
        "all_up_s": round(up_s, 2),
    }
    ours = f"{memory_mb:.0f} MB, {cpu_percent:.2f} % + {keeper_percent:.2f} % CPU"
    case = f"{_TUNNELS} at rest, {hosts} connections, {backend}"
    verdict = f"{memory_mb / (apiece_mb * _TUNNELS):.2f} x memory"
    return Row(NAME, case, "-", f"{apiece_mb * _TUNNELS:.0f} MB", ours, verdict, None, numbers)


async def _memory_by_hand(directory: Path, sshd: Sshd, processes_measured: int = 20) -> float:
    """MB for one hand-run forward, from so many that run at once."""
    async with _all(
        [_by_hand(directory, sshd, directory / f"h{n}.sock", Path("/none")) for n in range(processes_measured)]
    ) as pids:
        return sum(map(_pss_mb, pids)) / len(pids)


@asynccontextmanager
async def _all(managers: list[Any]) -> AsyncIterator[list[int]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each) for each in managers]


def _cpu_ns(pid: int) -> int:
    """CPU time of all threads, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
