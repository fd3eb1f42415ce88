"""Gateways of one fleet on machines of their own: network namespaces, each with a 127.0.0.1, and one for an etcd."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.simulated import SimulatedEngine
from tests.etcd import Etcd, running
from tests.namespaces import Lan, namespaces
from tests.system.gateway import Gateway, service_of

LATE_S = 120.0
PROMPTS = 24


class Fleet:
    """Its gateways; what is put is put at the first one."""

    def __init__(self, etcd: Etcd, gateways: list[Gateway]) -> None:
        self.etcd, self.gateways = etcd, gateways

    async def put(self, replica: str, socket: Path) -> None:
        url = f"http://daemon/v1/services/chat/replicas/{replica}"
        async with self.gateways[0].session.put(url, json={"socket": str(socket)}) as answer:
            assert answer.status == 201, await answer.text()

    async def until_serving(self, *replicas: str) -> None:
        for gateway in self.gateways:
            await gateway.until_states(dict.fromkeys(replicas, "serving"), within_s=LATE_S)

    async def until_in_mesh(self) -> None:
        """Each sees all others."""
        names = [gateway.settings["store"]["gateway"] for gateway in self.gateways]
        for gateway, name in zip(self.gateways, names, strict=True):
            await until_mesh(gateway, f"with {', '.join(sorted(set(names) - {name}))}")


@contextmanager
def on_machines(make: Callable[..., Gateway], count: int, router: Mapping[str, Any]) -> Iterator[Fleet]:
    """So many gateways, not started yet. make: makes one, and ends it in the end."""
    with namespaces(count + 2) as (switch, store, *hosts):
        lan = Lan(switch)
        lan.plug(store, "192.0.2.1/24")
        with running(before=store.enter, host="192.0.2.1") as etcd:
            gateways: list[Gateway] = []
            for number, space in enumerate(hosts, 1):
                lan.plug(space, f"192.0.2.{10 + number}/24")
                of_etcd = {"endpoints": [etcd.endpoint], "timeout_s": 10.0}
                settings = {"gateway": f"gw-{number}", "read_every_s": 1.0, "lease_s": 60, "etcd": of_etcd}
                gateway = make(store=settings)
                gateway.namespace = space
                service = {**gateway.service("chat"), "replicas": {}, "router": dict(router)}
                gateway.settings |= {"services": [service]}
                if gateways:
                    gateway.settings |= {"bridges": gateways[0].settings["bridges"]}
                gateways.append(gateway)
            yield Fleet(etcd, gateways)


async def until_mesh(gateway: Gateway, words: str | None) -> None:
    await gateway.until(lambda status: service_of(status)["router"]["mesh"] == words, within_s=LATE_S)


async def ask(gateway: Gateway, prompt: str = "x") -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    async with gateway.client() as session, session.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def who_answers(gateway: Gateway, engines: Mapping[str, SimulatedEngine], prompt: str) -> str:
    """The replica that a prompt met."""
    before = {name: it.ledger.received for name, it in engines.items()}
    assert await ask(gateway, prompt) == 200
    [name] = [name for name, it in engines.items() if it.ledger.received != before[name]]
    return name


def prompts(seed: int = 7) -> list[str]:
    """Which have nothing in common."""
    draw = random.Random(seed)
    return [" ".join(f"word{draw.randrange(99999)}" for _ in range(80)) for _ in range(PROMPTS)]
