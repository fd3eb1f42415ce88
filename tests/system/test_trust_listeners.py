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

from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway
from tests.system.test_admin_tls import Remote
from tests.system.test_signals import page, post, until_listening, until_signals

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")

ATTACKER = Path(__file__).with_name("attacker.py")
MIB = 1 << 20


@asynccontextmanager
async def attacker(*arguments: object) -> AsyncIterator[None]:
    """Runs while the block does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ATTACKER), *map(str, arguments),
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


async def test_thousands_of_idle_connections_starve_nobody(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """Commands, a new replica, a request that waits, a scrape and the admin API elsewhere: all as without them."""
    gateway = make_gateway()
    remote = Remote(gateway, tmp_path)
    gateway.before = ["prlimit", "--nofile=4096:4096"]
    await gateway.start()
    async with attacker("hold", f"{gateway.metrics_port},{remote.port}", 4000):
        waiting = asyncio.create_task(ask(gateway, "tiny", stream=False))
        await gateway.until(lambda s: s["services"][0]["waiting"] == 1)
        await engine(gateway.socket("r1"))
        assert await waiting
        for _ in range(3):
            code, out, err = await gateway.cli("status")
            assert (code, "serving" in out) == (0, True), err
            assert (await page(gateway, "/healthz"))[0] == 200
            assert (await remote.ask(remote.context(remote.client)))["ready"]
        await engine(gateway.socket("r2"))
        await gateway.until_states({"r1": "serving", "r2": "serving"}, within_s=30)
        assert gateway.process is not None
        assert len(os.listdir(f"/proc/{gateway.process.pid}/fd")) < 2000
    for unjust in ("source.blind", "loop.failed", "daemon.wedged", "state.not_written", "daemon.request_failed"):
        assert gateway.events(unjust) == []


async def test_slow_scrapes_of_a_large_page_cost_one_page(gateway: Gateway, engine: StartEngine) -> None:
    """Sixty who ask for a replica's metrics and take nothing hold up nobody, and the daemon reads the page once."""
    lines = "# HELP a_name_like_those_of_engines what it means\n"
    simulated = await engine(gateway.socket("r1"))
    large = lines * (3 * MIB // len(lines))
    simulated._core.latencies.page = lambda: large  # type: ignore[method-assign]
    await gateway.until_states({"r1": "serving"})
    assert (await page(gateway, "/replicas/chat/r1/metrics"))[1] == large
    before = rss_of(gateway)
    async with attacker("take", gateway.metrics_port, "/replicas/chat/r1/metrics", 60):
        for _ in range(20):
            assert (await page(gateway, "/replicas/chat/r1/metrics"))[1] == large
        assert rss_of(gateway) - before < 120 * MIB
    simulated._core.latencies.page = lambda: lines * (5 * MIB // len(lines))  # type: ignore[method-assign]
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


async def test_nobody_else_reads_the_tag_of_nginxs_events(gateway: Gateway, engine: StartEngine) -> None:
    """Only files of mode 0600 hold it: no log, no command line, no answer. Without it no event is believed."""
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await until_listening(gateway)
    text = (gateway.directory / "run" / "nginx" / "nginx.conf").read_text()
    port, tag = text.partition("syslog:server=127.0.0.1:")[2].split(" ")[0].split(",nohostname,tag=")
    async with aiohttp.ClientSession() as session:
        assert await post(session, gateway) == 200
    for path in gateway.directory.rglob("*"):
        if path.is_file() and tag.encode() in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert tag.encode() not in process.read_bytes()
        except OSError:
            continue  # It has ended.
    for page_of in ("/metrics", "/sd"):
        assert tag not in (await page(gateway, page_of))[1]
    assert tag not in str(await gateway.status())
    forge = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FORGE.format(uid=64_999, port=port), stdout=asyncio.subprocess.PIPE
    )
    assert await forge.wait() == 0
    async with aiohttp.ClientSession() as session:
        assert await post(session, gateway) == 200
    found = await until_signals(gateway, lambda s: s["windows"]["300"]["outcomes"].get("ok", 0) >= 2)
    assert found["windows"]["300"]["outcomes"] == {"ok": 2}
    assert "gateway_sidecar_lost_request_events 0.0" in (await page(gateway, "/metrics"))[1]


_FORGE = """
import os, socket
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
forged = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for tag in ("", "0" * 24, "f" * 24):
    for _ in range(20000):
        forged.sendto(f"<190>Nov 20 22:33:13 {{tag}}: chat|POST|200|9.9|0.1|text/plain".encode(), ("127.0.0.1", {port}))
"""
