"""Disks that are full, read-only, gone or hung: everybody is served, it is said once, and it ends by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from gateway_sidecar.supervision.process import boot_id, start_ticks
from tests.system.clients import ask, stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status, replica_of, service_of, states_of, take_away, until_gone
from tests.system.test_operation import metrics_of


class Disk:
    """A file system of 1 MB of its own, which can be filled and made read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"

    def fill(self) -> None:
        """Not a byte is left."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def protect(self) -> None:
        """Read-only for whoever opens anything from now on, as after an error of a disk. Open files stay open."""
        subprocess.run(["mount", "--bind", str(self.path), str(self.path)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(self.path)], check=True)

    def release(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {mounted.stderr.strip()}")
    yield Disk(path)
    while path.is_mount():
        subprocess.run(["umount", "-l", str(path)], check=True)


def on(disk: Disk, make_gateway: MakeGateway) -> Gateway:
    """A gateway with its state on that disk; its router writes a line for each request."""
    gateway = make_gateway(state_dir=str(disk.state))
    gateway.settings["services"][0]["router"] = {"log_level": "info"}
    return gateway


def is_new(status: Status, old_router: int, wanted: dict[str, str]) -> bool:
    router = service_of(status)["router"]
    return router["state"] == "up" and router["pid"] not in (None, old_router) and states_of(status) == wanted


def is_served(wanted: dict[str, str], problem: str | None, *, about: str = "state:") -> Callable[[Status], bool]:
    """Everybody serves, and the state has a problem with these words, or nothing has any."""

    def condition(status: Status) -> bool:
        problems = status["problems"]
        told = any(problem in line for line in problems if line.startswith(about)) if problem else not problems
        return told and states_of(status) == wanted

    return condition


def times_told(gateway: Gateway, event: str) -> int:
    """How often it was said of the record that the test looks at; other files of the same disk have their own."""
    return sum(line["path"].endswith("/leases.json") for line in gateway.events(event))


async def record_up(gateway: Gateway, directory: str) -> float:
    found = await metrics_of(gateway)
    return found["gateway_sidecar_record_up", frozenset({"directory": directory}.items())]


BROKEN = {
    "full": (Disk.fill, Disk.free, "No space left"),
    "read-only": (Disk.protect, Disk.release, "Read-only file system"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_disk_that_cannot_be_written_while_the_daemon_runs(
    disk: Disk, make_gateway: MakeGateway, engine: StartEngine, how: str
) -> None:
    """All goes on, a new replica and a new router and a new nginx included; told once, and once when it is over."""
    spoil, repair, words = BROKEN[how]
    gateway = on(disk, make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    spoil(disk)
    await engine(gateway.socket("r2"))
    wanted = {"r1": "serving", "r2": "serving"}
    await gateway.until(is_served(wanted, words))
    assert await record_up(gateway, "state") == 0
    assert await record_up(gateway, "run") == 1
    for _ in range(20):
        assert await stream_chat(gateway, 3)
    content = "x" * 400_000  # More than nginx keeps in memory.
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 503, "the nginx that runs has nowhere to put it"
        assert (await response.json())["error"]["code"] == "gateway_unavailable"
    os.kill(service_of(before)["router"]["pid"], signal.SIGKILL)
    await gateway.until(lambda s: is_new(s, service_of(before)["router"]["pid"], wanted))
    os.kill(before["nginx"]["pid"], signal.SIGKILL)
    await gateway.until(lambda s: s["nginx"]["state"] == "up" and s["nginx"]["pid"] != before["nginx"]["pid"])
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, "an nginx that was started meanwhile keeps its bodies elsewhere"
    assert times_told(gateway, "state.not_written") == 1
    repair(disk)
    await gateway.until(lambda s: not any(line.startswith("state:") for line in s["problems"]))
    assert times_told(gateway, "state.written_again") == 1
    assert await record_up(gateway, "state") == 1
    leases = disk.state / "leases.json"
    assert {row["replica"] for row in json.loads(leases.read_text())["services"]["chat"]} == {"r1", "r2"}


@pytest.mark.parametrize("how", BROKEN)
async def test_daemon_that_starts_on_a_disk_that_cannot_be_written(
    disk: Disk, make_gateway: MakeGateway, engine: StartEngine, how: str
) -> None:
    """It serves as on any other day; what its children write goes to run_dir, and `status` says so."""
    spoil, repair, words = BROKEN[how]
    spoil(disk)
    gateway = on(disk, make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    status = await gateway.until(is_served({"r1": "serving"}, words))
    assert await stream_chat(gateway, 3)
    spare = gateway.directory / "run" / "log" / "router-chat.log"
    assert Path(f"/proc/{service_of(status)['router']['pid']}/fd/1").readlink() == spare
    await gateway.until(lambda s: any(line.startswith("log of router chat:") for line in s["problems"]))
    assert gateway.events("router.log_elsewhere")[0]["path"] == str(spare)
    assert gateway.events("nginx.log_elsewhere")
    while not gateway.events("router.said"):
        assert await stream_chat(gateway, 3)
    await gateway.kill()
    await gateway.start()
    after = await gateway.until(is_served({"r1": "serving"}, words))
    assert service_of(after)["router"]["pid"] == service_of(status)["router"]["pid"]
    assert after["nginx"]["pid"] == status["nginx"]["pid"]
    repair(disk)
    await gateway.until(lambda s: not any(line.startswith("state:") for line in s["problems"]))
    assert times_told(gateway, "state.written_again") == 1
    spoil(disk)
    assert (await gateway.cli("stop", "--all"))[1] == "stopped, with nginx and all routers\n"
    assert gateway.process is not None
    assert await gateway.process.wait() == 79


async def test_children_survive_a_disk_that_fills_under_their_logs(
    disk: Disk, make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """A router and an nginx whose every line fails to be written go on serving."""
    gateway = on(disk, make_gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    disk.fill()
    for _ in range(50):
        assert await stream_chat(gateway, 2)
    dead = gateway.socket("dead")
    await engine(dead)
    await gateway.until_state("dead", "serving")
    dead.unlink()  # nginx writes a line for each connection that meets no link.
    await gateway.until_states({"r1": "serving"})
    after = await gateway.status()
    assert service_of(after)["router"]["pid"] == service_of(before)["router"]["pid"]
    assert after["nginx"]["pid"] == before["nginx"]["pid"]
    assert gateway.events("loop.failed") == []


async def test_daemon_whose_own_log_goes_nowhere_goes_on(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Its standard error is a full disk: it starts, serves, drains and ends as ever."""
    gateway = make_gateway()
    gateway.configure()
    full = os.open("/dev/full", os.O_WRONLY)
    gateway.process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_sidecar", "run", "--config", str(gateway.config_path), stdout=full, stderr=full
    )
    os.close(full)
    gateway.log_path.touch()
    await gateway.until(lambda s: bool(s["ready"]))
    gone = await engine(gateway.socket("r1"))
    status = await gateway.until_states({"r1": "serving"})
    os.kill(service_of(status)["router"]["pid"], signal.SIGKILL)
    await gateway.until(lambda s: is_new(s, service_of(status)["router"]["pid"], {"r1": "serving"}))
    assert await stream_chat(gateway, 3)
    await gone.stop()
    await gateway.until_states({})
    assert (await metrics_of(gateway))["gateway_sidecar_nginx_up", frozenset()] == 1
    assert await gateway.terminate() == 0


