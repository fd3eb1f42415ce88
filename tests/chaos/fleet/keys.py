"""Keys that are added, used at every gateway all the time, and revoked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import suppress

import aiohttp

from tests.chaos.events import Event
from tests.chaos.fleet.check import REVOKED_S
from tests.chaos.fleet.events import AddAndRevoke
from tests.chaos.fleet.gateways import FleetGateway
from tests.chaos.fleet.ground import Ground
from tests.chaos.fleet.history import KeyTerm, KeyUsed
from tests.chaos.fleet.network import CLIENTS

_PAUSE_S = 0.25
_TRIED_FOR_S = 2.0
_USED_AFTER_S = REVOKED_S + 4.0


def secret_of(name: str) -> str:
    """The key itself; only its hash is told to a gateway."""
    return f"sk-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


class Keys:
    """Does events of keys. Errands use the keys; they end by themselves."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._errands: set[asyncio.Task[None]] = set()

    async def do(self, event: Event) -> bool:
        """Whether it was an event of this kind."""
        if not isinstance(event, AddAndRevoke):
            return False
        revision = await self.add(event.name, event.added_at)
        added = time.monotonic()
        over = asyncio.Event()
        errands = [asyncio.create_task(self._use(event.name, it, over)) for it in self._ground.gateways]
        self._errands.update(errands)
        await asyncio.sleep(event.for_s)
        await self._write(event.name, event.revoked_at, None, revision)
        self._ground.history.key_terms.append(KeyTerm(event.name, added, time.monotonic()))
        asyncio.get_running_loop().call_later(_USED_AFTER_S, over.set)
        return True

    async def add(self, name: str, number: int) -> int:
        """Adds a key, and returns its revision."""
        line = f"{name}:{hashlib.sha256(secret_of(name).encode()).hexdigest()}"
        revision = await self._write(name, number, line, None)
        assert revision is not None
        return revision

    async def rest(self) -> None:
        """Returns when no key is used any more."""
        await asyncio.gather(*self._errands)
        self._errands.clear()

    async def _write(self, name: str, number: int, line: str | None, seen: int | None) -> int | None:
        what, path = "revoke key" if line is None else "add key", f"store/keys/{name}"
        body = {"line": line, "seen": seen}
        code, answer = await self._ground.order_until((200, 409), what, number, "PUT", path, body)
        if code == 200:
            return None if line is None else int(answer["revision"])
        # What had no clear answer was written: the next gateway says that somebody else did.
        _, listed = await self._ground.order_until((200,), "list keys", number, "GET", "store/keys")
        found = next((it for it in listed["keys"] if it["name"] == name), None)
        if (None if found is None else found["line"]) != line:
            self._ground.history.failures.append(f"{what} {name}: {answer}, and the store has {found}")
        return None if found is None else int(found["revision"])

    async def _use(self, name: str, gateway: FleetGateway, over: asyncio.Event) -> None:
        connector = aiohttp.TCPConnector(
            socket_factory=self._ground.network[CLIENTS].socket, force_close=True
        )  # fmt: skip
        headers = {"Authorization": f"Bearer {secret_of(name)}"}
        timeout = aiohttp.ClientTimeout(total=_TRIED_FOR_S)
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            while not over.is_set():
                at, status = time.monotonic(), None
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{gateway.url}/v1/models") as answer:
                        status = answer.status
                self._ground.history.keys_used.append(KeyUsed(name, gateway.name, at, status))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_S):
                        await over.wait()
