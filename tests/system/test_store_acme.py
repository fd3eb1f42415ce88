"""Certificates by ACME of several real gateways: a real etcd, and pebble, a real ACME server, behind a balancer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509

from tests.etcd import Etcd
from tests.pebble import Pebble, needs_pebble
from tests.system.conftest import Start
from tests.system.gateway import Gateway, only_ports_differ
from tests.system.test_acme import NAME, handshake, names_of, orders_of, problem_of

pytestmark = [needs_pebble, pytest.mark.timeout(300)]

_LATE_S = 90.0
_LONG_LEASE_S = 30
"""Where no gateway is to lose its order: a busy machine may keep it from the store for seconds."""
_SECRET = "PRIVATE KEY"


class Balancer:
    """Port 80 of the name: it leads the ACME server to a gateway that does not order, if there is one."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.gateways: dict[str, Gateway] = {}
        self.asked: list[tuple[str, str]] = []
        """Who ordered, and who was asked."""

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def orderer(self) -> str | None:
        """The gateway that orders. Blocks."""
        text = self._etcd.ctl("get", "--prefix", "/test", "--keys-only=false", "--print-value-only=false")
        lines = text.splitlines()
        at = next((number for number, line in enumerate(lines) if line.endswith("tls/orderer")), None)
        return None if at is None else str(json.loads(lines[at + 1])["gateway"])

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            orderer = await asyncio.to_thread(self.orderer)
            if orderer is not None:
                other = next((name for name in self.gateways if name != orderer), orderer)
                self.asked.append((orderer, other))
                far, back = await asyncio.open_connection("127.0.0.1", http_port(self.gateways[other]))
                await asyncio.gather(_carry(reader, back), _carry(far, writer))
        writer.close()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
    target.close()


def http_port(gateway: Gateway) -> int:
    return gateway.ports["chat"] + 7


def tls_port(gateway: Gateway) -> int:
    return gateway.ports["chat"] + 6


def frontend(gateway: Gateway) -> dict[str, Any]:
    return {
        "listen": [f"127.0.0.1:{tls_port(gateway)}"],
        "redirect": [f"127.0.0.1:{http_port(gateway)}"],
        "server_names": [NAME],
        "tls": {"acme": True},
    }


async def until_served(
    gateway: Gateway, root: str, condition: Callable[[x509.Certificate], bool] = lambda _: True
) -> x509.Certificate:
    async with asyncio.timeout(_LATE_S):
        while True:
            with suppress(OSError):
                found = await asyncio.to_thread(handshake, tls_port(gateway), NAME, root)
                if condition(found):
                    return found
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def balancer(etcd: Etcd) -> AsyncIterator[Balancer]:
    one = Balancer(etcd)
    yield one
    await one.close()


async def test_a_certificate_is_ordered_once_and_a_gateway_that_did_not_order_answers(
    start_in_fleet: Start, etcd: Etcd, balancer: Balancer, tmp_path: Path
) -> None:
    """Both serve it. A third gateway has it as soon as it comes; nobody is asked for another one."""
    pebble = Pebble(tmp_path / "pebble", await balancer.start(), nonces_refused=10)
    try:
        pebble.start()
        root = pebble.root()
        options = {"acme": pebble.settings, "frontend": frontend, "lease_s": _LONG_LEASE_S}
        started = await asyncio.gather(*(start_in_fleet(name, etcd, **options) for name in "ab"))
        balancer.gateways.update(zip("ab", started, strict=True))
        a, b = balancer.gateways.values()
        first = await until_served(a, root)
        assert names_of(first) == {NAME}
        assert await until_served(b, root, lambda found: found == first) == first
        assert pebble.issued == 1
        assert balancer.asked
        assert all(orderer != asked for orderer, asked in balancer.asked)
        for gateway in (a, b):
            await gateway.until(only_ports_differ)
        async with asyncio.timeout(_LATE_S):  # A certificate is served a moment before it is counted.
            while not any(gateway.events("acme.issued") for gateway in (a, b)):
                await asyncio.sleep(0.05)
        orders = [await orders_of(gateway) for gateway in (a, b)]
        assert sorted(map(str, orders)) == [str({"issued": 1.0}), str({})]
        c = await start_in_fleet("c", etcd, **options)
        assert await until_served(c, root) == first
        await c.until(only_ports_differ)
        accounts = {
            file.read_text()
            for gateway in (a, b, c)
            for file in (gateway.directory / "state" / "acme").glob("account-*.json")
        }
        assert (len(accounts), pebble.issued) == (1, 1)
        async with asyncio.timeout(_LATE_S):
            while await asyncio.to_thread(balancer.orderer) is not None:
                await asyncio.sleep(0.05)
        for gateway in (a, b, c):
            assert _SECRET not in gateway.log()
            assert _SECRET not in json.dumps(await gateway.status())
            async with gateway.session.get("http://daemon/v1/store/certificates") as answer:
                assert (await answer.json())["certificates"] == []
    finally:
        pebble.close()


