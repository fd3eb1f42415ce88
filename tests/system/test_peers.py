"""Prefill and decode engines on a network of their own, which the gateway is no part of: they find each other."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio

from examples.simulated import EngineKind
from gateway_sidecar.control.process.left_running import look_for_left
from gateway_sidecar.supervision.process import start_ticks
from tests.namespaces import Lan, Namespace, namespaces, why_not
from tests.ssh_servers import make_key, public_of
from tests.stopping import stop
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway
from tests.system.engine_process import EngineProcess
from tests.system.gateway import Gateway, replica_of
from tests.system.test_replacement import Load
from tests.users import with_python

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

OURS = "gwsc0"
UID = 42433
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
StartOn = Callable[..., Awaitable[EngineProcess]]


class Site:
    """A gateway, and hosts of engines on a LAN that it does not reach."""

    def __init__(self, gateway: Gateway, lan: Lan, hosts: dict[str, Namespace]) -> None:
        self.gateway = gateway
        self.lan = lan
        self.hosts = hosts

    @property
    def space(self) -> Namespace:
        """The gateway's own network."""
        assert self.gateway.namespace is not None
        return self.gateway.namespace

    def note(self, replica: str, text: str) -> None:
        """Writes `<replica>.yaml`."""
        self.gateway.socket(replica).with_suffix(".yaml").write_text(text)

    async def chat(self) -> tuple[int, str]:
        """One chat; status and text of the answer."""
        async with (
            self.gateway.client() as client,
            client.post(f"{self.gateway.url()}/v1/chat/completions", json=CHAT) as answer,
        ):
            return answer.status, await answer.text()

    def bridges(self) -> list[str]:
        """The advertised addresses that an nginx runs for, as its directories say."""
        directory = self.gateway.directory / "run" / "peers"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    async def until_addresses(self, *wanted: str) -> None:
        """Waits until the gateway has just these: one is given back a moment after `status` tells of it."""
        async with asyncio.timeout(60):
            while self.space.addresses(OURS) != list(wanted):
                await asyncio.sleep(0.02)

    async def until_nothing_is_left(self) -> None:
        """No interface, no address, no nginx."""
        async with asyncio.timeout(60):
            while OURS in self.space.ip("link") or self.bridges():
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def site(make_gateway: MakeGateway) -> AsyncIterator[Site]:
    """The gateway runs; `5`, `6` and `7` are hosts at 10.0.0.5 and so on."""
    with ExitStack() as stack:
        spaces = stack.enter_context(namespaces(5))
        gateway = make_gateway(peers={"networks": ["10.0.0.0/8", "192.168.0.0/16", "fc00::/7"]})
        gateway.namespace = spaces[0]
        lan = Lan(spaces[1])
        hosts = dict(zip("567", spaces[2:], strict=True))
        for name, host in hosts.items():
            lan.plug(host, f"10.0.0.{name}/24", f"fd00::{name}/64")
        await gateway.start()
        yield Site(gateway, lan, hosts)


@pytest_asyncio.fixture
async def start_on(site: Site) -> AsyncIterator[StartOn]:
    """Starts engines on hosts: `await start_on("5", "p1", role="prefill")`."""
    started: list[EngineProcess] = []

    async def start(
        host: str, replica: str, kind: EngineKind = EngineKind.SGLANG_HTTP, **options: Any
    ) -> EngineProcess:
        defaults = {"transfer_timeout_s": 60, "bootstrap_listen": "0.0.0.0"}
        socket = site.gateway.socket(replica)
        started.append(EngineProcess(site.hosts[host], socket, kind, **{**defaults, **options}))
        await started[-1].start()
        return started[-1]

    yield start
    for engine in started:
        await engine.stop()


