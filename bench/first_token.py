"""Figure: what it costs to time a stream's first event, and how far from a client's own time that is.

added      One nginx, one worker process, one proxy on two ports, with an access event for each request: plain, and with
           the directives that a service's address has beside it. A tiny server streams 20 events in one piece, so that
           both do the same number of reads. One request at a time over a kept connection, the two in turns. Each side's
           figure is that of its quietest round, since other work only adds. CPU is the worker's, by its schedstat.
apart      Streams through the service address, nginx and SMG, to a simulated engine (HTTP and gRPC) that takes 50 ms to
           its first token. The client's clock runs from the moment before the request is sent to the first bytes of the
           body; apart is the mean of these less the mean of the daemon's histogram.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench import processes
from bench.chat import PATH, chat
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, median
from bench.wire import Connection
from examples.simulated import Behaviour, EngineKind, EngineSpec, start_engine
from gateway_sidecar.nginx.server import find_nginx

NAME = "first-token"
_EVENTS, _REQUESTS = 20, 50
_TOKEN_S = 0.05
_MOST_ADDED_US, _MOST_CPU_US, _MOST_APART_MS = 15.0, 5.0, 5.0
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
_SUM = re.compile(r"^gateway_sidecar_time_to_first_token_seconds_(sum|count)\{.*\} (\S+)", re.MULTILINE)


async def run(scale: Scale) -> list[Row]:
    """200 rounds of 50 streams for each side; 200 streams for each kind of engine. 40 and 40 with `--quick`."""
    async with running_gateway(nginx_workers=1) as ours:
        directives = _directives((ours.directory / "run/nginx/nginx.conf").read_text())
        kinds = (EngineKind.VLLM_HTTP, EngineKind.VLLM_GRPC)
        rows = [await _apart(ours, kind, scale.pick(200, 40)) for kind in kinds]
    with scratch_directory() as directory:
        async with _both(directory, directives) as (pid, ports):
            times, cpu = await _compare(pid, ports, scale.pick(200, 40))
    added_us, cpu_us = _added(times) * 1e6, _added(cpu)
    numbers = {"p50_us": round(added_us, 1), "cpu_us": round(cpu_us, 2)}
    rows += [
        Row(NAME, "added to a stream: p50", f"< {_MOST_ADDED_US:g} us", f"{min(times['plain']) * 1e6:.0f} us",
            f"{min(times['ours']) * 1e6:.0f} us", f"{added_us:+.1f} us", added_us < _MOST_ADDED_US, numbers),
        Row(NAME, "added to a stream: CPU of nginx", f"< {_MOST_CPU_US:g} us", f"{min(cpu['plain']):.1f} us",
            f"{min(cpu['ours']):.1f} us", f"{cpu_us:+.1f} us", cpu_us < _MOST_CPU_US, numbers),
    ]  # fmt: skip
    return rows


def _added(sides: Mapping[str, list[float]]) -> float:
    return min(sides["ours"]) - min(sides["plain"])


def _directives(text: str) -> tuple[str, str]:
    """Of the configuration that nginx runs with: the maps, and what a service's server has."""
    maps = [line for line in text.splitlines() if re.search(r"^ *map .*\$gateway_(?:first_s|token_s|nothing) ", line)]
    server = [line for line in text.splitlines() if line.strip().startswith("sub_filter")]
    return "\n".join(maps), "\n".join(server)


