"""Figure: nginx as the router (`router: {type: none}`) against a plain nginx with the same engines as its `upstream`.

Two engines, each a tiny nginx on a Unix socket that answers `{}`; `wrk` in front, 32 connections that are kept. One
nginx worker process on either side. A round measures both, one right after the other and in turns who is first; the
ratio is the median of the rounds' ratios.

floor  `upstream { least_conn; server unix:A; server unix:B; }` and a `proxy_pass`, as one writes it by hand.
ours   The service address of the daemon's own nginx, with all that a service address does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench import processes
from bench.bare import BareNginx
from bench.bridge_cost import compare, upstream
from bench.place import BASE, scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale
from tests.system.gateway import Gateway

NAME = "no-router"
_LEAST_RATIO = 0.95


async def run(scale: Scale) -> list[Row]:
    """14 rounds of 1 s for each side; 4 with `--quick`."""
    if shutil.which("wrk") is None:
        return [Row.not_measured(NAME, "wrk is missing: apt-get install wrk")]
    gateway = Gateway(base=BASE, log={"format": "json", "level": "info"})
    gateway.settings["services"][0] |= {"router": {"type": "none"}, "engine": "http"}
    sockets: list[Path] = [gateway.socket(name) for name in ("r1", "r2")]
    try:
        await gateway.start()
        with scratch_directory() as directory:
            plain = free_ports(1)
            async with (
                upstream(directory / "one", sockets[0]),
                upstream(directory / "two", sockets[1]),
                BareNginx(directory, {plain: sockets[0]}, http=True, balanced=sockets) as floor,
            ):
                await gateway.until_states({"r1": "serving", "r2": "serving"})
                master = int((await gateway.status())["nginx"]["pid"])
                ours = ("127.0.0.1", gateway.ports["chat"], [master, *processes.children(master)])
                theirs = ("127.0.0.1", plain, floor.pids)
                return await compare(NAME, "balanced, kept connections", theirs, ours, scale.pick(14, 4), _LEAST_RATIO)
    finally:
        await gateway.close()
