"""run_dir is removed under a daemon that runs: everything in it is made again, and no stream notices."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress

import aiohttp

from tests.system.clients import ask, stream_chat
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of, states_of, take_away


def what_stays(status: Status) -> tuple[object, ...]:
    """What must be the same afterwards."""
    replica = replica_of(status, "r1")
    pids = status["nginx"]["pid"], service_of(status)["router"]["pid"]
    return *pids, status["nginx"]["reloads"], replica["bridge"], replica["worker_id"]


async def test_run_directory_removed_while_running(gateway: Gateway, engine: StartEngine) -> None:
    """Links, switch files, sockets, the lock and the record are back within seconds, and the next daemon adopts all."""
    await engine(gateway.socket("r1"), token_interval_s=0.05)
    await gateway.until_states({"r1": "serving"})
    assert (await gateway.cli("router", "restart", "chat"))[0] == 0
    before = await gateway.until(lambda s: replica_of(s, "r1")["worker_id"] is not None)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, 160, started))
    await started.wait()
    run_dir = gateway.directory / "run"
    take_away(run_dir)
    made_again = ("lock", "admin.sock", "hold.sock", "processes.json", "nginx/nginx.conf", "gates/chat.next")
    async with asyncio.timeout(60):
        while not all((run_dir / name).exists() for name in made_again) or not any((run_dir / "bridges").iterdir()):
            await asyncio.sleep(0.01)
    after = await gateway.until(lambda s: states_of(s) == {"r1": "serving"} and not s["problems"])
    assert what_stays(after) == what_stays(before)
    for _ in range(3):
        assert "r1" in await ask(gateway, "tiny", stream=False)
    code, _, err = await gateway.cli("run")
    assert code != 0
    assert "another gateway-sidecar" in err
    assert (await stream).split()[-1] == "159"
    assert {name for event in gateway.events("run_dir.repaired") for name in event["removed"]} == {
        "nginx's configuration", "chat: bridges", "chat: gate",
        "lock", "admin.sock", "hold.sock", "holder of hold.sock",
    }  # fmt: skip
    await gateway.kill()
    await gateway.start()
    assert what_stays(await gateway.until_states({"r1": "serving"}))[:2] == what_stays(before)[:2]


async def test_run_directory_that_cannot_be_made_again_is_told(gateway: Gateway, engine: StartEngine) -> None:
    """Once, in the log and in the metrics, since nobody can ask for the status; repaired as soon as possible."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    run_dir = gateway.directory / "run"
    while run_dir.is_dir():  # The daemon may make it again at any moment.
        with suppress(OSError):
            shutil.rmtree(run_dir)
            run_dir.write_text("in the way")
    async with asyncio.timeout(60):
        while not gateway.events("run_dir.not_repaired") or not await record_is_down(gateway):
            await asyncio.sleep(0.05)
    run_dir.unlink()
    await gateway.until(lambda s: not s["problems"] and states_of(s) == {"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert len(gateway.events("run_dir.not_repaired")) == 1


async def record_is_down(gateway: Gateway) -> bool:
    """Whether the metrics say that nothing can be written to run_dir."""
    url = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return 'gateway_sidecar_record_up{directory="run"} 0.0' in await response.text()