@pytest.mark.parametrize("kind", [EngineKind.SGLANG_HTTP, EngineKind.SGLANG_GRPC, EngineKind.TOKENSPEED_GRPC])
@pytest.mark.parametrize("host", ["10.0.0.5", "fd00::5"])
async def test_a_pair_meets_on_its_own_network(site: Site, start_on: StartOn, kind: EngineKind, host: str) -> None:
    """The decode engine is sent to the prefill engine's own address, and finds it there."""
    shown = f"[{host}]" if ":" in host else host
    site.note("p1", f"advertise: '{shown}:8000'\n")
    prefill = await start_on("5", "p1", kind, role="prefill", bootstrap_listen="::" if ":" in host else "0.0.0.0")
    decode = await start_on("6", "d1", kind, role="decode")
    status = await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    assert replica_of(status, "p1")["advertise"] == f"{shown}:8000"
    scheme = "grpc" if kind.is_grpc else "http"
    by_type = {worker["worker_type"]: worker["url"] for worker in await site.gateway.workers()}
    assert by_type["prefill"] == f"{scheme}://{shown}:8000"
    assert by_type["decode"].startswith(f"{scheme}://127.0.0.{2 if kind.is_grpc else 1}:")
    for _ in range(3):
        code, text = await site.chat()
        assert code == 200, text
    assert (await stream_chat(site.gateway, 4)).split()[-1] == "3"
    met = (await prefill.seen())["transfers"]
    assert sum(met.values()) == 4
    assert {each.removeprefix("::ffff:") for each in met} <= {"10.0.0.6", "fd00::6"}
    assert list((await decode.seen())["transfers"].values()) == [4]
    assert site.space.addresses(OURS) == [f"{host}/{128 if ':' in host else 32}"]
    await prefill.stop()
    await site.gateway.until_states({"d1": "serving"})
    await site.until_nothing_is_left()


def url_of(workers: list[dict[str, Any]], worker_type: str) -> str:
    return next(str(worker["url"]) for worker in workers if worker["worker_type"] == worker_type)


def url_ids(workers: list[dict[str, Any]]) -> dict[str, str]:
    return {worker["url"]: worker["id"] for worker in workers if worker["status"] == "ready"}


def fresh(before: dict[str, str]) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether the prefill engine's worker is another one than before."""
    url = "http://10.0.0.5:8000"
    return lambda workers: url_ids(workers).get(url) not in (None, before[url])


def peer_pid(site: Site, address: str = "10.0.0.5:8000") -> int:
    return int((site.gateway.directory / "run" / "peers" / address / "nginx.pid").read_text())


async def start_pair(site: Site, start_on: StartOn, **of_prefill: Any) -> tuple[EngineProcess, EngineProcess]:
    """A prefill engine at 10.0.0.5, advertised, and a decode engine; both serve."""
    site.note("p1", "advertise: 10.0.0.5:8000\n")
    prefill = await start_on("5", "p1", role="prefill", **of_prefill)
    decode = await start_on("6", "d1", role="decode", **of_prefill)
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    return prefill, decode


async def test_without_an_address_a_pair_does_not_meet(site: Site, start_on: StartOn) -> None:
    """What `advertise` is for: else the decode engine looks for the prefill engine on itself."""
    await start_on("5", "p1", role="prefill", transfer_timeout_s=2)
    await start_on("6", "d1", role="decode", transfer_timeout_s=2)
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    code, text = await site.chat()
    assert code == 500
    assert "cannot reach http://127.0.0.1:8998" in text
    assert OURS not in site.space.ip("link")


