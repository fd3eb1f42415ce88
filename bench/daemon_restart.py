"""Figures: the daemon is killed (SIGKILL) and started again, 50 times, under steady load, streamed and not.

Eight replicas, half HTTP and half gRPC. A kill follows half a second after the daemon said that it was ready. Clients
ask the service address without a pause; four more read streams of several seconds, which begin before one kill and end
after another. A request fails if it is not answered 200, whole and with its last token.

again   From the launch of the new daemon to its first answer to `status` (a Python start of its own included), and to
        `ready`.
asked   Questions to the engines what they are: what only an identification asks (`/server_info`, `/v1/models`,
        `GetServerInfo`, `GetModelInfo`), counted by the engines before the first kill and after the last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict

import aiohttp

from bench.engines import EngineHost
from bench.fleet import start_fleet
from bench.gateway import Ours, running_gateway
from bench.load import Load, Shape
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median, percentile, rounded_ms

NAME = "daemon-restart"
_REPLICAS = 8
_CLIENTS = 12
_STREAMS = 4
_REST_S = 0.5
_ACROSS = Shape("stream across restarts", tokens=300, stream=True, weight=1)  # 6 s and more
_IDENTIFIES = ("/server_info", "/get_server_info", "/get_model_info", "/v1/models", "GetServerInfo", "GetModelInfo")


async def _asked(engines: EngineHost) -> int:
    """How often the engines were asked what they are."""
    return sum(
        count
        for seen in (await engines.counts()).values()
        for call, count in seen["calls"].items()
        if call.rpartition("/")[2] in _IDENTIFIES or call in _IDENTIFIES
    )


async def _restart(ours: Ours) -> tuple[float, float]:
    """Killed and started again: seconds until `status` is answered, and until it says ready."""
    await ours.gateway.kill()
    began = time.monotonic()
    await ours.gateway.start(ready=False)
    answered_at = None
    async with asyncio.timeout(30):
        while True:
            with suppress(aiohttp.ClientError, OSError):
                status = await ours.gateway.status()
                answered_at = answered_at or time.monotonic()
                if status["ready"]:
                    return answered_at - began, time.monotonic() - began
            await asyncio.sleep(0.01)


def _spanning(streams: Iterable[tuple[float, float]], kills: list[float]) -> list[int]:
    """How many kills each long stream lived through."""
    return [sum(began < at < ended for at in kills) for began, ended in streams]


async def run(scale: Scale) -> list[Row]:
    """50 restarts; 5 with `--quick`."""
    restarts = scale.pick(50, 5)
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            names = await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.02)
            await asyncio.sleep(_REST_S)  # What the first daemon learnt is written down by then.
            before = await ours.gateway.status()
            asked = await _asked(engines)
            kills: list[float] = []
            answers, readies = [], []
            address = "127.0.0.1", ours.gateway.ports["chat"]
            async with (
                Load(*address, clients=_CLIENTS) as load,
                Load(*address, clients=_STREAMS, shapes=(_ACROSS,)) as streams,
            ):
                for _ in range(restarts):
                    await asyncio.sleep(_REST_S)
                    kills.append(time.monotonic())
                    answered_s, ready_s = await _restart(ours)
                    answers.append(answered_s)
                    readies.append(ready_s)
            await ours.until_serving(*names)
            after = await ours.gateway.status()
            asked = await _asked(engines) - asked
            troubles = ours.troubles()
    same = _stable(before) == _stable(after)
    spans = _spanning([*load.long_ones, *streams.long_ones], kills)
    failures = [*load.failures, *streams.failures]
    requests = load.requests + streams.requests
    across = [count for count in spans if count]
    failed = [failure for failure in failures if "stream" not in failure.shape]
    broken = [failure for failure in failures if "stream" in failure.shape]
    numbers: dict[str, object] = {
        "restarts": restarts,
        "requests": requests,
        "answered": dict(load.answered + streams.answered),
        "failures": [asdict(failure) for failure in failures[:50]],
        "daemon_said": troubles if failures or not same else [],
    }
    return [
        Row(NAME, f"{restarts} kills: failed requests", "0 failed", "-", f"{len(failed)} of {requests}",
            f"{len(failed)} failed", not failed, numbers),
        Row(NAME, "broken streams", "0 broken", "-",
            f"{len(broken)} broken; {len(across)} ran across kills, up to {max(spans, default=0)} each",
            f"{len(broken)} broken", not broken and bool(across), {"streams_across_kills": len(across)}),
        Row(NAME, "engines asked again what they are", "0", "-", str(asked),
            "same nginx, router, ports, worker ids" if same else "something else runs", asked == 0 and same,
            {"asked": asked, "same": same}),
        Row(NAME, "answers `status` again; ready", "-", "-",
            f"p50 {in_ms(median(answers))}, p99 {in_ms(percentile(answers, 99))}; ready {in_ms(median(readies))}",
            "no bar", True, {"status_ms": rounded_ms(answers), "ready_ms": rounded_ms(readies)}),
    ]  # fmt: skip


def _stable(status: dict[str, object]) -> object:
    """What a restart of the daemon must not change."""
    assert isinstance(status["services"], list)
    assert isinstance(status["nginx"], dict)
    (service,) = status["services"]
    replicas = [(row["id"], row["bridge"], row["worker_id"]) for row in service["replicas"]]
    return status["nginx"]["pid"], service["router"]["pid"], replicas
