"""The real Keepalived, with the configuration of the guide: its address is at a gateway that is ready."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import aiohttp
import pytest

from examples.simulated import SimulatedEngine
from tests.keepalived import PROGRAM, keepalived
from tests.namespaces import Lan, Namespace, namespaces, why_not
from tests.system.conftest import MakeGateway, StartEngine

WHY_NOT = why_not()
ADDRESS = "192.0.2.10"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.skipif(PROGRAM is None, reason="keepalived is not installed; `make test` installs it"),
]


async def until_at(space: Namespace | None) -> None:
    assert space is not None
    async with asyncio.timeout(60):
        while f"{ADDRESS}/24" not in space.addresses("eth0"):
            await asyncio.sleep(0.05)


async def test_the_shared_address_moves_to_another_gateway_while_one_leaves(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """It is gone from the one that leaves while that still serves, and the other answers at it."""
    one, other = make_gateway(), make_gateway()
    port = one.ports["chat"]
    with ExitStack() as stack:
        switch, client, *hosts = stack.enter_context(namespaces(4))
        lan = Lan(switch)
        lan.plug(client, "192.0.2.1/24")
        engines: list[SimulatedEngine] = []
        for number, (gateway, space) in enumerate(zip((one, other), hosts, strict=True), 11):
            gateway.namespace = space
            lan.plug(space, f"192.0.2.{number}/24")
            service = {**gateway.service("chat"), "listen": f"0.0.0.0:{port}", "router": {"type": "none"}}
            gateway.ports["chat"] = port
            gateway.configure(services=[service], leave={"quiet_s": 5.0, "balancer_s": 60.0, "timeout_s": 120.0})
            engines.append(await engine(gateway.socket("r1")))
        await asyncio.gather(one.start(), other.start())
        for gateway in (one, other):
            await gateway.until_states({"r1": "serving"})
        programs = [await keepalived(one.directory, hosts[0], port, 100)]
        try:
            await until_at(one.namespace)
            programs.append(await keepalived(other.directory, hosts[1], port, 90))
            connector = aiohttp.TCPConnector(socket_factory=client.socket, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                url = f"http://{ADDRESS}:{port}/v1/chat/completions"
                async with session.post(url, json=BODY) as answer:
                    assert answer.status == 200
                engines[0].behave(hang=True)  # It serves for as long as this request is not answered.
                served = asyncio.create_task(session.post(f"http://192.0.2.11:{port}/v1/chat/completions", json=BODY))
                await engines[0].until(lambda seen: seen.calls["/v1/chat/completions"] == 2)
                leaving = asyncio.create_task(one.cli("leave"))
                await until_at(other.namespace)
                assert one.namespace is not None
                async with asyncio.timeout(60):
                    while f"{ADDRESS}/24" in one.namespace.addresses("eth0"):
                        await asyncio.sleep(0.05)
                assert not leaving.done()
                async with session.post(url, json=BODY) as answer:
                    assert answer.status == 200
                engines[0].behave(hang=False)
                async with await served as answer:
                    assert answer.status == 200
                assert (await leaving)[0] == 0
                async with session.post(url, json=BODY) as answer:
                    assert answer.status == 200
        finally:
            for program in programs:
                program.terminate()
                await program.wait()