async def test_an_address_that_the_gateway_needs_is_refused_and_direct_is_the_cure(
    site: Site, start_on: StartOn
) -> None:
    """The replica waits, with the reason where one looks for it; nothing on the machine is changed."""
    site.lan.plug(site.space, "10.0.0.1/24")
    before = site.space.ip("-4", "addr")
    await start_pair_at_once(site, start_on)
    status = await site.gateway.until(lambda s: "direct: true" in (replica_of(s, "p1")["reason"] or ""))
    row = replica_of(status, "p1")
    assert row["state"] != "serving"
    assert row["reason"].startswith("10.0.0.5 lies in 10.0.0.0/24, which this machine is connected to by eth0")
    await site.gateway.until_state("d1", "serving")
    assert [worker["worker_type"] for worker in await site.gateway.workers()] == ["decode"]
    refused = site.gateway.events("peer.refused")
    assert refused[0]["address"] == "10.0.0.5:8000"
    assert refused[0]["replica"] == "chat/p1"
    assert 'gateway_sidecar_peer_addresses{state="refused"} 1.0' in await metrics(site)
    assert site.space.ip("-4", "addr") == before
    front = await asyncio.create_subprocess_exec(
        *site.hosts["5"].enter, sys.executable, "-m", "tests.system.tcp_front",
        "10.0.0.5", "8000", str(site.gateway.socket("p1")), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert front.stdout is not None
    assert await front.stdout.readline() == b"ready\n"
    try:
        site.note("p1", "advertise: 10.0.0.5:8000\ndirect: true\n")
        status = await site.gateway.until_states({"p1": "serving", "d1": "serving"})
        assert replica_of(status, "p1")["direct"] is True
        assert url_of(await site.gateway.workers(), "prefill") == "http://10.0.0.5:8000"
        code, text = await site.chat()
        assert code == 200, text
        assert site.space.ip("-4", "addr") == before
        assert site.bridges() == []
        code, out, err = await site.gateway.cli("drain", "chat", "p1")
        assert code == 0, "connections to the engine itself are counted too"
        assert "safe to stop" in out
        assert "no replica would serve model tiny" in err
    finally:
        front.terminate()
        await front.wait()


async def start_pair_at_once(site: Site, start_on: StartOn) -> None:
    site.note("p1", "advertise: 10.0.0.5:8000\n")
    await start_on("5", "p1", role="prefill")
    await start_on("6", "d1", role="decode")


async def metrics(site: Site) -> str:
    async with (
        site.gateway.client() as client,
        client.get(f"http://127.0.0.1:{site.gateway.metrics_port}/metrics") as answer,
    ):
        return await answer.text()


async def test_a_killed_daemon_leaves_the_address_and_the_next_takes_it_up(site: Site, start_on: StartOn) -> None:
    """Same address, same nginx, and a stream that was in flight ends well."""
    await start_pair(site, start_on, token_interval_s=0.05)
    pid = peer_pid(site)
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(site.gateway, 60, started))
    await started.wait()
    await site.gateway.until_written(2)
    await site.gateway.kill()
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    await site.gateway.start()
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    assert (await stream).split()[-1] == "59"
    assert peer_pid(site) == pid
    assert start_ticks(pid) is not None
    assert site.gateway.events("worker.orphan") == []
    assert (await site.chat())[0] == 200


async def test_what_a_killed_daemon_left_of_a_replica_that_is_gone_is_removed(site: Site, start_on: StartOn) -> None:
    """Found by looking: no record tells of the second address, which the daemon did not live to use."""
    prefill, _ = await start_pair(site, start_on)
    pid = peer_pid(site)
    await site.gateway.kill()
    site.space.ip("addr", "add", "10.0.0.99/32", "dev", OURS)
    await prefill.stop()
    await site.gateway.start()
    await site.gateway.until_states({"d1": "serving"})
    await site.until_nothing_is_left()
    assert start_ticks(pid) is None


async def test_stopping_leaves_the_address_and_stopping_all_takes_it_away(site: Site, start_on: StartOn) -> None:
    """Like nginx and the routers: they outlive the daemon, and not the operator's wish."""
    await start_pair(site, start_on)
    assert await site.gateway.terminate() == 0
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    await site.gateway.start()
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    assert (await site.chat())[0] == 200
    code, out, _ = await site.gateway.cli("stop", "--all")
    assert (code, out) == (0, "stopped, with nginx and all routers\n")
    await site.until_nothing_is_left()


