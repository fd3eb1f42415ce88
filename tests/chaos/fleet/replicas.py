"""What is done to replicas: engines that come, die and drain, and what gateways are told of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tests.chaos.events import Engine, Event
from tests.chaos.fleet.events import AtReplica, Die, DrainAndRemove, DrainAndResume, EndLogins, Put, Renew
from tests.chaos.fleet.gateways import SERVICE
from tests.chaos.fleet.ground import PAUSE_S, Ground
from tests.chaos.fleet.history import Begun, Expected, Safe
from tests.chaos.fleet.network import address_of
from tests.chaos.fleet.parts import Node

NEVER = float("inf")
DRAIN_S = 40.0
_HOST_OF_SOCKETS = 1
"""The process of engines that every gateway reaches by its socket, as on a file system that they share."""
_TRIES = 3


@dataclass
class _Behind:
    """Who is behind a replica, as the stage arranged it."""

    engine: Engine
    node: int
    alive: bool = True
    drained: bool = False


class Replicas:
    """Does each event, and knows who has to serve."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._behind: dict[str, _Behind] = {}

    @property
    def expected(self) -> tuple[Expected, ...]:
        """Those that have to serve at every gateway."""
        rows = sorted(self._behind.items())
        return tuple(Expected(replica, it.engine.name) for replica, it in rows if it.alive and not it.drained)

    async def do(self, event: Event) -> bool:
        """Whether it was an event of this kind."""
        match event:
            case Put():
                await self._put(event)
            case Die():
                await self._die(event)
            case Renew():
                await self._renew(event)
            case DrainAndResume():
                await self._drain_and_resume(event)
            case DrainAndRemove():
                await self._drain_and_remove(event)
            case EndLogins():
                began = time.monotonic()
                self._ground.nodes[event.node].sshd.cut(logged_in=True)
                self._ground.fault("logins ended", began, node=event.node)
            case _:
                return False
        return True

    async def drained_at_rest(self, replica: str, number: int) -> None:
        """A drain that nothing hinders, and which has to be safe. Then the replica serves again."""
        await self._drain_and_resume(
            DrainAndResume(at=0, replica=replica, gateway=number, resumed_at=number, for_s=1.0)
        )

    # -- engines

    def _host(self, node: int) -> Node:
        return self._ground.nodes[node or _HOST_OF_SOCKETS]

    def _socket(self, replica: str) -> str:
        return str(self._ground.directory / f"{replica}.sock")

    def _entry(self, replica: str, node: int) -> dict[str, Any]:
        if not node:
            return {"socket": self._socket(replica)}
        sshd = self._ground.nodes[node].sshd
        return {
            "ssh": {
                "host": address_of(f"node-{node}"), "forward": self._socket(replica),
                "key_file": str(sshd.user_key), "known_hosts": str(sshd.known_hosts),
            }
        }  # fmt: skip

    async def _begin(self, replica: str, engine: Engine, node: int) -> None:
        await self._host(node).host.begin(engine, self._ground.directory / f"{replica}.sock")
        self._ground.history.begun.append(Begun(replica, engine.name, node, time.monotonic()))

    async def _put(self, event: Put) -> None:
        await self._begin(event.replica, event.engine, event.node)
        path, entry = f"services/{SERVICE}/replicas/{event.replica}", self._entry(event.replica, event.node)
        await self._ground.order_until((200, 201), "put", event.gateway, "PUT", path, entry)
        self._behind[event.replica] = _Behind(event.engine, event.node)

    async def _kill(self, behind: _Behind) -> None:
        began = time.monotonic()
        behind.alive = False
        await self._host(behind.node).host.ask("DELETE", f"/{behind.engine.name}", kill="true")
        self._ground.fault("engine ended", began, node=behind.node, engine=behind.engine.name)

    async def _stop(self, behind: _Behind, safe: Safe) -> None:
        """Stops an engine that was called safe to stop: nobody notices but gateways that counted as dead."""
        began = time.monotonic()
        behind.alive = False
        host = self._host(behind.node).host
        await host.ask("DELETE", f"/{behind.engine.name}", grace_s="0", unlink="true")
        for gateway in safe.dead:
            self._ground.fault("engine ended", began, gateway=gateway, engine=safe.engine, how="not asked")

    async def _die(self, event: Die) -> None:
        behind = self._behind.get(event.replica)
        if behind is not None and behind.alive:
            await self._kill(behind)

    async def _renew(self, event: Renew) -> None:
        behind = self._behind.get(event.replica)
        if behind is None:
            return
        if behind.alive:
            await self._kill(behind)
        await self._begin(event.replica, event.engine, behind.node)
        self._behind[event.replica] = _Behind(event.engine, behind.node, drained=behind.drained)

    # -- drains

    async def _ask(self, event: AtReplica, *, deletes: bool) -> tuple[int | None, Any]:
        path, gateway = f"services/{SERVICE}/replicas/{event.replica}", self._ground.gateway(event.gateway)
        if deletes:
            return await self._ground.order("delete", gateway, "DELETE", path, drain_s=f"{DRAIN_S:g}")
        return await self._ground.order("drain", gateway, "POST", f"{path}/drain", timeout_s=f"{DRAIN_S:g}")

    def _safe(self, event: AtReplica, engine: str, answer: Any, at: float) -> Safe:
        dead = {it["name"] for it in answer["gateways"] if "counts as dead" in (it["reason"] or "")}
        gateway = self._ground.gateway(event.gateway).name
        return Safe(engine, at, NEVER, "safe", event.replica, gateway, frozenset(dead))

    async def _drain_and_resume(self, event: DrainAndResume) -> None:
        behind = self._behind.get(event.replica)
        if behind is None or not behind.alive:
            return
        behind.drained = True
        code, answer = await self._ask(event, deletes=False)
        safe_at = time.monotonic()
        await asyncio.sleep(event.for_s)
        ends = time.monotonic()
        if code == 200 and answer["drained"]:
            safe = self._safe(event, behind.engine.name, answer, safe_at)
            self._ground.history.safe.append(replace(safe, until=ends))
        path = f"services/{SERVICE}/replicas/{event.replica}/resume"
        if not _is_known_to_all(code, answer):
            # The drain holds at the gateway that was asked, as the guide says: there it has to be taken back.
            await self._ground.order_until((200,), "resume", event.gateway, "POST", path, elsewhere=False)
        await self._ground.order_until((200,), "resume", event.resumed_at, "POST", path)
        behind.drained = False

    async def _drain_and_remove(self, event: DrainAndRemove) -> None:
        behind = self._behind.get(event.replica)
        if behind is None or not behind.alive:
            return
        behind.drained = True
        safe = None
        for _ in range(1 if event.deletes else _TRIES):
            code, answer = await self._ask(event, deletes=event.deletes)
            if code == 200 and answer["drained"]:
                safe = self._safe(event, behind.engine.name, answer, time.monotonic())
                self._ground.history.safe.append(safe)
                break
            event = replace(event, gateway=self._ground.next_to(event.gateway))
            await asyncio.sleep(PAUSE_S)
        await asyncio.sleep(event.for_s)
        if safe is not None:
            await self._stop(behind, safe)
        else:
            await self._kill(behind)
        path = f"services/{SERVICE}/replicas/{event.replica}"
        await self._ground.order_until((200, 202, 404), "delete", event.deleted_at, "DELETE", path)
        self._behind.pop(event.replica, None)
        with suppress(FileNotFoundError):
            (self._ground.directory / f"{event.replica}.sock").unlink()


def _is_known_to_all(code: int | None, answer: Any) -> bool:
    """Whether a drain with this answer is in the store."""
    return code in (200, 504) and "could not be asked" not in (answer["reason"] or "")
