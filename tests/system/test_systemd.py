"""The unit under a real systemd: the daemon is restarted, killed, wedged and stopped, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from examples.simulated import EngineKind
from gateway_sidecar.supervision.loops import cancelled
from tests.namespaces import namespaces
from tests.system.conftest import FAILED, LAST_LINES, StartEngine
from tests.system.gateway import replica_of, service_of, states_of
from tests.system.systemd import SERVICE, SystemdMachine, why_not
from tests.users import with_python

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CONFIG = {
    "log": {"format": "json"},
    "nginx": {"workers": 1},
    "bridges": {"ports": "24001-24040"},
    "rescan_interval_s": 0.5,
    "services": [
        {
            "name": "chat",
            "listen": "127.0.0.1:30000",
            "replicas": {"sockets": "/run/replicas/chat/{replica}.sock"},
            "hold": {"asleep_s": 120},
        }
    ],
}
URL = "http://127.0.0.1:30000/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
WATCHDOG_S = 8


@pytest_asyncio.fixture
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SystemdMachine]:
    with namespaces(1) as (network,):
        made = SystemdMachine(network, tmp_path)
        try:
            try:
                await made.start()
            except RuntimeError as error:
                pytest.skip(str(error))
            yield made
            if request.node.stash.get(FAILED, False):
                print(*made.events().splitlines()[-LAST_LINES:], sep="\n")
        finally:
            await made.stop()


class Stream:
    """One answer that has no end for as long as the test runs."""

    def __init__(self, machine: SystemdMachine) -> None:
        self._text = ""
        self._task = asyncio.create_task(self._read(machine))

    async def goes_on(self) -> None:
        """Returns when 20 more tokens have come, and none of all was missing."""
        wanted = len(self._text.split()) + 20
        async with asyncio.timeout(60):
            while len(self._text.split()) < wanted:
                assert not self._task.done(), f"the stream ended after {self._text[-50:]!r}"
                await asyncio.sleep(0.05)
        numbers = [int(word) for word in self._text.split()[1:-1]]  # The engine's name first; the last may be half.
        assert numbers == list(range(1, len(numbers) + 1))

    async def leave(self) -> None:
        await cancelled(self._task)

    async def _read(self, machine: SystemdMachine) -> None:
        body = BODY | {"max_tokens": 1_000_000, "stream": True}
        async with machine.client() as session, session.post(URL, json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                data = line.decode().strip().removeprefix("data: ")
                if data:
                    self._text += json.loads(data)["choices"][0]["delta"].get("content") or ""


async def until(
    machine: SystemdMachine, condition: Callable[[dict[str, Any]], bool], *, within_s: float = 60
) -> dict[str, Any]:
    """The daemon's first status for which the condition holds."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                with suppress(aiohttp.ClientError):
                    status = await machine.status()
                    if condition(status):
                        return status
                await asyncio.sleep(0.05)
    except TimeoutError:
        shown = await machine.run("sh", "-c", f"systemctl status --no-pager --full {SERVICE} || true")
        raise AssertionError(f"{shown}\n{machine.events()[-3000:]}") from None


def serves(status: dict[str, Any]) -> bool:
    return bool(status["ready"]) and states_of(status) == {"r1": "serving"}


def what_stays(status: dict[str, Any]) -> tuple[object, ...]:
    replica = replica_of(status, "r1")
    return status["nginx"]["pid"], service_of(status)["router"]["pid"], replica["bridge"], replica["worker_id"]


async def next_daemon(machine: SystemdMachine, old: int, *, within_s: float = 60) -> int:
    """The pid of the daemon that comes after this one, once it serves."""
    async with asyncio.timeout(within_s):
        while (pid := await machine.pid()) in (0, old) or await machine.show("SubState") != "running":
            await asyncio.sleep(0.1)
    await until(machine, serves)
    return pid


