"""Figure: what it costs the daemon to hear of every request.

Some 1,000 requests a second through the service address, nginx and SMG, to a tiny nginx that answers `{}` on a
socket; `wrk` in front, 64 connections that pause between requests. CPU of the daemon process alone (user, system,
all threads, from /proc) under that load, less what it used in an interval of the same length before, without load.
The difference is divided by the requests that wrk counted. Lost are events that the kernel had no room for while the
daemon did not read. That every request was heard is checked: what the daemon counted, and lost, is what wrk sent.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp

from bench import processes
from bench.bridge_cost import upstream
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale

NAME = "signals"
_MOST_CPU_US = 30.0
_CONNECTIONS = 64
_PAUSE_MS = 60
_COUNTED = re.compile(r"(\d+) requests in ([\d.]+)s")
_HEARD = re.compile(r'^gateway_sidecar_requests_total\{outcome="ok",service="chat"\} (\S+)', re.MULTILINE)
_LOST = re.compile(r"^gateway_sidecar_lost_request_events (\S+)", re.MULTILINE)
_SCRIPT = f"""
wrk.method = "POST"
wrk.body = '{{"model":"tiny","messages":[{{"role":"user","content":"x"}}]}}'
wrk.headers["Content-Type"] = "application/json"
function delay() return {_PAUSE_MS} end
"""


async def run(scale: Scale) -> list[Row]:
    """20 s each; 5 with `--quick`."""
    if shutil.which("wrk") is None:
        return [Row.not_measured(NAME, "wrk is missing: apt-get install wrk")]
    interval_s = scale.pick(20, 5)
    with scratch_directory() as directory:
        async with running_gateway(nginx_workers=1) as ours, upstream(directory / "up", ours.socket("r1")):
            await ours.until_serving("r1")
            script = directory / "post.lua"
            script.write_text(_SCRIPT)
            await _wrk(ours, script, 1)  # The first requests open connections, and make SMG count.
            heard, lost = await _counted(ours)
            before = processes.cpu_s(ours.pid)
            await asyncio.sleep(interval_s)
            rest_s = processes.cpu_s(ours.pid) - before
            before = processes.cpu_s(ours.pid)
            requests, rate = await _wrk(ours, script, interval_s)
            used_s = processes.cpu_s(ours.pid) - before
            heard, lost = [now - then for now, then in zip(await _counted(ours), (heard, lost), strict=True)]
    # wrk drops what is under way at its end: nginx tells of some that it did not count.
    if not requests <= heard + lost <= requests + _CONNECTIONS:
        return [Row.not_measured(NAME, f"wrk counted {requests} requests, the daemon {heard:.0f} and {lost:.0f} lost")]
    cpu_us = max(0.0, used_s - rest_s) / requests * 1e6
    numbers: dict[str, Any] = {
        "requests": requests,
        "requests_per_s": round(rate),
        "heard": heard,
        "lost": lost,
        "cpu_rest_percent": round(100 * rest_s / interval_s, 2),
        "cpu_load_percent": round(100 * used_s / interval_s, 2),
        "cpu_us_per_request": round(cpu_us, 2),
    }
    case = f"{rate:.0f} requests/s, {interval_s} s"
    share = f"{100 * rest_s / interval_s:.2f} %"
    return [
        Row(NAME, f"daemon's CPU per request, {case}", f"< {_MOST_CPU_US:g} us", f"{share} at rest",
            f"{100 * used_s / interval_s:.2f} %", f"{cpu_us:.1f} us", cpu_us < _MOST_CPU_US, numbers),
        Row(NAME, f"events lost, {case}", "0", "-", f"{lost:.0f}", f"{lost:.0f} of {heard + lost:.0f}", lost == 0,
            numbers),
    ]  # fmt: skip


async def _wrk(ours: Ours, script: Path, for_s: int) -> tuple[int, float]:
    """Requests answered, and how many a second."""
    url = f"{ours.gateway.url()}/v1/chat/completions"
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{for_s}s", "-s", str(script), url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    found = _COUNTED.search(output.decode())
    if found is None or b"Non-2xx" in output:
        raise RuntimeError(f"wrk: {output.decode()}")
    return int(found[1]), int(found[1]) / float(found[2])


async def _counted(ours: Ours) -> tuple[float, float]:
    """Requests that the daemon has heard of so far, and events that it lost, once both have settled."""
    last: tuple[float, float] | None = None
    url = f"http://127.0.0.1:{ours.gateway.metrics_port}/metrics"
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        while True:
            await asyncio.sleep(0.3)
            async with session.get(url) as response:
                text = await response.text()
            heard, lost = _HEARD.search(text), _LOST.search(text)
            now = (float(heard[1]) if heard else 0.0, float(lost[1]) if lost else 0.0)
            if now == last:
                return now
            last = now
