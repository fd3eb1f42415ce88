"""Figure: what counting costs, whether it is right, and what 10,000 keys take.

added        A service that counts, and asks, beside one that does not, and nothing else. One chat of 2 KB at a time
             over one kept connection to each address, the two in turns, whole answers and streams of 20 tokens. Both
             are without a router, since that takes most of the time. Per round the median of 50 chats and the CPU of
             nginx's worker; each side's figure is that of its quietest round, since other work only adds.
tokens       10,000 chats, 50 at a time: whole, streamed with and without being asked for their usage, and streams that
             their clients leave. Floor: the tokens that the engine itself counts for what it completed.
keys         One chat by each of 10,000 keys. Memory of the daemon and of nginx's worker before and after, and how long
             the command `usage` takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import processes
from bench.place import BASE, scratch_directory
from bench.report import Row, Scale, median, rounded_ms
from bench.wire import Connection
from examples.simulated import Behaviour, EngineKind, EngineSpec, SimulatedEngine, start_engine
from tests.system.gateway import Gateway

NAME = "usage"
_P50_S, _CPU_US = 0.000015, 5.0
_CHATS, _PATH = 50, "/v1/chat/completions"
_WORDS = "hello world " * 170
_WHOLE: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": _WORDS}], "max_tokens": 4}
_STREAM = {**_WHOLE, "stream": True, "max_tokens": 20}
_AT_ONCE = 50
_COUNTED_S = 120
_LEAVES_EACH = 20


@asynccontextmanager
async def _gateway(frontends: dict[str, dict[str, Any]]) -> AsyncIterator[tuple[Gateway, dict[str, SimulatedEngine]]]:
    gateway = Gateway(services=tuple(frontends), base=BASE, log={"format": "json", "level": "info"})
    engines: dict[str, SimulatedEngine] = {}
    for service in gateway.settings["services"]:
        service |= {"router": {"type": "none"}, "frontend": frontends[service["name"]]}
    try:
        await gateway.start()
        for name in frontends:
            spec = EngineSpec(kind=EngineKind.VLLM_HTTP, socket=gateway.socket("r1", name), model="tiny")
            engines[name] = await start_engine(spec, Behaviour())
            await gateway.until_states({"r1": "serving"}, service=name, within_s=60)
        yield gateway, engines
    finally:
        for engine in engines.values():
            await engine.stop(grace_s=0)
        await gateway.close()


async def run(scale: Scale) -> list[Row]:
    """200 rounds of 50 chats for each side; 10,000 chats; 10,000 keys. With `--quick` 40, 1,000 and 1,000."""
    added = [
        row
        for case, body in (("whole answers", _WHOLE), ("streams of 20 tokens", _STREAM))
        for row in await _added(case, body, scale.pick(200, 40))
    ]
    tokens = await _tokens(scale.pick(10_000, 1_000))
    return [*added, tokens, *await _keys(scale.pick(10_000, 1_000))]


async def _added(case: str, body: dict[str, Any], rounds: int) -> list[Row]:
    times: dict[str, list[float]] = {"bare": [], "counts": []}
    cpu: dict[str, list[float]] = {"bare": [], "counts": []}
    async with _gateway({"bare": {}, "counts": {"usage": {}}}) as (gateway, _):
        pid = await processes.only_worker(gateway)
        connections = {name: Connection("127.0.0.1", gateway.ports[name]) for name in times}
        for number in range(rounds):
            for name in sorted(times, reverse=bool(number % 2)):
                took, before = [], processes.cpu_us(pid)
                for _ in range(_CHATS):
                    began = time.perf_counter()
                    answer = await connections[name].ask("POST", _PATH, body)
                    took.append(time.perf_counter() - began)
                    if answer.status != 200:
                        raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")
                cpu[name].append((processes.cpu_us(pid) - before) / _CHATS)
                times[name].append(median(took))
        for connection in connections.values():
            connection.close()
    before, after = min(times["bare"]), min(times["counts"])
    later, more = after - before, min(cpu["counts"]) - min(cpu["bare"])
    numbers = {it: {"p50_ms": rounded_ms(times[it]), "cpu_us": [round(us, 2) for us in cpu[it]]} for it in times}
    is_bar = body is _WHOLE
    return [
        Row(NAME, f"{case}: added latency p50", f"< {_P50_S * 1e6:.0f} us" if is_bar else "-",
            f"{before * 1000:.3f} ms", f"{after * 1000:.3f} ms", f"{later * 1e6:+.1f} us",
            later < _P50_S if is_bar else None, numbers),
        Row(NAME, f"{case}: added CPU of nginx", f"< {_CPU_US:.0f} us" if is_bar else "-", f"{min(cpu['bare']):.1f} us",
            f"{min(cpu['counts']):.1f} us", f"{more:+.1f} us", more < _CPU_US if is_bar else None, numbers),
    ]  # fmt: skip


async def _usage(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """The rows, once so many requests are counted."""
    async with asyncio.timeout(_COUNTED_S):
        while True:
            async with gateway.session.get("http://daemon/v1/usage") as answer:
                rows: list[dict[str, Any]] = (await answer.json())["rows"]
            if sum(row["requests"] for row in rows) >= count:
                return rows
            await asyncio.sleep(0.1)


# -- are they right


async def _tokens(count: int) -> Row:
    body = {**_WHOLE, "messages": [{"role": "user", "content": "a few words"}], "max_tokens": 8}
    asks = {"stream": True, "stream_options": {"include_usage": True}}
    kinds: list[dict[str, Any]] = [body, {**body, "stream": True}, {**body, **asks}, {**body, "max_tokens": 3}]
    async with _gateway({"counts": {"usage": {}}}) as (gateway, engines):
        numbers = iter(range(count))

        async def client() -> None:
            async with Connection("127.0.0.1", gateway.ports["counts"]) as connection:
                for number in numbers:
                    if number % _LEAVES_EACH == 0:
                        await _leave(gateway.ports["counts"], {**body, "stream": True, "max_tokens": 100_000})
                    elif (await connection.ask("POST", _PATH, kinds[number % len(kinds)])).status != 200:
                        raise RuntimeError("a chat was not answered")

        await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
        left = -(-count // _LEAVES_EACH)
        ledger = engines["counts"].ledger
        await engines["counts"].until(lambda seen: seen.aborted == left, within_s=_COUNTED_S)
        rows = await _usage(gateway, count)
    ours = {
        name: sum(row[name] for row in rows) for name in ("tokens_in", "tokens_out", "aborted", "unknown", "streams")
    }
    theirs = {"tokens_in": ledger.tokens_in, "tokens_out": ledger.tokens_out, "aborted": left, "unknown": left}
    differ = {name: (ours[name], theirs[name]) for name in theirs if ours[name] != theirs[name]}
    shown = "{tokens_in:,} in, {tokens_out:,} out, {aborted} cut"
    return Row(NAME, f"tokens of {count:,} chats, {left} left by clients (floor: the engine)", "equal",
               shown.format(**theirs), shown.format(**ours), str(differ or "equal"), not differ, {**ours})  # fmt: skip


async def _leave(port: int, body: dict[str, Any]) -> None:
    """Goes in mid-stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(Connection("127.0.0.1", port)._request("POST", _PATH, body))
    await reader.readuntil(b"data: ")
    writer.transport.abort()


