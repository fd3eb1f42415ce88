"""What is done to gateways and to their networks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.chaos.events import Event
from tests.chaos.fleet.events import (
    AwayDaemon,
    CutNode,
    CutStore,
    KillNginx,
    KillRouter,
    Leave,
    LoseGateway,
    Reload,
)
from tests.chaos.fleet.gateways import FleetGateway
from tests.chaos.fleet.ground import Ground

_LEFT_S = 120.0
_LOOK_S = 0.1


class GatewayFaults:
    """Does each event to its gateway, and returns when the gateway is as it should be again."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def do(self, event: Event) -> bool:
        """Whether it was an event of this kind."""
        match event:
            case AwayDaemon():
                await self._away(event)
            case KillNginx():
                await self._kill_part("nginx killed", self._ground.gateway(event.gateway), lambda pids: pids[0])
            case KillRouter():
                await self._kill_part("router killed", self._ground.gateway(event.gateway), lambda pids: pids[1])
            case Reload():
                await self._reload(self._ground.gateway(event.gateway))
            case LoseGateway():
                await self._lose(event)
            case Leave():
                await self._leave(event)
            case CutStore():
                members = [member.name for member in self._ground.members.values()]
                await self._cut("cut from store", event.gateway, members, event.for_s)
            case CutNode():
                await self._cut("cut from node", event.gateway, [f"node-{event.node}"], event.for_s, event.node)
            case _:
                return False
        return True

    async def _start(self, gateway: FleetGateway) -> None:
        try:
            await gateway.start()
        except AssertionError as error:
            self._ground.history.failures.append(f"{gateway.name}: the daemon did not start: {error}")
            raise

    async def _away(self, event: AwayDaemon) -> None:
        gateway, began = self._ground.gateway(event.gateway), time.monotonic()
        process = gateway.gateway.process
        assert process is not None
        if event.how == "frozen":
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(event.for_s)
            process.send_signal(signal.SIGCONT)
        else:
            if event.how == "killed":
                await gateway.gateway.kill()
            elif (code := await gateway.gateway.terminate()) != 0:
                self._ground.history.failures.append(f"{gateway.name}: the daemon ended with {code} on SIGTERM")
            await asyncio.sleep(event.for_s)
            await self._start(gateway)
        self._ground.fault("daemon away", began, gateway=gateway.name, how=event.how)

    async def _kill_part(
        self, kind: str, gateway: FleetGateway, which: Callable[[tuple[int | None, int | None]], int | None]
    ) -> None:
        pid = which(await gateway.processes())
        if pid is None:
            return
        began = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while which(await gateway.processes()) in (None, pid):
            await asyncio.sleep(_LOOK_S)
        self._ground.fault(kind, began, gateway=gateway.name, how=f"pid {pid}")

    async def _reload(self, gateway: FleetGateway) -> None:
        began = time.monotonic()
        gateway.reconfigure()
        await self._ground.order("reload", gateway, "POST", "reload")
        self._ground.fault("reload", began, gateway=gateway.name)

    async def _lose(self, event: LoseGateway) -> None:
        gateway, began = self._ground.gateway(event.gateway), time.monotonic()
        if event.how == "paused":
            gateway.signal_all(signal.SIGSTOP)
            await asyncio.sleep(event.for_s)
            gateway.signal_all(signal.SIGCONT)
        else:
            if event.how == "power cut":  # First the cable: what the kernel says for those that end, nobody hears.
                self._ground.network.unplug(gateway.name)
            await gateway.lose()
            await asyncio.sleep(event.for_s)
            self._ground.network.plug(gateway.name)
            await self._start(gateway)
        self._ground.fault("gateway lost", began, gateway=gateway.name, how=event.how)

    async def _leave(self, event: Leave) -> None:
        gateway, began = self._ground.gateway(event.gateway), time.monotonic()
        await self._ground.order("leave", gateway, "POST", "leave")
        if event.joins:
            await asyncio.sleep(event.for_s)
            await self._ground.order("join", gateway, "POST", "join")
        else:
            async with asyncio.timeout(_LEFT_S):
                await gateway.left()
            await asyncio.sleep(event.for_s)
            await self._start(gateway)
        self._ground.fault("gateway left", began, gateway=gateway.name, how="joined" if event.joins else "")

    async def _cut(self, kind: str, number: int, others: list[str], for_s: float, node: int | None = None) -> None:
        name, began = self._ground.gateway(number).name, time.monotonic()
        self._ground.network.cut(name, *others)
        await asyncio.sleep(for_s)
        self._ground.network.mend(name, *others)
        self._ground.fault(kind, began, gateway=name, node=node)
