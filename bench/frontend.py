"""Figure: what a frontend costs, and how soon a revoked key is refused.

One gateway with two services that have an engine each and the same settings: `bare`, with nothing but the paths that
every service has, and `guarded`, with a file of 10,000 keys, three limits and a body size. Both in the same nginx, one
worker process.

added latency    `GET /v1/models`, answered by the real SMG, over one kept connection to each address, one request at a
                 time, the two in turns. Per round the percentiles of 200 requests each; ours - floor is the median of
                 the rounds' differences.
CPU per request  what nginx's worker used, by its schedstat, for the same requests as `added latency`; once with 10,000
                 keys, once with one.
revoked          From the moment before `revoke_key` begins, in a process of its own that runs already, to the first
                 401, asked every millisecond over a kept connection; 10,000 keys, the daemon under no other load. A
                 third service is asked, whose only limit is used up: nginx answers by itself, 429 as long as the key is
                 good, and how busy SMG is does not matter.
access log       A service that logs each request beside `bare`, and nothing else. One chat of 2 KB at a time over one
                 kept connection to each address, the two in turns: the line names the model and the replica. Both are
                 without a router, since that takes most of the time and its scatter is larger than the bar. Per round
                 the median of 50 chats and the CPU of nginx's worker; each side's figure is that of its quietest
                 round, since other work only adds. `errors` is a service that logs errors alone, asked the same.
handshake        CPU of an nginx worker for a full TLS 1.3 handshake with P-256, the certificate opened anew for each as
                 the frontend has it, against one that was read at the start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import processes
from bench.place import BASE, scratch_directory
from bench.ports import free_ports
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms
from bench.wire import Connection
from examples.simulated import Behaviour, EngineKind, EngineSpec, start_engine
from gateway_sidecar.frontend.edit_keys import add_key, revoke_key
from gateway_sidecar.nginx.server import find_nginx
from gateway_sidecar.nginx.templates import render
from tests.certificates import certificate
from tests.system.gateway import Gateway

NAME = "frontend"
_KEYS = 10_000
_ADDED_P50_S, _ADDED_P99_S = 0.0001, 0.0005
_ADDED_CPU_US = 20.0
_REVOKED_S = 0.1
_REQUESTS = 200
_PATH = "/v1/models"
_BETWEEN_S = 0.001
_SETTLE_S = 0.3
_LOGS, _CHATS, _CHAT_PATH = {"all": "all", "errors": "errors", "bare": "off"}, 50, "/v1/chat/completions"
_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello world " * 170}], "max_tokens": 4}
_LOG_P50_S, _LOG_CPU_US = 0.000015, 5.0


def _fill(file: Path, keys: int) -> None:
    """Writes so many keys that nobody has, in the place of all others."""
    lines = [f"user{number}:{hashlib.sha256(f'{number}'.encode()).hexdigest()}\n" for number in range(keys)]
    file.write_text("# keys\n" + "".join(lines))
    file.chmod(0o600)


@asynccontextmanager
async def _two_services(file: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(services=("bare", "guarded", "limited"), base=BASE, log={"format": "json", "level": "info"})
    first = gateway.ports["bare"]
    gateway.settings["router_ports"] = f"{first + 10}-{first + 21}"
    gateway.settings["bridges"]["ports"] = f"{first + 22}-{first + 59}"
    gateway.settings["services"][1]["frontend"] = {
        "auth": {"keys_file": str(file)},
        "limits": [
            {"per": "key", "rps": 100_000, "burst": 1000, "concurrent": 1000},
            {"per": "ip", "rps": 100_000, "burst": 1000},
        ],
        "max_body_mb": 64,
    }
    gateway.settings["services"][2]["frontend"] = {
        "auth": {"keys_file": str(file)},
        "limits": [{"per": "key", "rps": 1 / 60}],
    }
    engines = []
    try:
        await gateway.start()
        for service in ("bare", "guarded"):
            spec = EngineSpec(kind=EngineKind.SGLANG_HTTP, socket=gateway.socket("r1", service), model="tiny")
            engines.append(await start_engine(spec, Behaviour()))
            await gateway.until_states({"r1": "serving"}, service=service)
        yield gateway
    finally:
        for engine in engines:
            await engine.stop(grace_s=0)
        await gateway.close()


async def _times(connection: Connection) -> list[float]:
    times = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        answer = await connection.ask("GET", _PATH)
        times.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")
    return times


async def _compare(gateway: Gateway, key: str, rounds: int) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Times at the bare and the guarded address, by round, and the CPU that the latter took more, in us a request."""
    pid = await processes.only_worker(gateway)
    sides: tuple[list[list[float]], list[list[float]]] = ([], [])
    cpu: list[float] = []
    async with (
        Connection("127.0.0.1", gateway.ports["bare"]) as bare,
        Connection("127.0.0.1", gateway.ports["guarded"], key=key) as guarded,
    ):
        for number in range(rounds):
            used = [0.0, 0.0]
            for side in (0, 1) if number % 2 else (1, 0):
                before = processes.cpu_us(pid)
                sides[side].append(await _times((bare, guarded)[side]))
                used[side] = processes.cpu_us(pid) - before
            cpu.append((used[1] - used[0]) / _REQUESTS)
    return sides[0], sides[1], cpu


