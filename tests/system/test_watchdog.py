"""A daemon that is stuck is noticed by its supervisor, is started again, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import aiohttp
import pytest

from examples.simulated import EngineKind
from gateway_sidecar.frontend.edit_keys import add_key, revoke_key
from tests.stopping import stop
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of, states_of
from tests.system.supervisor import Supervisor
from tests.system.test_replacement import Load

WATCHDOG_S = 5.0
"""The daemon pings once a second (`control/process/watchdog.py`): a busy machine may hold it up for some."""
_LOOPS_S = 13
"""Longer than a loop may be stuck."""


def supervised(gateway: Gateway, wedge: str) -> Supervisor:
    gateway.configure()
    argv = [sys.executable, "-m", "tests.system.wedging", "run", "--config", str(gateway.config_path)]
    return Supervisor(argv, gateway.log_path, watchdog_s=WATCHDOG_S, env={"WEDGE": wedge})


def what_stays(status: Status, names: list[str]) -> list[object]:
    rows = [(name, replica_of(status, name)["bridge"], replica_of(status, name)["worker_id"]) for name in names]
    return [status["nginx"]["pid"], service_of(status)["router"]["pid"], rows]


@pytest.mark.parametrize("wedge", ["loop", "reconcile"])
async def test_wedged_daemon_is_started_again_and_nothing_is_lost(
    make_gateway: MakeGateway, engine: StartEngine, wedge: str
) -> None:
    """Its pings stop, whether all of it hangs or one loop of one service; meanwhile requests and streams go on."""
    gateway = make_gateway(rescan_interval_s=0.5)
    names = [f"r{i}" for i in range(4)]
    async with supervised(gateway, wedge) as supervisor:
        for i, name in enumerate(names):
            kind = EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP
            await engine(gateway.socket(name), kind, token_interval_s=0.05)
        wanted = dict.fromkeys(names, "serving")
        before = await gateway.until_states(wanted)
        await supervisor.until(lambda: len(supervisor.pings) > 3)
        load, started = Load(gateway, clients=4), asyncio.Event()
        stream = asyncio.create_task(stream_chat(gateway, 400, started))
        await started.wait()
        assert supervisor.process is not None
        os.kill(supervisor.process.pid, signal.SIGUSR1)
        # A single loop is given as long as a slow disk or a slow router may take before it counts as stuck.
        await supervisor.until(lambda: bool(supervisor.aborted_after_s))
        pinged_to = max(at for at in supervisor.pings if at < time.monotonic() - WATCHDOG_S)
        await supervisor.until(lambda: supervisor.starts == 2 and supervisor.ready.is_set())
        assert supervisor.exits == [-signal.SIGABRT]
        after = await gateway.until_states(wanted)
        assert what_stays(after, names) == what_stays(before, names)
        await load.answered(20)
        assert (await load.stop()).keys() == {"200"}
        assert (await stream).split()[-1] == "399"
        await supervisor.until(lambda: supervisor.pings[-1] > pinged_to + WATCHDOG_S)
        log = gateway.log()
    assert ("daemon.wedged" in log) == (wedge != "loop"), "a loop that hangs whole cannot say so itself"
    assert "Fatal Python error: Aborted" in log, "where it hung is in the log"
    assert supervisor.exits == [-signal.SIGABRT, 0]


async def test_a_look_that_hangs_is_its_sources_fault_alone(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It is called blind, and keeps what it had; who comes by another source serves; the daemon is not stuck."""
    gateway = make_gateway(rescan_interval_s=0.5)
    gateway.settings["services"][0]["replicas"]["inventory"] = str(gateway.directory / "inventory.yaml")
    (gateway.directory / "inventory.yaml").write_text("{}\n")
    elsewhere = gateway.directory / "e.sock"
    async with supervised(gateway, "look") as supervisor:
        await engine(gateway.socket("r1"))
        await engine(elsewhere)
        await gateway.until_states({"r1": "serving"})
        assert supervisor.process is not None
        os.kill(supervisor.process.pid, signal.SIGUSR1)
        await gateway.until_logged("source.blind")
        (gateway.directory / "inventory.yaml").write_text(f"r2: {{socket: {elsewhere}}}\n")
        await gateway.until_states({"r1": "serving", "r2": "serving"})
        blind_at = len(supervisor.pings)
        await supervisor.until(lambda: len(supervisor.pings) > blind_at + _LOOPS_S)
        assert [row["reason"] for row in gateway.events("source.blind")] == ["sockets: it does not answer"]
        assert gateway.events("daemon.wedged") == []
        assert supervisor.starts == 1
        assert await ask(gateway, "tiny", stream=False)


