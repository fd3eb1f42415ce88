"""What all that happens to a fleet happens to: its machines, and the history that is written down meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.chaos.fleet.gateways import FleetGateway
from tests.chaos.fleet.history import Fault, FleetHistory, Ordered
from tests.chaos.fleet.network import network
from tests.chaos.fleet.parts import Member, Node, balancer
from tests.chaos.fleet.schedule import MEMBERS, NODES

TRIED_FOR_S = 240.0
PAUSE_S = 0.5
_SAID = 300


class Ground:
    """The machines of one fleet, from the first namespace to the last process."""

    def __init__(self, seed: int, gateways: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))  # Short, because a Unix socket's path is.
        self._namespaces = ExitStack()
        self.network = self._namespaces.enter_context(network(gateways, len(MEMBERS), len(NODES)))
        self.members = {n: Member(self.directory, self.network, n, len(MEMBERS)) for n in MEMBERS}
        endpoints = [member.endpoint for member in self.members.values()]
        self._gateways = {
            n: FleetGateway(self.directory, self.network, n, endpoints) for n in range(1, gateways + 1)
        }  # fmt: skip
        self.nodes = {n: Node(self.directory, self.network, n) for n in NODES}
        self.balancer = balancer(self.directory, self.network, [it.name for it in self.gateways])
        self.history = FleetHistory(seed, tuple(it.name for it in self.gateways))

    @property
    def gateways(self) -> list[FleetGateway]:
        """All of them, in the order of their names."""
        return list(self._gateways.values())

    def gateway(self, number: int) -> FleetGateway:
        """The one of this number."""
        return self._gateways[number]

    def next_to(self, number: int) -> int:
        """The number of the next gateway."""
        return number % len(self._gateways) + 1

    async def begin(self) -> None:
        """Starts all but the load and the engines."""
        await asyncio.gather(*(member.begin() for member in self.members.values()))
        await asyncio.gather(*(member.until_well() for member in self.members.values()))
        await asyncio.gather(*(node.begin() for node in self.nodes.values()))
        await asyncio.gather(*(gateway.start() for gateway in self.gateways))

    async def end(self) -> None:
        """Ends all that was started, and the networks. What was written stays."""
        await self.balancer.stop()
        await asyncio.gather(*(gateway.close() for gateway in self.gateways))
        await asyncio.gather(*(node.end() for node in self.nodes.values()))
        await asyncio.gather(*(member.stop() for member in self.members.values()))
        self._namespaces.close()

    # -- what is done and written down

    def fault(
        self,
        kind: str,
        began: float,
        *,
        gateway: str | None = None,
        node: int | None = None,
        engine: str | None = None,
        how: str = "",
    ) -> None:
        """Writes down a fault that is over now."""
        self.history.faults.append(Fault(kind, began, time.monotonic(), gateway, node, engine, how))

    async def order(
        self, what: str, gateway: FleetGateway, method: str, path: str, body: object = None, **query: str
    ) -> tuple[int | None, Any]:
        """One request to a gateway's admin API, which is written down."""
        began = time.monotonic()
        code, answer = await gateway.call(method, path, body, **query)
        said = "" if code is not None and code < 300 else str(answer)[:_SAID]
        self.history.ordered.append(Ordered(what, gateway.name, began, time.monotonic(), code, said))
        return code, answer

    async def order_until(
        self,
        codes: tuple[int, ...],
        what: str,
        number: int,
        method: str,
        path: str,
        body: object = None,
        *,
        elsewhere: bool = True,
    ) -> tuple[int, Any]:
        """The same until it is done, at one gateway after the other unless it has to be this one. Raises OSError."""
        end = time.monotonic() + TRIED_FOR_S
        while time.monotonic() < end:
            code, answer = await self.order(what, self.gateway(number), method, path, body)
            if code in codes:
                assert code is not None
                return code, answer
            number = self.next_to(number) if elsewhere else number
            await asyncio.sleep(PAUSE_S)
        raise OSError(f"{what}: no gateway did it within {TRIED_FOR_S:g} s")
