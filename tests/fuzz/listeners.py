"""Random bytes and requests at the daemon's own listeners: metrics, admin.sock and admin.listen.

All the while honest requests are answered, the daemon's memory and descriptors stay bounded, and it says nothing of a
fault of its own. The same seed throws the same things, at other moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.certificates import Authority
from tests.system.gateway import Gateway

_ATTACKERS = 6  # for each listener
_PATIENCE_S = 3.0
_HONEST_GAP_S = 0.1
_HONEST_S = 30.0
"""An honest answer is judged by whether it comes, not by how busy the machine is."""

_MOST_GROWTH_BYTES = 200 * 1024 * 1024
_MOST_DESCRIPTORS = 2500
_TARGETS = (
    *("/metrics", "/healthz", "/readyz", "/sd", "/routers/chat/metrics", "/replicas/chat/r1/metrics", "/nothing"),
    *("/", "/page/page.js", "/page/stream", "/page/stream", "/page/events.json"),
    *("/v1/status", "/v1/plan", "/v1/openapi.json", "/v1/services/chat/signals", "/v1/services/chat/replicas"),
    *("/v1/services/chat/replicas/f1", "/v1/services/chat/replicas/f1/drain?timeout_s=0", "/v1/services/%00/signals"),
)
"""Not /v1/stop and /v1/reload: who may ask for those is obeyed."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "G\0T", "")
_HEADERS = (
    *("Host: 127.0.0.1", "Host: [::1]:1", "Host: evil.example", "Host:", "Host: a\r\nHost: b", "Host: \x1b[2J"),
    *("Content-Length: 10", "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 1, 2"),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Encoding: gzip",
        "Expect: 100-continue",
    ),
    *(
        "Connection: close",
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Upgrade: h2c",
        "X-A: " + "b" * 9000,
    ),
    *("Content-Type: application/json", "Content-Type: multipart/form-data", "Content-Type: text/plain; charset=\xff"),
    *("Range: bytes=0-", "If-None-Match: *", "Cookie: " + "a=b; " * 500, "X-\xe9: \xe9", " folded: line", "no colon"),
)
_BODIES = (
    *(b"", b"{", b"{}", b"null", b"[" * 20_000, b'{"socket": 7}', b'{"socket": "/nowhere/at/all.sock"}', b"\xff" * 100),
    *(
        b'{"ssh": {"host": "-oProxyCommand=x", "forward": "127.0.0.1:1"}}',
        b"5\r\nhello\r\n0\r\n\r\n",
        b"zz\r\n",
        b"a" * 300_000,
    ),
    *(b"ffffffffffffffff\r\n", b"\x1f\x8b\x08\0\0\0\0\0", b'{"a":' * 5000),
)
Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def _request(dice: random.Random) -> bytes:
    """Something like a request, or nothing like one."""
    kind = dice.random()
    if kind < 0.1:
        return dice.randbytes(dice.randrange(1, 4000))
    if kind < 0.15:
        return dice.choice(
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + dice.randbytes(100),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(500),
                b"\r\n" * 5000,
                b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
            )
        )
    version = dice.choice(("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/2.0", "HTTP/1.1.1", ""))
    target = dice.choice(_TARGETS)
    if dice.random() < 0.1:
        target = dice.choice(
            ("http://evil.example" + target, target + "?" + "x" * 9000, "*", "//" + target, target + "\0")
        )
    lines = [f"{dice.choice(_METHODS)} {target} {version}", *dice.choices(_HEADERS, k=dice.randrange(6))]
    text = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + dice.choice(_BODIES)
    if dice.random() < 0.3:
        at = dice.randrange(len(text))
        text = text[:at] + dice.randbytes(dice.randrange(1, 4)) + text[at + dice.randrange(4) :]
    return text * dice.choice((1, 1, 1, 1, 20, 200)) if len(text) < 2000 else text