async def test_a_gateway_that_is_killed_in_mid_order_leaves_it_to_the_next(
    start_in_fleet: Start, etcd: Etcd, balancer: Balancer, tmp_path: Path
) -> None:
    """Once its lease has ended; it takes what was ordered when it comes back."""
    pebble = Pebble(tmp_path / "pebble", await balancer.start())
    try:
        pebble.start()
        root = pebble.root()
        started = await asyncio.gather(*(start_in_fleet(name, etcd) for name in "ab"))
        balancer.gateways.update(zip("ab", started, strict=True))
        for gateway in started:
            gateway.settings["services"][0]["frontend"] = frontend(gateway)
            gateway.configure(acme=pebble.settings)
        with pebble.frozen():  # Whoever orders waits for its first answer for 30 s.
            await asyncio.gather(*(gateway.cli("reload") for gateway in started))
            async with asyncio.timeout(_LATE_S):
                while (first := await asyncio.to_thread(balancer.orderer)) is None:
                    await asyncio.sleep(0.05)
            killed, other = balancer.gateways[first], balancer.gateways["b" if first == "a" else "a"]
            await other.until(lambda status: f"gateway '{first}' orders it" in problem_of(status), within_s=_LATE_S)
            await killed.kill()
            del balancer.gateways[first]  # Its nginx serves on, and knows of no further token.
            began = asyncio.get_running_loop().time()
        found = await until_served(other, root)
        took_s = asyncio.get_running_loop().time() - began
        print(f"from the kill to the certificate at the next gateway: {took_s:.1f} s, of which 5 are the lease")
        await other.until(lambda status: not problem_of(status))
        assert await orders_of(other, told="acme.issued") == {"issued": 1.0}
        await killed.start()
        assert await until_served(killed, root) == found
        assert await orders_of(killed) == {}
    finally:
        pebble.close()


async def test_a_renewal_waits_for_the_store_and_what_is_served_stays(
    start_in_fleet: Start, etcd: Etcd, balancer: Balancer, tmp_path: Path
) -> None:
    """Of 60 s, it is renewed after 40. It says that it waits, and is made when the store is back; by one gateway."""
    pebble = Pebble(tmp_path / "pebble", await balancer.start(), validity_s=60)
    try:
        pebble.start()
        root = pebble.root()
        options = {"acme": pebble.settings, "frontend": frontend, "lease_s": _LONG_LEASE_S}
        for name in "ab":
            balancer.gateways[name] = await start_in_fleet(name, etcd, **options)
        a, b = balancer.gateways.values()
        first = await until_served(a, root)
        assert await until_served(b, root) == first
        for gateway in (a, b):
            await gateway.until(lambda status: not problem_of(status))
        etcd.kill()
        for gateway in (a, b):
            await gateway.until(lambda status: "it is due, and waits" in problem_of(status), within_s=_LATE_S)
            assert "what was there before stays in force" in problem_of(await gateway.status())
            assert await until_served(gateway, root) == first
            assert gateway.events("acme.waits")
        assert pebble.issued == 1
        etcd.start()
        second = await until_served(a, root, lambda found: found != first)
        assert await until_served(b, root, lambda found: found != first) == second
        assert pebble.issued == 2
    finally:
        pebble.close()