async def test_daemon_comes_and_goes_under_systemd_and_nobody_notices(
    machine: SystemdMachine, engine: StartEngine
) -> None:
    """Killed, restarted, wedged: nginx, router, port, worker and a stream stay. `stop` ends the daemon alone."""
    await machine.install(CONFIG, f"WatchdogSec={WATCHDOG_S}")
    socket = machine.root / "run/replicas/chat/r1.sock"
    socket.parent.mkdir()
    await engine(socket, EngineKind.SGLANG_HTTP, token_interval_s=0.05)
    socket.chmod(0o777)
    await machine.systemctl("start", SERVICE)
    before = await until(machine, serves)
    pid = await machine.pid()
    stream = Stream(machine)
    await stream.goes_on()

    await machine.run("kill", "-KILL", str(pid))
    pid = await next_daemon(machine, pid)
    assert what_stays(await machine.status()) == what_stays(before)
    assert await machine.show("NRestarts") == "1"
    await stream.goes_on()

    # From here on it is a daemon with a fault that SIGUSR1 throws.
    wedging = f"{sys.executable} -m tests.system.wedging run --config /etc/gateway-sidecar/gateway-sidecar.yaml"
    here = Path(__file__).parents[2]
    await machine.drop_in(
        "Environment=WEDGE=reconcile", f"WorkingDirectory={here}", "ExecStart=", f"ExecStart={wedging}"
    )
    await machine.systemctl("restart", SERVICE)
    pid = await next_daemon(machine, pid)
    assert what_stays(await machine.status()) == what_stays(before)
    await stream.goes_on()

    await machine.run("kill", "-USR1", str(pid))
    pid = await next_daemon(machine, pid, within_s=90)
    assert what_stays(await machine.status()) == what_stays(before)
    assert await machine.show("NRestarts") == "1", "counted anew by the restart"
    assert "daemon.wedged" in machine.events()
    assert "Fatal Python error: Aborted" in machine.events(), "the watchdog's abort tells where it hung"
    await stream.goes_on()

    await machine.systemctl("stop", SERVICE)
    assert (await machine.show("ActiveState"), await machine.pid()) == ("inactive", 0)
    await stream.goes_on()
    async with machine.client() as session, session.post(URL, json=BODY | {"max_tokens": 2}) as response:
        assert response.status == 200, "nginx and the router need no daemon"
    await machine.systemctl("start", SERVICE)
    await next_daemon(machine, pid)
    assert what_stays(await machine.status()) == what_stays(before)
    await stream.goes_on()
    await stream.leave()


async def test_request_waits_while_systemd_restarts_the_daemon(machine: SystemdMachine, engine: StartEngine) -> None:
    """Under the unit's own sandbox the hold's socket stays open as well."""
    await machine.install(CONFIG, f"WatchdogSec={WATCHDOG_S}")
    socket = machine.root / "run/replicas/chat/r1.sock"
    socket.parent.mkdir()
    await machine.systemctl("start", SERVICE)
    await until(machine, lambda status: bool(status["ready"]))
    async with machine.client() as session:
        waiting = asyncio.create_task(session.post(URL, json=BODY | {"max_tokens": 2}))
        await until(machine, one_waits)
        await machine.systemctl("restart", SERVICE)
        await until(machine, one_waits)
        await engine(socket, EngineKind.SGLANG_HTTP)
        socket.chmod(0o777)
        async with await waiting as response:
            assert response.status == 200, await response.text()


def one_waits(status: dict[str, Any]) -> bool:
    return bool(service_of(status)["waiting"] == 1)


async def test_check_looks_with_what_drop_ins_grant(machine: SystemdMachine) -> None:
    """As the unit's user, whoever a drop-in makes that, with its groups and capabilities."""
    config = json.loads(json.dumps(CONFIG))
    config["services"][0]["frontend"] = {"listen": ["127.0.0.1:80"]}
    await machine.install(config)
    command = f"{Path(sys.executable).with_name('gateway-sidecar')} check || true"
    look = [*with_python(), "sh", "-c", command]
    out = await machine.run(*look)
    assert "ok    with the rights of gateway-sidecar (uid " in out, out
    assert f"as whom {SERVICE} starts the daemon; systemd says SupplementaryGroups= AmbientCapabilities=\n" in out, out
    assert "FAIL  cannot listen on 127.0.0.1:80: EACCES" in out, out
    await machine.drop_in("SupplementaryGroups=adm", "AmbientCapabilities=CAP_NET_BIND_SERVICE")
    out = await machine.run(*look)
    assert "systemd says SupplementaryGroups=adm AmbientCapabilities=cap_net_bind_service\n" in out, out
    assert "127.0.0.1:80" not in out, out
