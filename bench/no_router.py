"""Figures: nginx as the router (`router: {type: none}`).

requests/s, CPU per request
    Two engines, each a tiny nginx on a Unix socket that answers `{}`; `wrk` in front, 32 connections that are kept. One
    nginx worker process on either side. A round measures both, one right after the other and in turns who is first;
    the ratio is the median of the rounds' ratios.

    own upstream  floor: an nginx with our very configuration, but nginx's own `upstream` in place of our balancer:
                  `least_conn` over the two sockets, written down. What balancing over replicas that come and go costs.
    plain proxy   floor: an `upstream` and a `proxy_pass` by hand, no more. What the service address does beside it: it
                  reports each request, bounds bodies, passes streams on unbuffered, lets requests wait.
first 200   From the instant at which an engine's socket listens to the first 200 through the service address.
rolling     Clients ask without a pause while all of four engines are replaced, one after the other: a new one starts
            and serves, the old one is drained and stopped. A request fails if it is not answered 200, whole.
SIGKILL     nginx, master and workers, is killed, until the first 200 through the service address. Floor: as
            `nginx-kill`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench import processes
from bench.bare import BareNginx, until_accepting
from bench.bridge_cost import Side, compare, upstream
from bench.chat import MODEL, first_200
from bench.engines import EngineHost, EngineKind, settings
from bench.gateway import Ours, running_gateway
from bench.load import Load
from bench.nginx_kill import KILL_BAR_S, kill_nginx, plain_start
from bench.place import scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from gateway_sidecar.nginx.server import find_nginx

NAME = "no-router"
_LEAST_RATIO = 0.95
_P50_S, _P99_S = 0.071, 0.300
"""As `first-answer` asks of SMG: its floor of 11 ms and 60 ms more."""
_ENGINES = 4
_CLIENTS = 16


async def run(scale: Scale) -> list[Row]:
    """14 rounds of 1 s for each side, 40 first answers, 10,000 requests, 8 kills; 4, 8, 2,000, 3 with `--quick`."""
    rows = []
    if shutil.which("wrk") is None:
        rows.append(Row.not_measured(NAME, "wrk is missing: apt-get install wrk"))
    else:
        rows += await _costs(scale.pick(14, 4))
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway(router="none") as ours:
            rows.append(await _first_answers(ours, engines, scale.pick(40, 8)))
            rows.append(await _rolling(ours, engines, scale.pick(10_000, 2_000)))
            rows.append(await _killed(ours, directory, scale.pick(8, 3)))
    return rows


async def _costs(rounds: int) -> list[Row]:
    with scratch_directory() as directory:
        async with running_gateway(router="none", engine="http", nginx_workers=1) as ours:
            sockets = [ours.socket(name) for name in ("r1", "r2")]
            plain = free_ports(1)
            async with (
                upstream(directory / "one", sockets[0]),
                upstream(directory / "two", sockets[1]),
                BareNginx(directory, {plain: sockets[0]}, http=True, balanced=sockets) as proxy,
                _own_upstream(ours, sockets) as own,
            ):
                await ours.until_serving("r1", "r2")
                side = ("127.0.0.1", ours.gateway.ports["chat"], await ours.nginx_pids())
                rows = await compare(NAME, "own upstream", own, side, rounds, _LEAST_RATIO)
                return rows + await compare(
                    NAME, "plain proxy", ("127.0.0.1", plain, proxy.pids), side, max(4, rounds // 2), None
                )


@asynccontextmanager
async def _own_upstream(ours: Ours, sockets: Sequence[Path]) -> AsyncIterator[Side]:
    """Our configuration, with other addresses, and nginx's own balancing over sockets that are written down."""
    directory = ours.directory / "run" / "nginx"
    text = (directory / "nginx.conf").read_text()
    port, bridges = free_ports(1), free_ports(1)
    members = " ".join(f"server unix:{socket};" for socket in sockets)
    text = re.sub(r"^ *(?:body_filter|log|init_worker)_by_lua_block .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"server unix:\S+/nobody max_fails=0;\s*balancer_by_lua_block .*$", f"least_conn; {members}", text,
                  flags=re.MULTILINE)  # fmt: skip
    text = re.sub(r"listen (127\.0\.0\.[12]):[0-9]+-[0-9]+ ", rf"listen \1:{bridges} ", text)
    text = text.replace(f"listen 127.0.0.1:{ours.gateway.ports['chat']} ", f"listen 127.0.0.1:{port} ")
    for name in ("alive.sock", "nginx.pid"):
        text = text.replace(name, f"floor-{name}")
    config = directory / "floor.conf"
    config.write_text(text)
    program = await find_nginx("nginx")
    argv = [program.path, "-p", str(directory), "-c", str(config)]
    process = await processes.start(argv, ours.directory / "floor.log")
    try:
        await until_accepting(port, process)
        yield "127.0.0.1", port, [process.pid, *processes.children(process.pid)]
    finally:
        await processes.end(process)


async def _first_answers(ours: Ours, engines: EngineHost, times: int) -> Row:
    took = []
    for _ in range(times):
        async with ours.client() as client:
            answered = asyncio.create_task(first_200(client))
            (listening_at,) = await engines.start(
                settings(ours.socket("first"), EngineKind.SGLANG_HTTP, name="first", model=MODEL)
            )
            took.append(await answered - listening_at)
        await engines.stop("first")
        await ours.until_serving()
    p50, p99 = median(took), percentile(took, 99)
    return Row(NAME, "first 200", f"p50 < {in_ms(_P50_S)}, p99 < {in_ms(_P99_S)}", "-", f"p50 {in_ms(p50)}",
               f"p99 {in_ms(p99)}", p50 < _P50_S and p99 < _P99_S, {"ms": rounded_ms(took)})  # fmt: skip


async def _rolling(ours: Ours, engines: EngineHost, requests: int) -> Row:
    """As many replacements as fit into so many requests, of every engine once at the least."""
    here = [f"e{number}" for number in range(_ENGINES)]
    await engines.start(*(_engine(ours, name) for name in here))
    await ours.until_serving(*here)
    replaced = 0
    async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS) as load:
        while load.requests < requests or replaced < _ENGINES:
            old, new = here.pop(0), f"e{_ENGINES + replaced}"
            await engines.start(_engine(ours, new))
            here.append(new)
            await ours.until_serving(old, *here)
            await ours.drain(old)
            await engines.stop(old, grace_s=10)
            await ours.until_serving(*here)
            replaced += 1
    numbers = {"failures": [it.reason for it in load.failures[:20]], "replaced": replaced}
    return Row(NAME, "rolling replacement, failed requests", "0", "-", f"{len(load.failures)} of {load.requests}",
               f"{replaced} replaced", not load.failures, numbers)  # fmt: skip


async def _killed(ours: Ours, directory: Path, times: int) -> Row:
    floors, took = [], []
    for _ in range(times):
        floors.append(await plain_start(directory))
        took.append(await kill_nginx(ours, workers_too=True))
    worst = percentile(took, 99)
    return Row(NAME, "SIGKILL of nginx, until the first 200", f"p99 < {KILL_BAR_S:g} s", f"p50 {in_ms(median(floors))}",
               f"p50 {in_ms(median(took))}", f"p99 {in_ms(worst)}", worst < KILL_BAR_S,
               {"floor_ms": rounded_ms(floors), "ours_ms": rounded_ms(took)})  # fmt: skip


def _engine(ours: Ours, name: str) -> dict[str, object]:
    return settings(ours.socket(name), EngineKind.SGLANG_HTTP, name=name, model=MODEL)