@pytest.mark.parametrize("by_root", [True, False])
async def test_stop_all_without_a_daemon_gives_addresses_back(site: Site, start_on: StartOn, by_root: bool) -> None:
    """Root does it as the daemon's user, who may be another, and keeps the one right that it takes; who has not got
    that right is told what is left."""
    assert (await site.gateway.cli("stop", "--all"))[0] == 0
    for path in (site.gateway.directory, *site.gateway.directory.rglob("*")):
        os.chown(path, UID, UID)
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    site.gateway.before = [*with_python(), *user, "--inh-caps=+net_admin", "--ambient-caps=+net_admin"]
    await site.gateway.start()
    await start_pair_at_once(site, start_on)
    for replica in ("p1", "d1"):
        site.gateway.socket(replica).chmod(0o777)
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    await site.gateway.kill()
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    before = with_python() if by_root else [*with_python(), *user, "--inh-caps=-all"]
    code, _, err = await site.gateway.cli("stop", "--all", before=before)
    if by_root:
        assert (code, err) == (0, "")
        await site.until_nothing_is_left()
    else:
        assert code == 1
        assert f"all is stopped, but addresses of replicas are still on {OURS}: " in err
        assert f"as root: ip link delete {OURS}" in err
        assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    assert not look_for_left(site.gateway.directory / "run", site.gateway.directory / "state")


async def test_an_address_or_its_nginx_that_is_taken_away_comes_back(site: Site, start_on: StartOn) -> None:
    """Level, not edge."""
    await start_pair(site, start_on)
    pid = peer_pid(site)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while not site.gateway.events("peer.exited") or len(site.gateway.events("peer.up")) < 2:
            await asyncio.sleep(0.02)
        assert peer_pid(site) != pid
        while (await site.chat())[0] != 200:
            await asyncio.sleep(0.02)
    site.space.ip("addr", "del", "10.0.0.5/32", "dev", OURS)
    await site.until_addresses("10.0.0.5/32")
    assert (await site.chat())[0] == 200


async def test_an_address_that_the_gateway_comes_to_need_is_given_back(site: Site, start_on: StartOn) -> None:
    """A route appears for it: the worker is out, the address is its owner's; when the route goes, both are back."""
    await start_pair(site, start_on)
    site.space.ip("link", "add", "other", "type", "bridge")
    site.space.ip("link", "set", "other", "up")
    site.space.ip("route", "add", "10.0.0.0/24", "dev", "other")
    status = await site.gateway.until(
        lambda s: "lies in 10.0.0.0/24" in (replica_of(s, "p1")["reason"] or ""), within_s=60
    )
    assert replica_of(status, "p1")["reason"].endswith("set direct: true, as this machine can reach it itself")
    await site.until_addresses()
    await site.gateway.until_workers(lambda workers: [w["worker_type"] for w in workers] == ["decode"])
    assert [row["address"] for row in site.gateway.events("peer.refused")] == ["10.0.0.5:8000"]
    site.space.ip("link", "del", "other")
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    code, text = await site.chat()
    assert code == 200, text
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]


async def test_the_address_of_a_tunnels_server_is_refused_before_and_after(site: Site, start_on: StartOn) -> None:
    """Though nothing is connected there: its path is down. A server of a replica that comes later counts, too."""
    site.note("p1", "advertise: 10.0.0.5:8000\n")
    await start_on("5", "p1", role="prefill")
    await site.gateway.until_state("p1", "serving")
    key = make_key(site.gateway.directory / "key")
    far = {"host": "10.0.0.5", "forward": "127.0.0.1:8000", "host_key": public_of(key), "key_file": str(key)}
    replica = "http://daemon/v1/services/chat/replicas/s1"
    async with site.gateway.session.put(replica, json={"ssh": far}) as answer:
        assert answer.status == 201, await answer.text()
    said = "10.0.0.5 is where the SSH server 10.0.0.5:22 of chat/s1 is, which the daemon itself has to reach"
    await site.gateway.until(lambda s: (replica_of(s, "p1")["reason"] or "").startswith(said))
    await site.until_addresses()
    await site.gateway.kill()
    await site.gateway.start()
    await site.gateway.until(lambda s: (replica_of(s, "p1")["reason"] or "").startswith(said))
    assert site.space.addresses(OURS) == []
    assert (await site.gateway.cli("replica", "remove", "chat", "s1"))[0] == 0
    await site.gateway.until_state("p1", "serving")
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]


