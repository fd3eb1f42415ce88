"""SGLang's rendezvous: a decode engine really connects to the prefill engine that its request names.

A prefill engine listens on its bootstrap port. A router sends one request to both engines, with the same
`bootstrap_host`, `bootstrap_port` and `bootstrap_room`; the decode engine connects there and names the room, and
only then does the prefill engine go on with its half. Whoever waits in vain fails its request, as the real engines
do. What passes between them then, the KV cache, is not simulated.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from examples.simulated.ledger import Ledger
from examples.simulated.options import EngineSpec, Role


class TransferError(Exception):
    """Prefill and decode did not meet."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a decode engine finds its prefill engine, and the number that both know the request by."""

    host: str
    port: int
    room: int

    @classmethod
    def of_json(cls, ask: Mapping[str, Any]) -> Rendezvous | None:
        """What an HTTP request carries, if anything."""
        host, port, room = (ask.get(f"bootstrap_{name}") for name in ("host", "port", "room"))
        if not isinstance(host, str) or not isinstance(port, int) or not isinstance(room, int):
            return None
        return cls(host, port, room)

    @property
    def url(self) -> str:
        """The address to connect to; a router may or may not put an IPv6 host into brackets."""
        bare = self.host.removeprefix("[").removesuffix("]")
        try:
            host = f"[{bare}]" if ipaddress.ip_address(bare).version == 6 else bare
        except ValueError:
            host = bare
        return f"http://{host}:{self.port}"


class Bootstrap:
    """One engine's part in it; nothing for a vLLM, or where `transfer_timeout_s` is 0."""

    def __init__(self, spec: EngineSpec, ledger: Ledger) -> None:
        self._spec = spec
        self._ledger = ledger
        self._rooms: dict[int, asyncio.Future[None]] = {}
        self._runner: web.ServerRunner | None = None
        self._meets = spec.transfer_timeout_s > 0 and spec.role is not Role.REGULAR and spec.kind.meets_peers

    async def start(self) -> None:
        """Listen, if this is a prefill engine. Raises OSError if it cannot."""
        if not self._meets or self._spec.role is not Role.PREFILL:
            return
        self._runner = web.ServerRunner(web.Server(self._admit, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, self._spec.bootstrap_listen, self._spec.bootstrap_port).start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def meet(self, where: Rendezvous | None) -> None:
        """Return when both engines have the request. Raises TransferError."""
        if not self._meets:
            return
        if where is None:
            raise TransferError(f"{self._spec.name} is disaggregated, and the request names no bootstrap room")
        if self._spec.role is Role.PREFILL:
            await self._await_decode(where.room)
        else:
            await self._visit(where)

    async def _await_decode(self, room: int) -> None:
        """KVSender: waits for the decode engine's word in this room."""
        try:
            async with asyncio.timeout(self._spec.transfer_timeout_s):
                await self._room(room)
        except TimeoutError:
            raise TransferError(f"prefill bootstrap failed: nobody came for room {room}") from None
        finally:
            self._rooms.pop(room, None)

    async def _visit(self, where: Rendezvous) -> None:
        """KVReceiver: asks the bootstrap server for the room."""
        timeout = aiohttp.ClientTimeout(total=self._spec.transfer_timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{where.url}/route", params={"room": str(where.room)}) as answer,
            ):
                text = await answer.text()
                if answer.status != 200:
                    raise TransferError(f"decode handshake failed: {where.url} answers {answer.status}: {text}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise TransferError(f"decode handshake failed: cannot reach {where.url}: {why}") from error
        self._ledger.transferred(where.host)

    async def _admit(self, request: web.BaseRequest) -> web.StreamResponse:
        room = request.query.get("room", "")
        if request.path != "/route" or not room.isdigit():
            return web.Response(status=404)
        self._ledger.transferred(str(request.remote))
        waiting = self._room(int(room))
        if not waiting.done():
            waiting.set_result(None)
        return web.json_response({"bootstrap_room": int(room)})

    def _room(self, room: int) -> asyncio.Future[None]:
        """The room's future, done once a decode engine has asked for it, whoever of the two comes first."""
        if room not in self._rooms:
            self._rooms[room] = asyncio.get_running_loop().create_future()
        return self._rooms[room]
