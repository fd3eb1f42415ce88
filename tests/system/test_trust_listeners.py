"""What a local user who is nobody can do to the daemon's own listeners: nothing that anybody else notices."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.contract.engine_replay import HttpReplay
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartAs
from tests.system.gateway import Gateway
from tests.system.test_admin_tls import Remote
from tests.system.test_signals import page, post, until_listening, until_signals
from tests.users import DAEMON, ONE, OTHER, give, why_not

pytestmark = [pytest.mark.own_users, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

ATTACKER = Path(__file__).with_name("attacker.py")
MIB = 1 << 20


@asynccontextmanager
async def attacker(*arguments: object) -> AsyncIterator[None]:
    """Runs while the block does, with room for many sockets."""
    process = await asyncio.create_subprocess_exec(
        "prlimit", "--nofile=20000:20000", *OTHER.enter, sys.executable, str(ATTACKER), *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield
        assert process.returncode is None
    finally:
        process.stdin.close()
        process.kill()
        await process.wait()


def rss_of(gateway: Gateway) -> int:
    assert gateway.process is not None
    text = Path(f"/proc/{gateway.process.pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_thousands_of_idle_connections_starve_nobody(make_gateway: MakeGateway, start: StartAs) -> None:
    """Commands, a new replica, a request that waits, a scrape and the admin API elsewhere: all as without them."""
    gateway = make_gateway()
    tls = gateway.directory / "tls"
    tls.mkdir()
    remote = Remote(gateway, tls)
    give(remote.server[1], DAEMON, 0o400)
    gateway.before += ["prlimit", "--nofile=4096:4096"]
    await gateway.start()
    async with attacker("hold", f"{gateway.metrics_port},{remote.port}", 4000):
        waiting = asyncio.create_task(ask(gateway, "tiny", stream=False))
        await gateway.until(lambda s: s["services"][0]["waiting"] == 1)
        await start(ONE, gateway.socket("r1"))
        assert await waiting
        for _ in range(3):
            code, out, err = await gateway.cli("status")
            assert (code, "serving" in out) == (0, True), err
            assert (await page(gateway, "/healthz"))[0] == 200
            assert (await remote.ask(remote.context(remote.client)))["ready"]
        await start(ONE, gateway.socket("r2"))
        await gateway.until_states({"r1": "serving", "r2": "serving"})
        assert gateway.process is not None
        assert len(os.listdir(f"/proc/{gateway.process.pid}/fd")) < 2000
    for unjust in ("source.blind", "loop.failed", "daemon.wedged", "state.not_written", "daemon.request_failed"):
        assert gateway.events(unjust) == []


async def test_slow_scrapes_of_a_large_page_cost_one_page(gateway: Gateway) -> None:
    """Sixty who ask for a replica's metrics and take nothing hold up nobody, and the daemon reads the page once."""
    line = "# HELP a_name_like_those_of_engines what it means\n"
    large = line * (3 * MIB // len(line))
    engine = HttpReplay.of("vllm-http")
    engine.answers["/metrics"] = (200, large)
    async with engine.serve(gateway.socket("r1"), ONE):
        await gateway.until_states({"r1": "serving"})
        assert (await page(gateway, "/replicas/chat/r1/metrics"))[1] == large
        before = rss_of(gateway)
        async with attacker("take", gateway.metrics_port, "/replicas/chat/r1/metrics", 60):
            for _ in range(20):
                assert (await page(gateway, "/replicas/chat/r1/metrics"))[1] == large
            assert rss_of(gateway) - before < 120 * MIB
        engine.answers["/metrics"] = (200, line * (5 * MIB // len(line)))
        status, text = await page(gateway, "/replicas/chat/r1/metrics")
        assert (status, "larger" in text or "too large" in text) == (502, True), text


async def test_a_page_of_another_name_reads_nothing(make_gateway: MakeGateway) -> None:
    """DNS rebinding: a browser says whose page it shows. The answer says how to let a name in."""
    gateway = make_gateway()
    gateway.settings["metrics"]["hosts"] = ["prometheus.example.net"]
    await gateway.start()
    url = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session:
        for host, status in (("evil.example:9464", 421), ("prometheus.example.net", 200), ("localhost", 200)):
            async with session.get(url, headers={"Host": host}) as response:
                assert response.status == status
                if status == 421:
                    assert "metrics.hosts" in await response.text()


async def test_nobody_else_reads_the_tag_of_nginxs_events(gateway: Gateway, start: StartAs) -> None:
    """Only files of the daemon's user hold it, of mode 0600: no log, no command line, no answer. Without it no event
    is believed, and nobody else can have the events instead."""
    await start(ONE, gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    config = gateway.directory / "run" / "nginx" / "nginx.conf"
    port, tag = config.read_text().partition("syslog:server=127.0.0.1:")[2].split(" ")[0].split(",nohostname,tag=")
    async with aiohttp.ClientSession() as session:
        assert await post(session, gateway) == 200
    for path in gateway.directory.rglob("*"):
        if path.is_file() and tag.encode() in path.read_bytes():
            assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (DAEMON.uid, 0o600), path
    assert not await OTHER.does("cat", config)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert tag.encode() not in process.read_bytes()
        except OSError:
            continue  # It has ended.
    for page_of in ("/metrics", "/sd"):
        assert tag not in (await page(gateway, page_of))[1]
    assert tag not in str(await gateway.status())
    assert await OTHER.says(sys.executable, "-c", _TAKE, port) == "refused"
    assert await OTHER.does(sys.executable, "-c", _FORGE, port)
    async with aiohttp.ClientSession() as session:
        assert await post(session, gateway) == 200
    found = await until_signals(gateway, lambda s: s["windows"]["300"]["outcomes"].get("ok", 0) >= 2)
    assert found["windows"]["300"]["outcomes"] == {"ok": 2}
    assert "gateway_sidecar_lost_request_events 0.0" in (await page(gateway, "/metrics"))[1]


_TAKE = """
import socket, sys
thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    thief.bind(("127.0.0.1", int(sys.argv[1])))
    print("taken")
except OSError:
    print("refused")
"""

_FORGE = """
import socket, sys
forged = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for tag in ("", "0" * 24, "f" * 24):
    for _ in range(20000):
        forged.sendto(f"<190>Nov 20 22:33:13 {tag}: chat|POST|200|9.9|0.1|-|OK|text/plain".encode(),
                      ("127.0.0.1", int(sys.argv[1])))
"""
