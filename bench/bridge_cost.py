"""Figure: the bridges' requests/s and CPU per request, against plain hand-written nginx proxies.

One upstream, a tiny nginx on a Unix socket that answers `{}`; `wrk` in front, 32 connections. One nginx worker process
on either side. A round measures both, one right after the other and in turns who is first; the ratio is the median of
the rounds' ratios, so that a machine that slows down for a while does not speak for either.

floor  A proxy with one `listen` and one `proxy_pass`: of HTTP for the bridges of HTTP engines, of streams for gRPC's.
ours   The daemon's own nginx, its port range of 400 and its symlink, to the same socket.

Two kinds of traffic: connections that are kept, and a new connection for each request (where the bridge has its work).
Not the latter for gRPC's: a router keeps one connection, and nginx asks the kernel whose it is. The last row is what it
costs to judge HTTP: the bridge of an HTTP engine against a stream proxy, which could not tell one request from another.
CPU per request is the time that the proxy's processes used, from /proc, by the requests that wrk counted. More is
better in both ratios: requests/s is ours / floor, CPU per request is floor / ours.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.bare import BareNginx
from bench.gateway import replicas_of, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, median
from gateway_sidecar.nginx.server import find_nginx

NAME = "bridge-cost"
_LEAST_RATIO = 0.95
_CONNECTIONS = 32
_ROUND_S = 1
_COUNTS = re.compile(r"(\d+) requests in ([\d.]+)(ms|s|m)")


@dataclass(frozen=True, slots=True)
class _Round:
    requests_per_s: float
    cpu_us: float


@asynccontextmanager
async def upstream(directory: Path, socket: Path, *, arrivals: Path | None = None) -> AsyncIterator[None]:
    """An nginx that answers everything with `{}`, and `/v1/models` as an OpenAI-compatible server does.

    arrivals: a file for a line of each request, its method and when it was there, in seconds since 1970.
    """
    directory.mkdir()
    access_log = "off" if arrivals is None else f"{arrivals} arrivals"
    config = directory / "nginx.conf"
    config.write_text(f"""
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 4096; }}
http {{
    log_format arrivals "$request_method $msec";
    access_log {access_log};
    keepalive_requests 1000000000;
    {" ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
    default_type application/json;
    server {{
        listen unix:{socket} backlog=4096;
        location = /v1/models {{ return 200 '{{"object":"list","data":[{{"id":"tiny","object":"model"}}]}}'; }}
        location / {{ return 200 '{{}}'; }}
    }}
}}
""")
    program = await find_nginx("nginx")
    process = await processes.start([program.path, "-p", str(directory), "-c", str(config)], directory / "output.log")
    try:
        async with asyncio.timeout(10):
            while not socket.exists():
                await asyncio.sleep(0.01)
        socket.chmod(0o666)
        yield
    finally:
        await processes.end(process)


async def _round(host: str, port: int, pids: list[int], *, kept: bool) -> _Round:
    """One run of wrk against a port, and what the proxy used meanwhile."""
    options = [] if kept else ["-H", "Connection: close"]
    before = processes.cpu_s(*pids)
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{_ROUND_S}s", *options, f"http://{host}:{port}/health",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    used_s = processes.cpu_s(*pids) - before
    found = _COUNTS.search(output.decode())
    if found is None or found[3] != "s" or b"Non-2xx" in output or b"Socket errors" in output:
        raise RuntimeError(f"wrk: {output.decode()}")
    return _Round(int(found[1]) / float(found[2]), used_s / int(found[1]) * 1e6)


async def run(scale: Scale) -> list[Row]:
    """14 rounds of 1 s for each side and kind of traffic; 4 with `--quick`."""
    if shutil.which("wrk") is None:
        return [Row.not_measured(NAME, "wrk is missing: apt-get install wrk")]
    with scratch_directory() as directory:
        async with running_gateway(nginx_workers=1) as ours, upstream(directory / "up", ours.socket("r1")):
            first = free_ports(2)
            async with (
                BareNginx(directory, {first: ours.socket("r1")}) as streams,
                BareNginx(directory, {first + 1: ours.socket("r1")}, http=True) as proxy,
            ):
                await ours.until(lambda rows: "r1" in rows and rows["r1"]["bridge"] is not None)
                bridge = int(replicas_of(await ours.gateway.status())["r1"]["bridge"].rpartition(":")[2])
                our_pids = await ours.nginx_pids()
                rows = []
                cases = (
                    ("HTTP, kept connections", True, "127.0.0.1", first + 1, proxy.pids, _LEAST_RATIO),
                    ("HTTP, a connection each", False, "127.0.0.1", first + 1, proxy.pids, _LEAST_RATIO),
                    ("gRPC's, kept connections", True, "127.0.0.2", first, streams.pids, _LEAST_RATIO),
                    ("HTTP against a stream proxy", True, "127.0.0.1", first, streams.pids, None),
                )
                for case, kept, host, plain, plain_pids, least in cases:
                    floor, bridges = (host, plain, plain_pids), (host, bridge, our_pids)
                    rows += await compare(NAME, case, floor, bridges, scale.pick(14, 4), least, kept=kept)
    return rows


Side = tuple[str, int, list[int]]
"""Where a proxy listens, host and port, and its processes."""


async def compare(
    name: str, case: str, floor: Side, ours: Side, rounds: int, least: float | None, *, kept: bool = True
) -> list[Row]:
    """Requests/s and CPU per request of one proxy against another's, in so many rounds."""
    floors: list[_Round] = []
    times: list[_Round] = []
    for number in range(rounds):
        sides = [(floors, floor), (times, ours)]
        for found, (host, port, pids) in sides if number % 2 else reversed(sides):
            found.append(await _round(host, port, pids, kept=kept))
    return _rows(name, case, floors, times, least)


def _rows(name: str, case: str, floors: list[_Round], times: list[_Round], least: float | None) -> list[Row]:
    rates = [median([r.requests_per_s for r in side]) for side in (floors, times)]
    cpus = [median([r.cpu_us for r in side]) for side in (floors, times)]
    numbers = {
        "rounds": len(times),
        "floor_requests_per_s": [round(r.requests_per_s) for r in floors],
        "ours_requests_per_s": [round(r.requests_per_s) for r in times],
        "floor_cpu_us": [round(r.cpu_us, 2) for r in floors],
        "ours_cpu_us": [round(r.cpu_us, 2) for r in times],
    }
    pairs = list(zip(floors, times, strict=True))
    rate = median([ours.requests_per_s / floor.requests_per_s for floor, ours in pairs])
    cpu = median([floor.cpu_us / ours.cpu_us for floor, ours in pairs])
    bar = "-" if least is None else f">= {least:g} x floor"
    return [
        Row(name, f"requests/s, {case}", bar, f"{rates[0]:.0f}/s", f"{rates[1]:.0f}/s", f"{rate:.2f} x",
            least is None or rate >= least, numbers),
        Row(name, f"CPU per request, {case}", bar, f"{cpus[0]:.1f} us", f"{cpus[1]:.1f} us", f"{cpu:.2f} x",
            least is None or cpu >= least, numbers),
    ]  # fmt: skip