async def _attack(dice: random.Random, open_one: Open) -> None:
    """One connection: what is said, how fast, and whether anything of the answer is taken."""
    reader, writer = await open_one()
    try:
        said, way = _request(dice), dice.random()
        if way < 0.15:  # byte by byte
            for at in range(min(len(said), 60)):
                writer.write(said[at : at + 1])
                await asyncio.sleep(0.02)
        elif way < 0.3:  # takes nothing
            writer.write(said)
            await asyncio.sleep(dice.random())
        elif way < 0.4:  # leaves in the middle
            writer.write(said[: dice.randrange(len(said))])
            await asyncio.sleep(0)
        else:
            writer.write(said)
            if dice.random() < 0.2 and writer.can_write_eof():
                writer.write_eof()
            while await reader.read(1 << 16):
                pass
    finally:
        writer.transport.abort()


async def _keep_attacking(dice: random.Random, open_one: Open, until: float) -> None:
    while time.monotonic() < until:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S * dice.random()):
                await _attack(dice, open_one)
        await asyncio.sleep(0)


async def _stay_honest(gateway: Gateway, admin: str, tls: ssl.SSLContext, until: float) -> int:
    """Asks each listener again and again; how often each answered. Raises AssertionError for one that does not."""
    assert gateway.process is not None
    pid, answered = gateway.process.pid, 0
    before = _rss(pid)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_HONEST_S)) as session:
        while time.monotonic() < until:
            # A connection of its own for each, as kept ones may be cut to make room.
            own = {"Connection": "close"}
            async with session.get(f"http://127.0.0.1:{gateway.metrics_port}/healthz", headers=own) as response:
                assert response.status == 200, await response.text()
            async with session.get(f"{admin}/v1/status", ssl=tls, headers=own) as response:
                assert (await response.json())["ready"]
            async with asyncio.timeout(_HONEST_S):
                assert (await gateway.status())["ready"]
            assert _rss(pid) - before < _MOST_GROWTH_BYTES
            assert len(os.listdir(f"/proc/{pid}/fd")) < _MOST_DESCRIPTORS
            answered += 1
            await asyncio.sleep(_HONEST_GAP_S)
    return answered


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _context(authority: Authority, client: Sequence[Path] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client[0], client[1])
    return context


async def run(seed: int, seconds: float) -> None:
    """Attacks a real daemon for so long. Raises AssertionError for whatever it does not stand."""
    gateway = Gateway()
    try:
        with tempfile.TemporaryDirectory() as place:
            await _run(seed, seconds, gateway, Path(place))
    finally:
        await gateway.close()


async def _run(seed: int, seconds: float, gateway: Gateway, place: Path) -> None:
    authority, port = Authority(place, "ca"), gateway.metrics_port - 1
    certificate, key = authority.sign("server")
    client = authority.sign("client")
    files = {"certificate": str(certificate), "key": str(key), "client_ca": str(authority.certificate)}
    gateway.settings["admin"] = {"listen": f"127.0.0.1:{port}", "tls": files}
    await gateway.start()
    known, unknown = _context(authority, client), _context(authority, None)
    admin_socket = str(gateway.directory / "run" / "admin.sock")
    listeners: list[Open] = [
        lambda: asyncio.open_connection("127.0.0.1", gateway.metrics_port),
        lambda: asyncio.open_connection("127.0.0.1", port),
        lambda: asyncio.open_connection("127.0.0.1", port, ssl=unknown, server_hostname="127.0.0.1"),
        lambda: asyncio.open_connection("127.0.0.1", port, ssl=known, server_hostname="127.0.0.1"),
        lambda: asyncio.open_unix_connection(admin_socket),
    ]
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number, listener in enumerate(listeners * _ATTACKERS):
            group.create_task(_keep_attacking(random.Random(f"{seed}/{number}"), listener, until))
        honest = group.create_task(_stay_honest(gateway, f"https://127.0.0.1:{port}", known, until))
    assert honest.result() > 0
    said = [line for line in gateway.log().splitlines() if not line.startswith("{")]
    assert said == [], "something else than events on standard error"
    for unjust in ("daemon.request_failed", "loop.failed", "daemon.wedged", "source.blind"):
        assert gateway.events(unjust) == [], gateway.events(unjust)[:3]