async def test_everything_in_the_state_directory_is_made_again(gateway: Gateway, engine: StartEngine) -> None:
    """Removed as a whole while nothing else happens: the record, and the place for large bodies, come back."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    state = gateway.directory / "state"
    while not (state / "leases.json").exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # The last change is written down: what follows is not on its account.
    take_away(state)
    async with asyncio.timeout(60):
        while not (state / "leases.json").exists() or not (state / "nginx-temp" / "client_body").exists():
            await asyncio.sleep(0.05)
    assert [row["replica"] for row in json.loads((state / "leases.json").read_text())["services"]["chat"]] == ["r1"]
    content = "x" * 400_000
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200


async def test_lost_record_of_processes_is_written_again(gateway: Gateway, engine: StartEngine) -> None:
    """Lost while the daemon runs: the next daemon still finds the router's key, and ends nobody."""
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    record = gateway.directory / "run" / "processes.json"
    await gateway.router_key()
    record.unlink()
    async with asyncio.timeout(60):
        while not record.exists():
            await asyncio.sleep(0.05)
    await gateway.kill()
    await gateway.start()
    after = await gateway.until_states({"r1": "serving"})
    assert service_of(after)["router"]["pid"] == service_of(before)["router"]["pid"]


async def test_record_that_hangs_holds_up_nobody(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A file system that does not answer is told and survived."""
    gateway = make_gateway()
    gateway.module = "tests.system.wedging"
    await gateway.start(env={"WEDGE": "record"})
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    hung = gateway.directory / "state" / "leases.hung"
    hung.touch()
    try:
        await engine(gateway.socket("r2"))
        status = await gateway.until(is_served({"r1": "serving", "r2": "serving"}, "does not answer"))
        old = service_of(status)["router"]["pid"]
        os.kill(old, signal.SIGKILL)
        await gateway.until(lambda s: is_new(s, old, {"r1": "serving", "r2": "serving"}))
        record = gateway.directory / "run" / "processes.json"
        async with asyncio.timeout(60):
            while (json.loads(record.read_text())["routers"]["chat"][0]["identity"] or {}).get("pid") in (None, old):
                await asyncio.sleep(0.01)
        assert await ask(gateway, "tiny", stream=False)
    finally:
        hung.unlink()
    await gateway.until(lambda s: not s["problems"])
    assert gateway.events("state.written_again")


async def test_log_that_hangs_does_not_keep_a_router_from_starting(gateway: Gateway, engine: StartEngine) -> None:
    """Its log cannot be opened in time (a FIFO in its place): it writes to run_dir, and `status` says so."""
    await engine(gateway.socket("r1"))
    old = service_of(await gateway.until_states({"r1": "serving"}))["router"]["pid"]
    log = gateway.directory / "state" / "log" / "router-chat.log"
    log.unlink()
    os.mkfifo(log)
    os.kill(old, signal.SIGKILL)
    await gateway.until(lambda s: is_new(s, old, {"r1": "serving"}))
    status = await gateway.until(is_served({"r1": "serving"}, "router-chat.log", about="log of router"))
    assert (
        Path(f"/proc/{service_of(status)['router']['pid']}/fd/1").readlink().parent == gateway.directory / "run" / "log"
    )
    assert await stream_chat(gateway, 3)
    log.unlink()


async def test_after_a_reboot_everything_is_rebuilt_on_the_same_ports(gateway: Gateway, engine: StartEngine) -> None:
    """Another boot id: no recorded process is trusted, whoever has its pid now is left alone, ports are a wish."""
    names = [f"r{i}" for i in range(4)]
    wanted = dict.fromkeys(names, "serving")
    engines = {}
    for name in reversed(names):  # Not in the order in which they will be found again.
        engines[name] = await engine(gateway.socket(name))
        await gateway.until_state(name, "serving")
    before = await gateway.until_states(wanted)
    leases = gateway.directory / "state" / "leases.json"
    while sum(row["facts"] is not None for row in json.loads(leases.read_text())["services"]["chat"]) < 4:
        await asyncio.sleep(0.01)
    await gateway.kill()
    nginx, router = before["nginx"]["pid"], service_of(before)["router"]["pid"]
    workers = [int(pid) for pid in Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()]
    for pid in (nginx, *workers, router):
        os.kill(pid, signal.SIGKILL)
        await until_gone(pid)
    for one in engines.values():
        await one.stop()
    innocent = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        record = gateway.directory / "run" / "processes.json"
        earlier = record.read_text().replace(boot_id(), "an-earlier-boot")
        for pid in (nginx, router):  # Both pids belong to somebody else by now, started at the very same tick.
            earlier = earlier.replace(f'"pid": {pid}', f'"pid": {innocent.pid}')
        rows = json.loads(earlier)
        for identity in (rows["nginx"], rows["routers"]["chat"][0]["identity"]):
            identity["start_ticks"] = start_ticks(innocent.pid)
        record.write_text(json.dumps(rows))
        leases.write_text(leases.read_text().replace(boot_id(), "an-earlier-boot"))
        take_away(gateway.directory / "run" / "bridges")
        for name in names:
            await engine(gateway.socket(name))
        await gateway.start()
        after = await gateway.until_states(wanted)
        assert [replica_of(after, n)["bridge"] for n in names] == [replica_of(before, n)["bridge"] for n in names]
        assert service_of(after)["router"]["pid"] not in (router, innocent.pid)
        assert innocent.returncode is None, "a recycled pid is nobody of ours"
        assert await stream_chat(gateway, 3)
        assert service_of(after)["router"]["restarts"] == 0
    finally:
        innocent.kill()
        await innocent.wait()


async def test_full_disk_refuses_a_put_whole(disk: Disk, make_gateway: MakeGateway, engine: StartEngine) -> None:
    """507, and nothing of it is applied, now or after a restart; what was told before stays, and can be put later."""
    gateway = on(disk, make_gateway)
    await gateway.start()
    await engine(gateway.directory / "a1.sock")
    await engine(gateway.directory / "a2.sock")
    url = "http://daemon/v1/services/chat/replicas"

    async def ask_for(method: str, replica: str, **entry: object) -> tuple[int, dict[str, object]]:
        body = {"socket": str(gateway.directory / f"{replica}.sock"), **entry} if method == "PUT" else None
        async with gateway.session.request(method, f"{url}/{replica}?", json=body) as answer:
            return answer.status, await answer.json()

    assert (await ask_for("PUT", "a1"))[0] == 201
    before = replica_of(await gateway.until_states({"a1": "serving"}), "a1")
    leases = disk.state / "leases.json"
    await gateway.until(lambda _: leases.exists() and '"facts":{' in leases.read_text())
    disk.fill()
    for method, replica, entry in (("PUT", "a2", {}), ("PUT", "a1", {"priority": 7}), ("DELETE", "a1", {})):
        status, answer = await ask_for(method, replica, **entry)
        assert (status, "nothing was changed" in str(answer["error"])) == (507, True), answer
    status_now = await gateway.until_states({"a1": "serving"})
    assert replica_of(status_now, "a1")["worker_id"] == before["worker_id"]
    await gateway.kill()
    disk.free()
    await gateway.start()
    assert replica_of(await gateway.until_states({"a1": "serving"}), "a1")["worker_id"] == before["worker_id"]
    assert (await ask_for("PUT", "a2"))[0] == 201
    await gateway.until_states({"a1": "serving", "a2": "serving"})