async def _revoked_s(gateway: Gateway, file: Path, name: str, editor: Executor) -> float:
    key = add_key(file, name)
    async with Connection("127.0.0.1", gateway.ports["limited"], key=key) as connection:
        async with asyncio.timeout(10):
            while (await connection.ask("GET", _PATH)).status != 429:
                await asyncio.sleep(_BETWEEN_S)
            await asyncio.sleep(_SETTLE_S)  # The daemon has taken the new key in, and is done with it.
            began = time.perf_counter()
            revoking = asyncio.get_running_loop().run_in_executor(editor, revoke_key, file, name)
            while (await connection.ask("GET", _PATH)).status != 401:
                await asyncio.sleep(_BETWEEN_S)
        took = time.perf_counter() - began
        await revoking
        return took


async def run(scale: Scale) -> list[Row]:
    """40 rounds of 200 requests for each side; 30 revocations. 8 and 8 with `--quick`."""
    with scratch_directory() as directory:
        file = directory / "guarded.keys"
        _fill(file, _KEYS)
        key = add_key(file, "alice")
        async with _two_services(file) as gateway:
            floors, guarded, cpu = await _compare(gateway, key, scale.pick(40, 8))
            with ProcessPoolExecutor(1, get_context("spawn")) as editor:
                names = [f"gone{number}" for number in range(scale.pick(30, 8) + 1)]
                # The first one starts the editor's process.
                revoked = [await _revoked_s(gateway, file, name, editor) for name in names][1:]
            _fill(file, 0)
            alone = add_key(file, "alice")
            async with Connection("127.0.0.1", gateway.ports["guarded"], key=alone) as connection, asyncio.timeout(10):
                while (await connection.ask("GET", _PATH)).status != 200:
                    pass
            _, _, cpu_of_one = await _compare(gateway, alone, scale.pick(20, 4))
        handshakes = await _handshakes(directory, scale.pick(300, 100))
        logs = await _logs(scale.pick(200, 40))
    return [
        *(_added(floors, guarded, percent, bar) for percent, bar in ((50, _ADDED_P50_S), (99, _ADDED_P99_S))),
        _cpu_row(cpu, cpu_of_one),
        _revoked_row(revoked),
        *logs,
        _handshake_row(handshakes),
    ]


def _added(floors: list[list[float]], guarded: list[list[float]], percent: int, bar: float) -> Row:
    before = [percentile(times, percent) for times in floors]
    after = [percentile(times, percent) for times in guarded]
    added = median([ours - floor for ours, floor in zip(after, before, strict=True)])
    numbers = {"floor_ms": rounded_ms(before), "ours_ms": rounded_ms(after), "added_us": round(added * 1e6, 1)}
    return Row(NAME, f"added latency p{percent}", f"< {bar * 1e6:.0f} us", _ms(median(before)), _ms(median(after)),
               f"+{added * 1e6:.0f} us", added < bar, numbers)  # fmt: skip


def _cpu_row(many: list[float], one: list[float]) -> Row:
    numbers = {"us_with_10000_keys": [round(it, 2) for it in many], "us_with_1_key": [round(it, 2) for it in one]}
    return Row(NAME, f"added CPU of nginx, {_KEYS:,} keys (floor: 1 key)", f"< {_ADDED_CPU_US:.0f} us",
               f"{median(one):.1f} us", f"{median(many):.1f} us", f"{median(many) - median(one):+.1f} us",
               median(many) < _ADDED_CPU_US, numbers)  # fmt: skip


def _revoked_row(times: list[float]) -> Row:
    worst = max(times)
    return Row(NAME, f"revoked key refused, {_KEYS:,} keys", f"all < {in_ms(_REVOKED_S)}", "-",
               f"p50 {in_ms(median(times))}", f"worst {in_ms(worst)}", worst < _REVOKED_S,
               {"ms": rounded_ms(times)})  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


# -- the access log