@asynccontextmanager
async def _both(directory: Path, directives: tuple[str, str]) -> AsyncIterator[tuple[int, Mapping[str, int]]]:
    maps, server = directives
    ports = {name: free_ports(1) for name in ("plain", "ours", "up", "events")}
    program = await find_nginx("nginx")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    plain = "x|$request_method|$status|$request_time|%s|-|$request_completion"
    servers = "\n".join(
        f"""server {{ listen 127.0.0.1:{ports[name]}; {lines}
        access_log syslog:server=127.0.0.1:{ports["events"]},nohostname,tag=x {name};
        location / {{ proxy_pass http://up; }} }}"""
        for name, lines in (("plain", ""), ("ours", server))
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/log;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 256; }}
http {{
    {" ".join(f"{it}_temp_path {directory}/{it};" for it in kinds)}
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; keepalive_requests 1000000;
    log_format plain '{plain % "$upstream_header_time"}'; log_format ours '{plain % "$gateway_first_s"}';
    {maps}
    upstream up {{ server 127.0.0.1:{ports["up"]}; keepalive 8; keepalive_requests 1000000; }}
    {servers}
}}
""")
    up = await asyncio.start_server(_stream, "127.0.0.1", ports["up"])
    process = await processes.start([program.path, "-p", str(directory), "-c", str(config)], directory / "output")
    try:
        async with asyncio.timeout(10):
            while not processes.children(process.pid):
                await asyncio.sleep(0.01)
        yield processes.children(process.pid)[0], ports
    finally:
        await processes.end(process)
        up.close()


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(_STREAM + b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT) * _EVENTS + b"0\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _compare(
    pid: int, ports: Mapping[str, int], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Each round's median time in seconds, and the CPU in us a request."""
    names = ("plain", "ours")
    times: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    connections = {name: Connection("127.0.0.1", ports[name]) for name in names}
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            took, before = [], processes.cpu_us(pid)
            for _ in range(_REQUESTS):
                began = time.perf_counter()
                await connections[name].ask("GET", "/")
                took.append(time.perf_counter() - began)
            cpu[name].append((processes.cpu_us(pid) - before) / _REQUESTS)
            times[name].append(median(took))
    for connection in connections.values():
        connection.close()
    return times, cpu


# -- the client's clock


async def _apart(ours: Ours, kind: EngineKind, count: int) -> Row:
    spec = EngineSpec(kind=kind, socket=ours.socket("r1"), model="tiny")
    engine = await start_engine(spec, Behaviour(token_interval_s=_TOKEN_S))
    try:
        await ours.until_serving("r1")
        async with aiohttp.ClientSession() as session:
            await _first_s(session, ours)
            before = await _told(session, ours, 0)
            seen = [await _first_s(session, ours) for _ in range(count)]
            sum_s, number = await _told(session, ours, before[1] + count)
    finally:
        await engine.stop(grace_s=0)
        await ours.until(lambda rows: not any(row["state"] == "serving" for row in rows.values()))
        spec.socket.unlink(missing_ok=True)
        await ours.until(lambda rows: not rows)
    client_ms, nginx_ms = sum(seen) / count * 1000, (sum_s - before[0]) / (number - before[1]) * 1000
    apart = client_ms - nginx_ms
    numbers: dict[str, Any] = {"client_ms": round(client_ms, 2), "nginx_ms": round(nginx_ms, 2), "streams": count}
    return Row(NAME, f"apart from the client's clock, {kind}, {count} streams", f"< {_MOST_APART_MS:g} ms",
               f"{client_ms:.1f} ms", f"{nginx_ms:.1f} ms", f"{apart:.1f} ms", abs(apart) < _MOST_APART_MS,
               numbers)  # fmt: skip


async def _first_s(session: aiohttp.ClientSession, ours: Ours) -> float:
    began = time.perf_counter()
    async with session.post(f"{ours.gateway.url()}{PATH}", json=chat(tokens=2, stream=True)) as response:
        await response.content.readany()
        took = time.perf_counter() - began
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}")
        return took


async def _told(session: aiohttp.ClientSession, ours: Ours, at_least: float) -> tuple[float, float]:
    """The histogram's sum and count, once it has counted so many."""
    async with asyncio.timeout(10):
        while True:
            async with session.get(f"http://127.0.0.1:{ours.gateway.metrics_port}/metrics") as response:
                found = dict(_SUM.findall(await response.text()))
            if found and float(found["count"]) >= max(at_least, 1):
                return float(found["sum"]), float(found["count"])
            await asyncio.sleep(0.1)
