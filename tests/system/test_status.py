"""`status` of the real daemon: what it says of the service, of the file, and how it is kept up to date."""

from __future__ import annotations

import asyncio
import signal
import sys

from tests.system.clients import ask
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway, replica_of, service_of


async def test_status_shows_what_clients_see(gateway: Gateway, engine: StartEngine) -> None:
    """Requests, who has them, and how many serve; a problem makes `--problems` exit with 1."""
    await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2"), load_s=3600)
    await gateway.until_states({"r1": "serving", "r2": "loading"})
    await ask(gateway, "tiny", stream=True)
    status = await gateway.until(
        lambda it: bool(service_of(it)["traffic"]["requests_per_s"]) and replica_of(it, "r1")["in_flight"] is not None,
        within_s=60,
    )
    service = service_of(status)
    assert (service["serving"], service["expected"]) == (1, 2)
    assert replica_of(status, "r2")["in_flight"] is None
    _, out, _ = await gateway.cli("status")
    assert "1 of 2 serve" in out
    assert " requests/s, 0 errors/s, " in out
    code, out, _ = await gateway.cli("status", "--problems")
    assert (code, out.startswith("chat/r2  loading for ")) == (1, True)
    code, out, _ = await gateway.cli("status", "chat", "r1")
    assert (code, "replica.serving" in out, "replica.seen" in out) == (0, True, True)
    assert (await gateway.cli("status", "chat", "r9"))[0] == 1
    assert (await gateway.cli("status", "other"))[0] == 1


async def test_the_file_on_disk_is_compared_by_what_it_means(gateway: Gateway) -> None:
    """A comment changes nothing; a setting does, until a reload; a mistake is told with its line."""

    async def until(on_disk: str) -> list[str]:
        status = await gateway.until(lambda it: it["daemon"]["configuration"]["on_disk"] == on_disk)
        return list(status["daemon"]["configuration"]["lines"])

    def write(content: str) -> None:
        """At once: the daemon may be about to read it."""
        fresh = gateway.config_path.with_suffix(".new")
        fresh.write_text(content)
        fresh.replace(gateway.config_path)

    text = gateway.config_path.read_text()
    await until("in force")
    write(text.replace("level: debug", "level: error"))
    assert await until("differs") == ["log"]
    write(f"# nothing new\n{text}")
    assert await until("in force") == []
    write(text.replace("level: debug", "level: loud"))
    (problem,) = await until("invalid")
    assert "gateway-sidecar.yaml:" in problem
    gateway.config_path.unlink()
    await until("unreadable")
    write(text.replace("level: debug", "level: error"))
    await until("differs")
    assert (await gateway.cli("reload"))[0] == 0
    status = await gateway.status()
    assert status["daemon"]["configuration"]["on_disk"] == "in force"


async def test_watch_prints_once_for_each_change_and_ends_clean(gateway: Gateway, engine: StartEngine) -> None:
    """Where it is no terminal; the daemon may end and come back meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway_sidecar", "status", "--watch", "--config", str(gateway.config_path)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []

    async def until(words: str) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            while not lines or words not in lines[-1]:
                lines.append((await process.stdout.readline()).decode())

    await until("no replicas at")
    await engine(gateway.socket("r1"))
    await until("r1       serving")
    await asyncio.sleep(0)
    assert await gateway.terminate() == 0
    await until("PROBLEM: no daemon since")
    await gateway.start()
    await until("r1       serving")  # What it said last.
    await until("1 of 1 serve")
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"\x1b" not in "".join(lines).encode() + out
