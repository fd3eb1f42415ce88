"""A real fleet on which a schedule is played under load, and the history that is written down meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import aiohttp

from tests.chaos.engines import read_journal
from tests.chaos.events import Event
from tests.chaos.fleet.check import MUSTER_S, SETTLE_S, serves
from tests.chaos.fleet.events import Round, Schedule
from tests.chaos.fleet.gateway_faults import GatewayFaults
from tests.chaos.fleet.gateways import SERVICE, FleetGateway, rows_of
from tests.chaos.fleet.ground import Ground
from tests.chaos.fleet.history import ADDRESS, HAPROXY, FleetHistory, Holders, Muster, Rest, View
from tests.chaos.fleet.keys import Keys, secret_of
from tests.chaos.fleet.network import CLIENTS, SHARED_ADDRESS
from tests.chaos.fleet.parts import SERVICE_PORT
from tests.chaos.fleet.replicas import Replicas
from tests.chaos.fleet.schedule import MODEL
from tests.chaos.fleet.store_faults import StoreFaults
from tests.chaos.history import LogLine
from tests.chaos.load import Load, Target
from tests.chaos.rounds import play

_THROUGH_BALANCER, _AT_ADDRESS, _AT_EACH = 4, 2, 1
_PAUSE_S = 0.4
_LONG_SHARE = 0.4
"""Of the chats: these take seconds, so that a drain that is called safe too early is found out."""
_LOAD_KEY = "load"
_LOOK_S = 0.5
_TICK_S, _STALLED_S = 0.1, 0.5
_LATEST_S = 480.0
_BEGIN_S = 120.0
_STAY_S = 1.5

Tell = Callable[[str], None]


class FleetStage:
    """Plays one schedule. What happened is in `history`."""

    def __init__(self, schedule: Schedule, *, tell: Tell = lambda _text: None) -> None:
        self._schedule = schedule
        self._tell = tell
        self._ground = Ground(schedule.seed, schedule.gateways)
        self._replicas = Replicas(self._ground)
        self._keys = Keys(self._ground)
        self._doers = (GatewayFaults(self._ground), StoreFaults(self._ground), self._replicas, self._keys)

    @property
    def history(self) -> FleetHistory:
        """What has happened."""
        return self._ground.history

    @property
    def directory(self) -> Path:
        """Where all that belongs to this run is."""
        return self._ground.directory

    # -- the play

    async def play(self) -> FleetHistory:
        """Plays the schedule from the first anchor to the last rest."""
        watching: list[asyncio.Task[None]] = []
        load: Load | None = None
        try:
            await self._set_up()
            watching = [asyncio.create_task(it) for it in (self._watch(), self._watch_address(), self._tick())]
            load = self._load()
            for number, one in enumerate(self._schedule.rounds, 1):
                await play(one.events, self._try)
                await self._rest(number, one, load)
            await load.stop()
        finally:
            if load is not None:
                await load.stop()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await self._ground.end()
            self._collect()
        return self.history

    async def _set_up(self) -> None:
        ground = self._ground
        await ground.begin()
        await self._keys.add(_LOAD_KEY, 1)
        await asyncio.gather(*(self._replicas.do(anchor) for anchor in self._schedule.anchors))
        async with asyncio.timeout(_BEGIN_S):
            while not all([await self._is_settled(gateway) for gateway in ground.gateways]):
                await asyncio.sleep(_LOOK_S)
        await ground.balancer.run()
        async with asyncio.timeout(_BEGIN_S):
            while not any(ground.network.has_shared_address(gateway.name) for gateway in ground.gateways):
                await asyncio.sleep(_LOOK_S)

    def _connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(socket_factory=self._ground.network[CLIENTS].socket)

    def _load(self) -> Load:
        targets = {
            Target(SERVICE, self._ground.balancer.url, MODEL, HAPROXY): _THROUGH_BALANCER,
            Target(SERVICE, f"http://{SHARED_ADDRESS}:{SERVICE_PORT}", MODEL, ADDRESS): _AT_ADDRESS,
            **{self._at(gateway): _AT_EACH for gateway in self._ground.gateways},
        }
        headers = {"Authorization": f"Bearer {secret_of(_LOAD_KEY)}"}
        return Load(
            targets, self.history.requests.append, seed=self._schedule.seed, pause_s=_PAUSE_S, long_share=_LONG_SHARE,
            connector=self._connector, headers=headers,
        )  # fmt: skip

    def _at(self, gateway: FleetGateway) -> Target:
        return Target(SERVICE, gateway.url, MODEL, gateway.name)

    async def _try(self, event: Event) -> None:
        try:
            async with asyncio.timeout(_LATEST_S):
                await self._do(event)
        except (TimeoutError, OSError, AssertionError) as error:
            self.history.failures.append(f"{time.monotonic():.2f}: {event}: {error!r}")

    async def _do(self, event: Event) -> None:
        for doer in self._doers:
            if await doer.do(event):
                return
        raise TypeError(f"nobody knows how to do {event}")

    # -- rest

    async def _is_settled(self, gateway: FleetGateway) -> bool:
        status = await gateway.status()
        return status is not None and serves(self._replicas.expected, rows_of(status))

    async def _rest(self, number: int, one: Round, load: Load) -> None:
        """Two times without faults: before and after a drain that nothing hinders."""
        began = time.monotonic()
        await self._until_settled(began)
        took = time.monotonic() - began
        self._rested(began)
        await self._replicas.drained_at_rest(one.drained, one.drained_at)
        began = time.monotonic()
        await self._until_settled(began)
        await asyncio.gather(*(self._muster(gateway, load) for gateway in self._ground.gateways))
        await self._keys.rest()
        await asyncio.sleep(_STAY_S)
        self._rested(began)
        outcomes = [request.outcome for request in self.history.requests]
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in sorted(set(outcomes)))
        serving = len(self._replicas.expected)
        self._tell(f"round {number}: at rest after {took:.1f} s with {serving} replicas; chats: {counts}")

    def _rested(self, began: float) -> None:
        self.history.rests.append(Rest(began, time.monotonic(), self._replicas.expected))

    async def _until_settled(self, began: float) -> None:
        """Returns once the watch has seen it, too; or long after it should have."""
        while time.monotonic() < began + 2 * SETTLE_S:
            latest = {view.gateway: view for view in self.history.views if view.at > began}
            if len(latest) == self._schedule.gateways and all(
                serves(self._replicas.expected, view.rows) for view in latest.values()
            ):
                return
            await asyncio.sleep(_LOOK_S)

    async def _muster(self, gateway: FleetGateway, load: Load) -> None:
        """Asks one gateway until everybody who serves has answered there."""
        expected = frozenset(one.engine for one in self._replicas.expected)
        answered: set[str] = set()
        began, asked = time.monotonic(), 0
        while not expected <= answered and time.monotonic() < began + MUSTER_S:
            chats = [load.ask_once(self._at(gateway)) for _ in range(len(expected))]
            answered |= {it.engine for it in await asyncio.gather(*chats) if it.engine is not None}
            asked += len(chats)
        self.history.musters.append(
            Muster(gateway.name, began, time.monotonic(), asked, expected, frozenset(answered))
        )  # fmt: skip

    # -- watching

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(self._look(gateway) for gateway in self._ground.gateways))
            await asyncio.sleep(_LOOK_S)

    async def _look(self, gateway: FleetGateway) -> None:
        at, status = time.monotonic(), await gateway.status()
        if status is not None:
            self.history.views.append(View(at, gateway.name, rows_of(status)))

    async def _watch_address(self) -> None:
        network = self._ground.network
        while True:
            at = time.monotonic()
            found = frozenset(it.name for it in self._ground.gateways if network.has_shared_address(it.name))
            if not self.history.holders or self.history.holders[-1].gateways != found:
                self.history.holders.append(Holders(at, found))
            await asyncio.sleep(_TICK_S)

    async def _tick(self) -> None:
        """Notes when this very process did not get on: then neither did the others, as far as anybody knows."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(_TICK_S)
            if time.monotonic() - began > _TICK_S + _STALLED_S:
                self._ground.fault("stalled", began)

    def _collect(self) -> None:
        """What the engines and the daemons wrote."""
        for node in self._ground.nodes.values():
            self.history.served += read_journal(node.host.journal)
        offset = time.time() - time.monotonic()
        for gateway in self._ground.gateways:
            for path in sorted(gateway.gateway.directory.glob("daemon-*.log")):
                for line in path.read_text(errors="replace").splitlines():
                    with suppress(ValueError, KeyError):
                        row = json.loads(line)
                        at = datetime.fromisoformat(row["timestamp"]).timestamp() - offset
                        text = f"{gateway.name} {path.name} {line}"
                        self.history.log.append(LogLine(at, row["level"], row["event"], text))