async def test_a_drain_waits_for_what_is_in_flight_at_the_address(site: Site, start_on: StartOn) -> None:
    """A drained prefill engine keeps its address, so that `resume` brings it back at once."""
    site.note("r1", "advertise: 10.0.0.5:8000\n")
    here = await start_on("5", "r1", token_interval_s=0.5)
    await site.gateway.until_states({"r1": "serving"})
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(site.gateway, 160, started))
    await started.wait()
    code, _, err = await site.gateway.cli("drain", "chat", "r1", "--timeout", "0.5")
    assert code == 1
    assert re.search(r" connections? in flight", err)
    assert not stream.done()
    await here.behave(token_interval_s=0.01)
    code, _, _ = await site.gateway.cli("drain", "chat", "r1")
    assert code == 0
    assert here.process is not None
    stop(here.process.pid)
    try:
        assert (await stream).split()[-1] == "159", "nothing more is needed of the engine"
    finally:
        os.kill(here.process.pid, signal.SIGCONT)
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    assert (await site.gateway.cli("resume", "chat", "r1"))[0] == 0
    await site.gateway.until_states({"r1": "serving"})
    assert (await site.chat())[0] == 200


async def test_an_engine_that_is_restarted_gets_its_address_back(site: Site, start_on: StartOn) -> None:
    """The same URL, another engine: its worker is registered when the old one's is out and quiet."""
    prefill, _ = await start_pair(site, start_on)
    for _ in range(3):
        before = url_ids(await site.gateway.workers())
        await prefill.kill()
        site.gateway.socket("p1").unlink()
        prefill = await start_on("5", "p1", role="prefill")
        await site.gateway.until_workers(fresh(before))
        await site.gateway.until_states({"p1": "serving", "d1": "serving"})
        code, text = await site.chat()
        assert code == 200, text
    assert url_of(await site.gateway.workers(), "prefill") == "http://10.0.0.5:8000"


async def test_two_replicas_share_a_host_and_not_an_address(site: Site, start_on: StartOn) -> None:
    """Two engines of one machine, two ports; a third that claims a taken one waits, and says for whom."""
    for name, port in (("r1", 8000), ("r2", 8001), ("r3", 8001)):
        site.note(name, f"advertise: 10.0.0.5:{port}\n")
    first = await start_on("5", "r1")
    second = await start_on("5", "r2")
    await site.gateway.until_states({"r1": "serving", "r2": "serving"})
    await start_on("5", "r3")
    status = await site.gateway.until(
        lambda s: any("still used by chat/r2" in (r["reason"] or "") for r in s["services"][0]["replicas"])
    )
    assert replica_of(status, "r3")["state"] != "serving"
    await first.stop()
    await site.gateway.until_state("r2", "serving")
    await second.stop()
    await site.gateway.until_states({"r3": "serving"})
    async with asyncio.timeout(60):
        while site.bridges() != ["10.0.0.5:8001"]:
            await asyncio.sleep(0.02)
    assert site.space.addresses(OURS) == ["10.0.0.5/32"]
    assert (await site.chat())[0] == 200


async def test_a_replica_that_is_advertised_anew_moves(site: Site, start_on: StartOn) -> None:
    """Another address is another worker; the old one is given back."""
    await start_pair(site, start_on)
    site.hosts["5"].ip("addr", "add", "10.0.0.55/24", "dev", "eth0")
    site.note("p1", "advertise: 10.0.0.55:9000\n")
    workers = await site.gateway.until_workers(
        lambda ws: sorted(w["url"] for w in ws if w["worker_type"] == "prefill") == ["http://10.0.0.55:9000"],
        within_s=60,
    )
    assert len(workers) == 2
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    async with asyncio.timeout(60):
        while (site.bridges(), site.space.addresses(OURS)) != (["10.0.0.55:9000"], ["10.0.0.55/32"]):
            await asyncio.sleep(0.02)
    code, text = await site.chat()
    assert code == 200, text


