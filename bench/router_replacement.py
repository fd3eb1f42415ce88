"""Figures: the router is replaced (`router restart`) again and again under steady load, streamed and not.

Eight replicas, half HTTP and half gRPC. A replacement begins when the last one was answered and 100 more requests have
ended; streams of several seconds run across. A request fails if it is not answered 200, whole and with its last token.
nginx must not have been reloaded, since that would cost clients their kept connections.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import aiohttp

from bench.engines import EngineHost
from bench.fleet import start_fleet
from bench.gateway import Ours, running_gateway
from bench.load import SHAPES, Load, Shape
from bench.place import scratch_directory
from bench.report import Row, Scale, in_ms, median, rounded_ms

NAME = "router-replacement"
_REPLICAS = 8
_CLIENTS = 12
_BETWEEN = 100
_ACROSS = Shape("stream across replacements", tokens=150, stream=True, weight=10)  # 3 s and more


async def _replace(ours: Ours) -> float:
    """Seconds until `router restart` is answered; it waits for the last old router's end. Raises RuntimeError."""
    url = "http://daemon/v1/services/chat/router/restart"
    async with ours.gateway.session.post(url, timeout=aiohttp.ClientTimeout(total=60)) as response:
        if response.status != 200:
            raise RuntimeError(f"router restart: {response.status} {await response.text()}")
        return float((await response.json())["took_s"])


async def run(scale: Scale) -> list[Row]:
    """12 replacements; 3 with `--quick`."""
    count = scale.pick(12, 3)
    took, moments = [], []
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.02)
            async with Load(
                "127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS, shapes=(*SHAPES, _ACROSS)
            ) as load:
                for _ in range(count):
                    await load.until(load.requests + _BETWEEN, within_s=60)
                    took.append(await _replace(ours))
                    moments.append(time.monotonic())
                await load.until(load.requests + _BETWEEN, within_s=60)
            reloads = await ours.reloads()
            troubles = ours.troubles()
    across = [1 for began, ended in load.long_ones if any(began < at < ended for at in moments)]
    broken = sum("stream" in failure.shape for failure in load.failures)
    failed = len(load.failures) - broken
    return [
        Row(
            NAME,
            f"{count} replacements",
            "0 failed, 0 broken",
            "-",
            f"{failed} failed, {broken} broken of {load.requests}; {len(across)} streams ran across",
            f"{reloads} reloads",
            not load.failures and reloads == 0 and bool(across),
            {
                "requests": load.requests,
                "answered": dict(load.answered),
                "failures": [asdict(failure) for failure in load.failures[:50]],
                "took_ms": rounded_ms(took),
                "daemon_said": troubles if load.failures else [],
            },
        ),
        Row(NAME, "the command's time", "-", "-", f"p50 {in_ms(median(took))}", "no bar", True, {}),
    ]
