"""A daemon that has no file descriptor left: its own trouble, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import ExitStack

from gateway_sidecar.supervision.process import start_ticks
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import service_of, states_of


async def test_daemon_without_descriptors_keeps_every_worker(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """What it cannot ask proves nothing; requests and streams go on; what came meanwhile serves afterwards."""
    gateway = make_gateway(rescan_interval_s=0.2)
    gateway.settings["services"][0]["health"] = {"interval_s": 0.5, "timeout_s": 10, "failures": 2}
    await gateway.start()
    assert gateway.process is not None
    pid = gateway.process.pid
    wanted = dict.fromkeys(("r1", "r2"), "serving")
    for name in wanted:
        await engine(gateway.socket(name), token_interval_s=0.05)
    before = service_of(await gateway.until_states(wanted))
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 100, started))
    await started.wait()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), limits[1]))
    with ExitStack() as holding:
        # Gaps between its descriptors are used up by connections that nobody needs.
        for _ in range(10):
            idle = holding.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(gateway.directory / "run" / "admin.sock"))
        await gateway.until_logged("source.blind")
        await engine(gateway.socket("late"))
        assert (await stream).split()[-1] == "99"
        assert await ask(gateway, "tiny", stream=False)
        assert start_ticks(pid) is not None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    after = service_of(await gateway.until_states({**wanted, "late": "serving"}))
    assert after["router"]["pid"] == before["router"]["pid"]
    ids = {row["id"]: row["worker_id"] for row in after["replicas"]}
    assert {row["id"]: row["worker_id"] for row in before["replicas"]}.items() <= ids.items()
    assert states_of(await gateway.until(lambda s: s["problems"] == [])).keys() == {*wanted, "late"}
    for unjust in ("replica.ejected", "loop.failed"):
        assert gateway.events(unjust) == []