async def test_the_address_serves_the_gateway_alone(site: Site, start_on: StartOn) -> None:
    """Somebody who can send packets to the gateway does not reach the engines by it."""
    await start_pair(site, start_on)
    site.lan.plug(site.space, "10.9.9.1/24")
    site.hosts["7"].ip("addr", "flush", "dev", "eth0")
    site.hosts["7"].ip("addr", "add", "10.9.9.2/24", "dev", "eth0")
    site.hosts["7"].ip("route", "add", "10.0.0.5/32", "via", "10.9.9.1")
    code = (
        "import socket; s = socket.create_connection(('10.0.0.5', 8000), 60);"
        " s.sendall(b'GET /health HTTP/1.0\\r\\n\\r\\n'); print(s.recv(100))"
    )
    process = await asyncio.create_subprocess_exec(
        *site.hosts["7"].enter, sys.executable, "-c", code,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert out in (b"", b"b''\n"), "accepted, and closed without an answer"
    assert out or b"ConnectionResetError" in err


async def test_vllm_with_mooncake_is_sent_to_the_advertised_address(site: Site, start_on: StartOn) -> None:
    """By contract: what SMG makes of URL, `kv_*` fields and bootstrap port is what the decode engine is asked with."""
    kv = {"kv_connector": "MooncakeConnector"}
    site.note("p1", "advertise: 10.0.0.5:8000\nbootstrap_port: 9001\n")
    prefill = await start_on("5", "p1", EngineKind.VLLM_GRPC, role="prefill", kv_engine_id="engine-5", **kv)
    decode = await start_on("6", "d1", EngineKind.VLLM_GRPC, role="decode", **kv)
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    code, text = await site.chat()
    assert code == 200, text
    (asked_first,) = [json.loads(body["kv_transfer_params_json"]) for body in await prefill.requests()]
    (asked_then,) = [json.loads(body["kv_transfer_params_json"]) for body in await decode.requests()]
    assert asked_first["do_remote_decode"] is True
    assert asked_then["do_remote_prefill"] is True
    assert asked_then["remote_bootstrap_addr"] == "http://10.0.0.5:9001"
    assert asked_then["remote_engine_id"] == "engine-5"
    assert asked_then["transfer_id"] == asked_first["transfer_id"]


async def test_vllm_with_nixl_needs_no_address(site: Site, start_on: StartOn) -> None:
    """By contract: the prefill engine's own answer says where it is, and SMG hands it on as it stands."""
    prefill = await start_on("5", "p1", EngineKind.VLLM_GRPC, role="prefill", kv_engine_id="engine-5")
    decode = await start_on("6", "d1", EngineKind.VLLM_GRPC, role="decode")
    await site.gateway.until_states({"p1": "serving", "d1": "serving"})
    code, text = await site.chat()
    assert code == 200, text
    (asked_first,) = [json.loads(body["kv_transfer_params_json"]) for body in await prefill.requests()]
    (asked_then,) = [json.loads(body["kv_transfer_params_json"]) for body in await decode.requests()]
    assert asked_first["do_remote_decode"] is True
    assert asked_then["remote_engine_id"] == "engine-5"
    assert asked_then["remote_block_ids"] == [1, 2]
    assert site.bridges() == []


async def test_each_role_scales_by_itself_without_a_failed_request(site: Site, start_on: StartOn) -> None:
    """Grown, shrunk and replaced under load: decode engines, then the prefill engine that all of them fetch from."""
    first, decode = await start_pair(site, start_on)
    load = Load(site.gateway, clients=4)
    await load.answered(10)
    await start_on("7", "d2", role="decode")
    await site.gateway.until_state("d2", "serving")
    await load.answered(10)
    await drained(site, "d1")
    await decode.stop()
    await load.answered(10)
    site.note("p2", "advertise: 10.0.0.6:8000\n")
    second = await start_on("6", "p2", role="prefill")
    await site.gateway.until_state("p2", "serving")
    await load.answered(10)
    await drained(site, "p1")
    assert site.space.addresses(OURS) == ["10.0.0.5/32", "10.0.0.6/32"]
    await first.stop()
    await load.answered(20)
    assert (await load.stop()).keys() == {"200"}
    await site.gateway.until_states({"p2": "serving", "d2": "serving"})
    assert sum((await second.seen())["transfers"].values()) > 0
    await site.until_addresses("10.0.0.6/32")


async def drained(site: Site, replica: str) -> None:
    code, _, err = await site.gateway.cli("drain", "chat", replica)
    assert (code, err) == (0, "")
