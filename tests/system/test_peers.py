"""Prefill and decode engines on a network of their own, which the gateway is no part of: they find each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio

from examples.simulated import EngineKind
from tests.namespaces import Lan, Namespace, namespaces, why_not
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway
from tests.system.engine_process import EngineProcess
from tests.system.gateway import Gateway, replica_of

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

OURS = "gwsc0"
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

    async def until_nothing_is_left(self) -> None:
        """No interface, no address, no nginx."""
        async with asyncio.timeout(10):
            while OURS in self.space.ip("link") or self.bridges():
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def site(make_gateway: MakeGateway) -> AsyncIterator[Site]:
    """The gateway runs; `5`, `6` and `7` are hosts at 10.0.0.5 and so on."""
    with ExitStack() as stack:
        spaces = stack.enter_context(namespaces(5))
        gateway = make_gateway()
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
        defaults = {"transfer_timeout_s": 2, "bootstrap_listen": "0.0.0.0"}
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
    assert by_type["decode"].startswith(f"{scheme}://127.0.0.1:")
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
