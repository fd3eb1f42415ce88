"""The wall clock jumps, for the daemon, its nginx and its router alike (libfaketime), and nothing comes of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import replica_of, service_of
from tests.system.test_replacement import Load

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: package libfaketime)")


def by_the_clock_in(file: Path) -> dict[str, str]:
    """The environment of a process whose wall clock a file sets: `+0` is the right time, `+3600` an hour ahead."""
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def told_at(line: str) -> float:
    """When an event was logged, by the daemon's own wall clock; seconds."""
    stamp = json.loads(line)["timestamp"]
    return time.mktime(time.strptime(stamp.partition(".")[0], "%Y-%m-%dT%H:%M:%S"))


async def test_clock_that_jumps_changes_nothing(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Hours ahead, days back: no worker leaves, no router is restarted, a drain and a restart take what they take."""
    gateway = make_gateway(rescan_interval_s=0.5)
    gateway.settings["services"][0]["health"] = {"interval_s": 1, "timeout_s": 20, "failures": 3}
    clock = gateway.directory / "clock"
    clock.write_text("+0")
    await gateway.start(env=by_the_clock_in(clock))
    names = ["r1", "r2", "r3"]
    for name in names:
        await engine(gateway.socket(name), token_interval_s=0.05)
    wanted = dict.fromkeys(names, "serving")
    before = await gateway.until_states(wanted)
    load, started = Load(gateway, clients=4), asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 160, started))
    await started.wait()
    for offset in ("+6h", "-3d", "+400d", "+0"):
        clock.write_text(offset)
        await load.answered(10)
        await asyncio.sleep(1.5)  # A round of health questions and three rescans in the new time.
        status = await gateway.until_states(wanted)
        assert service_of(status)["router"]["pid"] == service_of(before)["router"]["pid"]
        assert [replica_of(status, n)["worker_id"] for n in names] == [
            replica_of(before, n)["worker_id"] for n in names
        ]
    assert (await load.stop()).keys() == {"200"}
    assert (await stream).split()[-1] == "159"
    for quiet in ("replica.unreachable", "replica.ejected", "router.exited", "daemon.wedged", "loop.failed"):
        assert gateway.events(quiet) == []
    clock.write_text("-30d")
    began = time.monotonic()
    assert (await gateway.cli("drain", "chat", "r3"))[0] == 0
    assert time.monotonic() - began < 100
    os.kill(service_of(before)["router"]["pid"], signal.SIGKILL)
    await gateway.until(lambda s: service_of(s)["router"]["restarts"] == 1 and bool(s["ready"]))
    assert await stream_chat(gateway, 3)
    times = [told_at(line) for line in gateway.log().splitlines() if line.startswith("{")]
    assert max(times) - min(times) > 25 * 86400, "the clock did not jump: nothing was tried"
