"""Engines whose queue of connections is short, whose answers have long heads: nothing that they answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from gateway_sidecar.supervision.loops import cancelled
from tests.system.conftest import MakeGateway
from tests.system.gateway import Gateway, replica_of
from tests.system.test_keys import give_key
from tests.users import SELF

MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "x"}]}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class OneByOne:
    """Serves one connection after the other, as `http.server` does. `bodies` are those of the requests it answered."""

    backlog: int = 5
    head_bytes: int = 0
    takes_s: float = 0.0
    bodies: list[bytes] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[OneByOne]:
        """Serves at `path` until the block ends."""
        with SELF.binds(path, backlog=None) as sock:
            sock.listen(self.backlog)
            sock.setblocking(False)
            serving = asyncio.create_task(self._serve(sock))
            try:
                yield self
            finally:
                await cancelled(serving)

    async def _serve(self, sock: socket.socket) -> None:
        while True:
            await _until_readable(sock)
            taken, _ = sock.accept()  # At once: whoever is cancelled while he waits for it may lose one that came.
            with taken, contextlib.suppress(OSError):
                taken.setblocking(False)
                await self._answer(taken)

    async def _answer(self, taken: socket.socket) -> None:
        loop, asked = asyncio.get_running_loop(), b""
        while (length := _length_of(asked)) is None or len(asked) < length:
            part = await loop.sock_recv(taken, 65536)
            if not part:
                return
            asked += part
        raw, _, body = asked.partition(b"\r\n\r\n")
        head = raw.decode()
        answer: object = MODELS if "/v1/models" in head else {"status": "ok"}
        if head.startswith("POST"):
            self.bodies.append(body)
            await asyncio.sleep(self.takes_s)
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
            answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
        said = json.dumps(answer).encode()
        more = "".join(f"X-Trace-{at}: {'t' * 980}\r\n" for at in range(self.head_bytes // 1000))
        head = f"HTTP/1.1 200 OK\r\n{more}Content-Type: application/json\r\nConnection: close\r\n"
        await loop.sock_sendall(taken, f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said)


async def _until_readable(sock: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


def _length_of(said: bytes) -> int | None:
    """How many bytes a request has, head and body; None while its head is not whole."""
    head, end, _ = said.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    return len(head) + len(end) + int(found[1] if found else 0) if end else None


async def ask(session: aiohttp.ClientSession, gateway: Gateway, **more: object) -> tuple[int, str]:
    async with session.post(f"{gateway.url()}/v1/chat/completions", json=CHAT | more) as answer:
        found = json.loads(await answer.text())
        return answer.status, found.get("error", {}).get("code", "")


@pytest.mark.parametrize("has_key", [False, True])
async def test_a_full_queue_of_connections_is_waited_for(gateway: Gateway, has_key: bool) -> None:
    """Sixty requests at once for an engine that takes one after the other: each is answered, and once.

    Nothing of it counts against the engine: the next one is answered, too.
    """
    if has_key:
        give_key(gateway, "r1", "sekrit")
    async with OneByOne(takes_s=0.01).serve(gateway.socket("r1")) as engine:
        await gateway.until_state("r1", "serving")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            answers = await asyncio.gather(*(ask(session, gateway, seed=number) for number in range(60)))
            assert Counter(answers) == {(200, ""): 60}
            assert Counter(Counter(engine.bodies).values()) == {1: 60}
            assert await ask(session, gateway) == (200, "")


async def test_a_long_body_for_a_full_queue_is_tried_again_by_the_router(make_gateway: MakeGateway) -> None:
    """nginx does not keep it a second time; SMG has it."""
    gateway = make_gateway()
    # SMG's own five tries are over after a second, for which a busy machine may keep the engine from its queue.
    gateway.settings["services"][0]["router"] = {"args": ["--retry-max-retries", "40", "--retry-max-backoff-ms", "500"]}
    await gateway.start()
    async with OneByOne(takes_s=0.01).serve(gateway.socket("r1")) as engine:
        await gateway.until_state("r1", "serving")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            long = "x" * 300_000
            answers = await asyncio.gather(*(ask(session, gateway, user=f"{it}{long}") for it in range(12)))
    assert Counter(answers) == {(200, ""): 12}
    assert len(engine.bodies) == 12


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize(("head_bytes", "answer"), [(5_000, (200, "")), (50_000, (200, "")), (70_000, (520, ""))])
async def test_an_answer_with_a_long_head_costs_one_run_of_the_engine(
    gateway: Gateway, has_key: bool, head_bytes: int, answer: tuple[int, str]
) -> None:
    """It passes, or its client is told; it is never asked for again."""
    if has_key:
        give_key(gateway, "r1", "sekrit")
    async with OneByOne().serve(gateway.socket("r1")) as engine:
        status = await gateway.until_state("r1", "serving")
        engine.head_bytes = head_bytes
        async with aiohttp.ClientSession() as session:
            assert (await ask(session, gateway))[0] == answer[0]
    assert len(engine.bodies) == 1
    assert replica_of(status, "r1")["state"] == "serving"