# -- many keys


def _key(number: int) -> str:
    return f"key-of-nobody-{number:08}"


def _keys_file(file: Path, count: int) -> None:
    hashes = (f"user{number}:{hashlib.sha256(_key(number).encode()).hexdigest()}\n" for number in range(count))
    file.write_text("# keys\n" + "".join(hashes))
    file.chmod(0o600)


def _rss_mb(pid: int) -> float:
    (kib,) = (
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(kib) / 1024


async def _keys(count: int) -> list[Row]:
    with scratch_directory() as directory:
        _keys_file(directory / "keys", count)
        frontend = {"usage": {}, "auth": {"keys_file": str(directory / "keys")}}
        async with _gateway({"counts": frontend}) as (gateway, _):
            assert gateway.process is not None
            port, pids = gateway.ports["counts"], (gateway.process.pid, await processes.only_worker(gateway))
            await _until_known(port, count)
            await _ask_all(port, range(_AT_ONCE * 4))  # What all requests take is there.
            before = [_rss_mb(pid) for pid in pids]
            await _ask_all(port, range(count))
            rows = await _usage(gateway, count + _AT_ONCE * 4)
            after = [_rss_mb(pid) for pid in pids]
            if len({row["key"] for row in rows}) != count:
                raise RuntimeError(f"{len(rows)} rows for {count} keys")
            took: list[float] = []
            for _ in range(5):
                began = time.perf_counter()
                code, out, error = await gateway.cli("usage", "--csv")
                took.append(time.perf_counter() - began)
                if code != 0 or len(out.splitlines()) != count + 1:
                    raise RuntimeError(f"usage: {code}: {error}")
            disk = sum(file.stat().st_size for file in (gateway.directory / "state").glob("usage.db*"))
    return [
        *map(_memory_row, ("daemon", "nginx's worker"), itertools.repeat(count), before, after),
        Row(NAME, f"the command `usage`, {count:,} keys", "-", "-", f"p50 {median(took):.2f} s",
            f"worst {max(took):.2f} s", None, {"s": [round(it, 3) for it in took], "disk_mb": round(disk / 1e6, 2)}),
    ]  # fmt: skip


def _memory_row(name: str, count: int, before: float, after: float) -> Row:
    case = f"memory of the {name}, {count:,} keys used (floor: before)"
    return Row(NAME, case, "-", f"{before:.1f} MB", f"{after:.1f} MB", f"{after - before:+.1f} MB", None)


async def _until_known(port: int, count: int) -> None:
    """The daemon has put the last key in place."""
    async with Connection("127.0.0.1", port, key=_key(count - 1)) as connection, asyncio.timeout(_COUNTED_S):
        while (await connection.ask("GET", "/v1/models")).status != 200:
            await asyncio.sleep(0.05)


async def _ask_all(port: int, numbers: Sequence[int]) -> None:
    async def client(some: Iterator[int]) -> None:
        for number in some:
            async with Connection("127.0.0.1", port, key=_key(number)) as connection:
                answer = await connection.ask("POST", _PATH, {**_WHOLE, "messages": []})
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {answer.body!r:.200}")

    await asyncio.gather(*(client(itertools.islice(numbers, start, None, _AT_ONCE)) for start in range(_AT_ONCE)))