async def _logs(rounds: int) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in _LOGS}
    cpu: dict[str, list[float]] = {name: [] for name in _LOGS}
    gateway = Gateway(services=tuple(_LOGS), base=BASE, log={"format": "json", "level": "info"})
    first = gateway.ports["all"]
    gateway.settings["router_ports"] = f"{first + 10}-{first + 21}"
    gateway.settings["bridges"]["ports"] = f"{first + 22}-{first + 59}"
    for service in gateway.settings["services"]:
        service |= {"router": {"type": "none"}, "frontend": {"access_log": _LOGS[service["name"]]}}
    engines = []
    try:
        await gateway.start()
        for name in _LOGS:
            spec = EngineSpec(kind=EngineKind.SGLANG_HTTP, socket=gateway.socket("r1", name), model="tiny")
            engines.append(await start_engine(spec, Behaviour()))
            await gateway.until_states({"r1": "serving"}, service=name)
        pid, names = await processes.only_worker(gateway), list(_LOGS)
        connections = {name: Connection("127.0.0.1", gateway.ports[name]) for name in names}
        for number in range(rounds):
            for name in names[number % 3 :] + names[: number % 3]:
                took, before = [], processes.cpu_us(pid)
                for _ in range(_CHATS):
                    began = time.perf_counter()
                    answer = await connections[name].ask("POST", _CHAT_PATH, _CHAT)
                    took.append(time.perf_counter() - began)
                    if answer.status != 200:
                        raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")
                cpu[name].append((processes.cpu_us(pid) - before) / _CHATS)
                times[name].append(median(took))
        for connection in connections.values():
            connection.close()
    finally:
        for engine in engines:
            await engine.stop(grace_s=0)
        await gateway.close()
    return [row for name in ("all", "errors") for row in _log_rows(name, times, cpu)]


def _log_rows(name: str, times: dict[str, list[float]], cpu: dict[str, list[float]]) -> list[Row]:
    before, after = min(times["bare"]), min(times[name])
    later, more = after - before, min(cpu[name]) - min(cpu["bare"])
    numbers = {side: {"p50_ms": rounded_ms(times[side]), "cpu_us": [round(it, 2) for it in cpu[side]]}
               for side in ("bare", name)}  # fmt: skip
    return [
        Row(NAME, f"access log ({name}): added latency p50", f"< {_LOG_P50_S * 1e6:.0f} us",
            _ms(before), _ms(after), f"{later * 1e6:+.1f} us", later < _LOG_P50_S, numbers),
        Row(NAME, f"access log ({name}): added CPU of nginx", f"< {_LOG_CPU_US:.0f} us",
            f"{min(cpu['bare']):.1f} us", f"{min(cpu[name]):.1f} us", f"{more:+.1f} us", more < _LOG_CPU_US,
            numbers),
    ]  # fmt: skip


# -- handshakes


async def _handshakes(directory: Path, count: int) -> dict[str, list[float]]:
    """us of CPU for each handshake, in five rounds, of a certificate read once and of one opened anew."""
    pem = certificate(directory, "localhost")
    both = directory / "both.pem"
    both.write_bytes(pem.read_bytes() + pem.with_suffix(".key").read_bytes())
    both.chmod(0o600)
    static, dynamic = (free_ports(1) for _ in range(2))
    tls = render("tls.conf", {"id": "x", "resumes": True}).splitlines()
    lines = " ".join(line for line in tls if "certificate" not in line and "session_cache" not in line)
    temp = " ".join(
        f"{it}_temp_path {directory}/t_{it};" for it in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "tls.conf"
    config.write_text(f"""
daemon off; worker_processes 1; pid {directory}/tls.pid; error_log {directory}/tls.log;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 256; }}
http {{
    access_log off; {temp} ssl_session_cache off;
    map $server_port $pem {{ default {both}; }}
    server {{ listen 127.0.0.1:{static} ssl; ssl_certificate {both}; ssl_certificate_key {both}; {lines} }}
    server {{ listen 127.0.0.1:{dynamic} ssl; ssl_certificate $pem; ssl_certificate_key $pem; {lines} }}
}}
""")
    program = await find_nginx("nginx")
    process = await processes.start([program.path, "-p", str(directory), "-c", str(config)], directory / "tls.out")
    context = ssl._create_unverified_context()
    found: dict[str, list[float]] = {"static": [], "dynamic": []}
    try:
        await _until_open(static)
        (pid,) = processes.children(process.pid)
        for _ in range(5):
            for name, port in (("static", static), ("dynamic", dynamic)):
                before = processes.cpu_us(pid)
                for _ in range(count):
                    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                    writer.transport.abort()
                found[name].append((processes.cpu_us(pid) - before) / count)
    finally:
        await processes.end(process)
    return found


async def _until_open(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


def _handshake_row(found: dict[str, list[float]]) -> Row:
    floor, ours = median(found["static"]), median(found["dynamic"])
    numbers: dict[str, Any] = {f"{name}_us": [round(it) for it in values] for name, values in found.items()}
    return Row(NAME, "CPU of a TLS handshake (floor: static certificate)", "< 2 ms", f"{floor:.0f} us",
               f"{ours:.0f} us", f"+{ours - floor:.0f} us", ours < 2000, numbers)  # fmt: skip