async def test_notes_that_hang_hold_up_their_replica_alone(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Others come, serve and go; the daemon is not stuck; what was told of the replica is used as soon as it can be."""
    gateway = make_gateway(rescan_interval_s=0.5)
    async with supervised(gateway, "notes") as supervisor:
        gateway.socket("hung").with_suffix(".yaml").write_text("priority: 7\n")
        await engine(gateway.socket("hung"))
        await supervisor.until(supervisor.ready.is_set)
        gone = await engine(gateway.socket("r1"))
        status = await gateway.until(lambda s: states_of(s).get("r1") == "serving" and "hung" in states_of(s))
        assert states_of(status)["hung"] != "serving"
        await gateway.until(lambda s: "does not answer" in (replica_of(s, "hung")["reason"] or ""))
        await gone.stop()
        await gateway.until(lambda s: "r1" not in states_of(s))
        await asyncio.sleep(_LOOPS_S)
        assert supervisor.starts == 1
        assert gateway.events("daemon.wedged") == []
        gateway.socket("hung").with_suffix(".well").touch()
        await gateway.until_states({"hung": "serving"})
        assert (await gateway.workers())[0]["priority"] == 7


async def test_a_key_file_that_hangs_holds_up_its_service_alone(make_gateway: MakeGateway) -> None:
    """The daemon starts, the other service's keys come and go, and `status` says whose disk it is."""
    gateway = make_gateway(services=("chat", "code"), rescan_interval_s=0.5)
    hung, good = gateway.directory / "hung.keys", gateway.directory / "good.keys"
    for number, file in enumerate((hung, good)):
        gateway.settings["services"][number]["frontend"] = {"auth": {"keys_file": str(file)}}
    of_hung, of_good = add_key(hung, "alice"), add_key(good, "alice")
    async with supervised(gateway, "keys") as supervisor, aiohttp.ClientSession() as session:

        async def until(service: str, key: str, wanted: int) -> None:
            async with asyncio.timeout(60):
                while True:
                    headers = {"Authorization": f"Bearer {key}"}
                    async with session.get(f"{gateway.url(service)}/health", headers=headers) as response:
                        if response.status == wanted:
                            return

        await supervisor.until(supervisor.ready.is_set)
        await until("code", of_good, 200)
        await until("code", add_key(good, "bob"), 200)
        revoke_key(good, "alice")
        await until("code", of_good, 401)
        await until("chat", of_hung, 401)
        await gateway.until(lambda s: any("hung.keys: not read within 2 s" in text for text in s["problems"]))
        hung.with_suffix(".well").touch()
        await until("chat", of_hung, 200)
        await gateway.until(lambda s: s["problems"] == [])


async def test_router_that_is_slow_to_answer_is_no_stuck_daemon(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A router may be given a minute for an answer: whoever waits for it that long is not wedged."""
    gateway = make_gateway(rescan_interval_s=0.5)
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 18}
    async with supervised(gateway, "none") as supervisor:
        await engine(gateway.socket("r1"))
        status = await gateway.until_states({"r1": "serving"})
        old = service_of(status)["router"]["pid"]
        stop(old)
        await gateway.until(
            lambda s: service_of(s)["router"]["pid"] not in (None, old) and states_of(s) == {"r1": "serving"},
            within_s=120,
        )
        assert gateway.events("daemon.wedged") == []
        assert supervisor.starts == 1


async def test_stopped_daemon_catches_up(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It says for how long it did nothing, blames no loop for that, and puts right what happened meanwhile."""
    gateway = make_gateway(rescan_interval_s=0.2)
    gateway.settings["services"][0]["router"] = {"api_timeout_s": 1}
    await gateway.start()
    assert gateway.process is not None
    leaving = [await engine(gateway.socket(name)) for name in ("r1", "r2")]
    await engine(gateway.socket("r3"))
    status = await gateway.until_states(dict.fromkeys(("r1", "r2", "r3"), "serving"))
    stop(gateway.process.pid)
    try:
        for one in leaving:
            await one.stop(unlink=True)
        await engine(gateway.socket("r4"))
        os.kill(service_of(status)["router"]["pid"], signal.SIGKILL)
        await asyncio.sleep(_LOOPS_S)
    finally:
        gateway.process.send_signal(signal.SIGCONT)
    await gateway.until_states({"r3": "serving", "r4": "serving"})
    assert await ask(gateway, "tiny", stream=False)
    # A busy machine may have held it up for a while besides.
    assert len([stalled for stalled in gateway.events("daemon.stalled") if stalled["for_s"] > 10]) == 1
    assert gateway.events("daemon.wedged") == []


async def test_healthy_daemon_is_never_aborted(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Pings come at half the watchdog's time or more often, under load and through a router's death."""
    gateway = make_gateway()
    async with supervised(gateway, "none") as supervisor:
        await engine(gateway.socket("r1"))
        status = await gateway.until_states({"r1": "serving"})
        os.kill(service_of(status)["router"]["pid"], signal.SIGKILL)
        await gateway.until(lambda s: service_of(s)["router"]["restarts"] == 1 and bool(s["ready"]))
        count = len(supervisor.pings)
        await supervisor.until(lambda: len(supervisor.pings) >= count + 6, within_s=4 * WATCHDOG_S)
        assert supervisor.starts == 1
        assert any("serving" in line for line in supervisor.statuses)
    assert supervisor.aborted_after_s == []
