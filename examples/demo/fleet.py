"""The acts of the demo with several gateways: one inventory in a real etcd, and a real HAProxy in front."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from examples.demo.chat import Failure, Load, question
from examples.demo.gateway import BRIDGES, DemoFailed, Gateway, free_block, new_directory, replicas_of
from examples.demo.outside import Balancer, Etcd
from examples.demo.show import bin_directory_here
from examples.simulated.fleet import Fleet
from gateway_sidecar.api.models import Status

MODEL = "tiny"
_TOKEN_S = 0.04
_ENGINES = {"r1": "sglang-http", "r2": "vllm-grpc", "r3": "vllm-http", "r4": "trtllm-grpc"}
_LATE = "r5"
_CLIENTS, _WITHOUT_STREAM = 8, 3
_ANSWERS, _ENOUGH = 40, 2
_LEASE_S = 5  # the shortest: a visitor does not wait for a dead gateway
_LEAVE = {"quiet_s": 3.0, "balancer_s": 30.0, "timeout_s": 60.0}  # HAProxy notices within 2 s
_PATIENCE_S = 60.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of chats through HAProxy. cut: streams that a gateway which was killed had begun to answer."""

    answered: int
    failed: Sequence[Failure]
    cut: Sequence[Failure]


class FleetShow:
    """One performance with so many gateways, from the first engine to the last."""

    def __init__(self, gateways: int) -> None:
        self.directory = new_directory()
        port, self._bridges = free_block(), free_block()
        self._etcd = Etcd(self.directory, port, port + 1)
        self._gateways: dict[str, Gateway] = {}
        for number in range(1, gateways + 1):
            self._gateways[f"gw-{number}"] = self._gateway(number)
        addresses = {name: f"127.0.0.1:{each.ports['chat']}" for name, each in self._gateways.items()}
        self._balancer = Balancer(self.directory, port + 2, addresses)
        self._engines = Fleet()
        self._numbers = itertools.count(1)
        self._killed_at = 0.0

    # -- parts of it, for figures

    async def begin(self) -> list[str]:
        """All runs, and the engines serve at every gateway; the gateways' names. Raises DemoFailed."""
        await self._start()
        await self._put(next(iter(self._gateways)))
        return list(self._gateways)

    async def kill(self, name: str) -> Outcome:
        """A gateway loses its power under load, and HAProxy finds out. Raises DemoFailed."""
        outcomes: list[Outcome] = []
        async with self._chats(outcomes, killed=name) as load:
            await load.more(_ANSWERS)
            while (in_flight := await self._balancer.in_flight(name)) < _ENOUGH:
                await asyncio.sleep(_LOOK_S)
            print(f"  {name} has {in_flight} requests in flight at that moment")
            self._killed_at = time.monotonic()
            await self._gateways[name].power_off()
            await self._balancer.until(lambda states: states[name] == "DOWN", f"HAProxy finds {name} down")
            print(f"  HAProxy sends it nothing more after {time.monotonic() - self._killed_at:.1f} s")
            await load.more(_ANSWERS)
        return outcomes[0]

    async def bring_back(self, name: str) -> None:
        """It starts again, and serves. Raises DemoFailed."""
        began = time.monotonic()
        await self._gateways[name].start()
        await self._serve(name, *(engine.spec.name for engine in self._engines))
        await self._balancer.until(lambda states: states[name] == "UP", f"HAProxy finds {name} up")
        print(f"  {name} serves again after {time.monotonic() - began:.1f} s", flush=True)

    def _gateway(self, number: int) -> Gateway:
        """All have the same bridge ports, as on machines of their own; here each has them on addresses of its own."""
        directory = self.directory / f"gw-{number}"
        directory.mkdir()
        bridges = {
            "host": f"127.0.{number}.1", "grpc_host": f"127.0.{number}.2",
            "ports": f"{self._bridges}-{self._bridges + BRIDGES - 1}",
        }  # fmt: skip
        etcd = {"endpoints": [self._etcd.endpoint]}
        store = {"gateway": f"gw-{number}", "lease_s": _LEASE_S, "etcd": etcd}
        return Gateway("smg", ("chat",), directory, bridges=bridges, store=store, leave=_LEAVE)

    async def run(self) -> None:
        """All acts, in order. Raises DemoFailed."""
        first, *_, last = self._gateways
        await self._start()
        await self._put(first)
        await self._drain(last)
        await self._kill(last)
        await self._leave(first)
        await self._upgrade(first)

    # -- the acts

    async def _start(self) -> None:
        self._act(f"etcd, {len(self._gateways)} gateways that share it, and HAProxy in front of them")
        began = time.monotonic()
        await self._etcd.run()
        await asyncio.gather(*(gateway.start() for gateway in self._gateways.values()))
        for name in self._gateways:
            await self._until(name, lambda status: bool(status["ready"]), "it is ready")
            print(f"  {name}  {self._gateways[name].url('chat')}")
        print(f"  ready after {time.monotonic() - began:.1f} s; clients ask HAProxy at {self._balancer.url}")

    async def _put(self, first: str) -> None:
        self._act(f"Engines start, are put at {first} alone, and serve at every gateway")
        for name, kind in _ENGINES.items():
            await self._add(first, name, kind)
        began = time.monotonic()
        await self._all_serve(*_ENGINES)
        print(f"  all serve at every gateway {time.monotonic() - began:.2f} s later")
        await self._balancer.run()
        await self._cli(first, "status", "--fleet")

    async def _drain(self, last: str) -> None:
        self._act("A drain means every gateway: r1 may be stopped when all of them say so")
        async with self._load():
            await self._cli(last, "drain", "chat", "r1", "--timeout", "60")
            await self._engines.stop("r1")
            await self._cli(last, "replica", "remove", "chat", "r1", "--drain", "60")
            await self._all_serve("r2", "r3", "r4")

    async def _kill(self, last: str) -> None:
        self._act(f"{last} is killed: daemon, nginx and router at once, as if its machine had lost its power")
        outcome = await self.kill(last)
        self._tell(outcome)
        told = f"{len(outcome.cut)} were streams that had begun, and were cut"
        print(f"  of the requests in flight at {last}, {told}", flush=True)
        first = next(iter(self._gateways))
        await self._until(first, lambda status: last not in _others(status), f"the lease of {last} ends")
        await self._add(first, _LATE, "sglang-http")
        await self._cli(first, "status", "--fleet")
        print(f"  {last} starts again, and has {_LATE}, which was put meanwhile:")
        async with self._load():
            await self.bring_back(last)
            await self._cli(last, "replica", "remove", "chat", _LATE, "--drain", "60")
            await self._engines.stop(_LATE)

    async def _leave(self, first: str) -> None:
        self._act(f"{first} leaves, and no client notices")
        async with self._load() as load:
            await self._left(first)
            await load.more(_ANSWERS)
        await self._cli(next(name for name in self._gateways if name != first), "status", "--fleet")

    async def _upgrade(self, first: str) -> None:
        self._act(f"A rolling upgrade: {first} starts again, and then each other gateway leaves and starts again")
        async with self._load():
            await self.bring_back(first)
            for name in self._gateways:
                if name != first:
                    await self._left(name)
                    await self.bring_back(name)

    # -- what they have in common

    def _act(self, title: str) -> None:
        print(f"\n== {next(self._numbers)}. {title}", flush=True)

    async def _add(self, gateway: str, replica: str, kind: str) -> None:
        socket = self.directory / f"{replica}.sock"
        spec = {"name": replica, "kind": kind, "socket": socket, "model": MODEL, "token_interval_s": _TOKEN_S}
        await self._engines.start({"grace_s": 0.2, **spec})
        await self._cli(gateway, "replica", "add", "chat", replica, "--socket", str(socket), "--wait")

    async def _left(self, name: str) -> None:
        await self._cli(name, "leave")
        await self._gateways[name].left()

    async def _all_serve(self, *replicas: str) -> None:
        for name in self._gateways:
            await self._serve(name, *replicas)

    async def _serve(self, name: str, *replicas: str) -> None:
        """Waits until just these replicas serve at a gateway."""
        wanted = dict.fromkeys(replicas, "serving")

        def serve(status: Status) -> bool:
            return {replica: row["state"] for (_, replica), row in replicas_of(status).items()} == wanted

        await self._until(name, serve, f"{', '.join(replicas)} serve")

    async def _until(self, name: str, condition: Callable[[Status], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while (status := await self._gateways[name].status()) is None or not condition(status):
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise DemoFailed(f"{name}: {what}: not within {_PATIENCE_S:g} s") from None

    @asynccontextmanager
    async def _load(self) -> AsyncIterator[Load]:
        """Clients of HAProxy meanwhile. None may fail."""
        outcomes: list[Outcome] = []
        async with self._chats(outcomes) as load:
            yield load
        self._tell(outcomes[0])

    @asynccontextmanager
    async def _chats(self, outcomes: list[Outcome], *, killed: str | None = None) -> AsyncIterator[Load]:
        """Clients of HAProxy meanwhile; at the end what came of it. killed: the gateway that is killed meanwhile."""
        clients = {"clients": _CLIENTS, "without_stream": _WITHOUT_STREAM}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
            Load(session, self._balancer.url, MODEL, **clients) as load,
        ):
            yield load
        cut = [it for it in load.failures if it.kind == "cut" and it.gateway == killed and it.began < self._killed_at]
        outcomes.append(Outcome(load.answered, [it for it in load.failures if it not in cut], cut))

    def _tell(self, outcome: Outcome) -> None:
        """Raises DemoFailed if chats failed."""
        failed = outcome.failed
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(it.kind for it in failed).items())
        print(f"  through HAProxy: {outcome.answered} chats answered, {len(failed)} failed{kinds and f': {kinds}'}")
        if failed or not outcome.answered:
            raise DemoFailed(f"chats failed: {failed[:3] or 'none was answered'}")

    async def _cli(self, gateway: str, *arguments: str) -> None:
        print(f"  {gateway} $ gateway-sidecar {' '.join(arguments)}", flush=True)
        for line in (await self._gateways[gateway].cli(*arguments)).splitlines():
            print(f"    {line}" if line else "", flush=True)

    # -- the end

    def what_next(self) -> str:
        """Commands to try while the demo runs, from the directory it was started in."""
        sidecar = f"{bin_directory_here()}/gateway-sidecar"
        body = json.dumps(question(MODEL, 20), separators=(",", ":"))
        return f"""
Try, in another terminal, from this directory; each gateway has its own configuration beside this one:

  export GATEWAY_SIDECAR_CONFIG={self._gateways["gw-1"].config}
  {sidecar} status --fleet
  {sidecar} drain chat r2
  {sidecar} resume chat r2
  curl -N {self._balancer.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'
  etcdctl --endpoints={self._etcd.endpoint} get --prefix --keys-only /gateway-sidecar/

Running; Ctrl-C ends it all.
"""

    def last_words(self) -> str:
        """The ends of the gateways' logs."""
        return "\n".join(f"{name}:\n{gateway.last_words(5)}" for name, gateway in self._gateways.items())

    async def close(self) -> None:
        """Ends all that was started."""
        await self._balancer.stop()
        await asyncio.gather(*(gateway.stop() for gateway in self._gateways.values()))
        await self._engines.stop_all()
        await self._etcd.stop()

    def remove(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _others(status: Status) -> list[str]:
    """The gateways that one of them knows beside itself."""
    store = status["store"]
    return [] if store is None else [other["name"] for other in store["others"]]
