"""Figures: the router is killed (SIGKILL) 20 times under steady load, nothing of it streamed.

Eight replicas, half HTTP and half gRPC. A kill follows when every worker is ready again and 100 more requests were
answered. A request fails if it is not answered 200, whole and with its last token.

in flight       Without `hold.retry_in_flight`: requests that were sent before the killed process was gone and had not
                been answered when it was killed. They may fail, with 502 and `Retry-After`. No other may.
default         With it not even those fail.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from bench.engines import EngineHost
from bench.fatal import Kill, kill, unexcused
from bench.fleet import start_fleet
from bench.gateway import running_gateway
from bench.load import Load, Shape
from bench.place import scratch_directory
from bench.report import Row, Scale
from tests.system.gateway import service_of, states_of

NAME = "router-kills-under-load"
_REPLICAS = 8
_CLIENTS = 12
_BETWEEN = 100
_WHOLE = (Shape("whole", tokens=8, stream=False, weight=1),)


async def run(scale: Scale) -> list[Row]:
    """20 kills in each case; 4 with `--quick`."""
    kills = scale.pick(20, 4)
    return [await _measured(kills, retry=False), await _measured(kills, retry=True)]


async def _measured(count: int, *, retry: bool) -> Row:
    kills: list[Kill] = []
    with scratch_directory() as directory:
        async with (
            EngineHost(directory / "engines.log") as engines,
            running_gateway(hold={"retry_in_flight": retry}) as ours,
        ):
            wanted = dict.fromkeys(await start_fleet(engines, ours, _REPLICAS, token_interval_s=0.005), "serving")
            async with Load("127.0.0.1", ours.gateway.ports["chat"], clients=_CLIENTS, shapes=_WHOLE) as load:
                for _ in range(count):
                    await load.until(load.requests + _BETWEEN, within_s=60)
                    pid = await ours.router_pid()
                    assert pid is not None
                    kills.append(await kill(pid))
                    async with asyncio.timeout(60):
                        while True:
                            status = await ours.gateway.status()
                            if (
                                service_of(status)["router"]["pid"] not in (None, pid)
                                and status["ready"]
                                and states_of(status) == wanted
                            ):
                                break
                            await asyncio.sleep(0.03)
                await load.until(load.requests + _BETWEEN, within_s=60)
            troubles = ours.troubles()
    others = unexcused(load.failures, kills)
    in_flight = len(load.failures) - len(others)
    bad = load.failures if retry else others
    return Row(
        NAME,
        f"{count} kills, {'default' if retry else 'retry_in_flight: false'}",
        "0 failed" if retry else "0 failed but those in flight",
        "-",
        f"{len(load.failures)} of {load.requests}"
        if retry
        else f"{len(others)} of {load.requests}, {in_flight} in flight",
        f"{len(bad)} failed",
        not bad,
        {
            "kills": count,
            "requests": load.requests,
            "failed_in_flight": in_flight,
            "failed_otherwise": len(others),
            "kills_at": [asdict(each) for each in kills] if bad else [],
            "failures": [asdict(failure) for failure in bad[:50]],
            "daemon_said": troubles if bad else [],
        },
    )
