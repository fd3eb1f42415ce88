"""Clients that send anything: random methods, targets, headers and bodies at the real nginx, before a stub of a router.

Whatever is sent: no control path passes, nothing that steers a router does, without a key nothing but what is public,
no request hides in another one's body, nginx's log gets no forged lines, and honest requests between are answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.frontend.served_files import place_keys
from gateway_sidecar.nginx.bodies import SMALL_BYTES
from gateway_sidecar.nginx.client_headers import CREDENTIALS, PASSED
from gateway_sidecar.nginx.frontend_places import FrontendPlaces
from gateway_sidecar.routers.smg.paths import HEADERS, PATHS
from tests.system.test_frontend_keys import bare_nginx

AT_ONCE = 6
_KEY = "a-key-of-alice-that-nobody-guesses"
_OURS = {
    *("host", "connection", "upgrade", "content-length", "transfer-encoding", "x-forwarded-for", "x-forwarded-proto"),
    "x-request-id",
}
_PUBLIC = "/health"
_TENANT = "x-smg-tenant-id"
_LOG_LINE = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(error|warn|info|notice)\] \d+#\d+: ")

_ROOTS = (
    *PATHS.control,
    *PATHS.fleet,
    *(path.replace("*", "x1") for path in PATHS.inference),
    "/v1/files",
    "/metrics",
    "/",
    "*",
    "",
)
_STEERING = (
    *("X-Smg-Target-Worker", "X-Smg-Routing-Tokens", "X-Smg-Tenant-Id", "X-Smg-Priority", "X-Smg-Mcp", "X-Tenant-Id"),
    *("X-Data-Parallel-Rank", "X-Worker-Id", "X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"),
    *("X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Real-IP", "Cookie", "Proxy", "Expect", "TE"),
    *("Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "HTTP2-Settings", "Trailer", "X-Accel-Redirect"),
    *("X-Service", "X-Router-Connected", "X-Router-Took", "X-Request-Upgrade", "X-Gateway-Key", "Referer", "Via"),
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "P\tST")
_VALUES = (
    "evil", "1", "", "127.0.0.1", "close, X-Smg-Target-Worker", "upgrade", "websocket", "h2c", "chunked",
    "100-continue",
    "evil\x1b[2J\x1b]0;evil\x07", 'evil" upstream: "evil', "é" * 3, "x" * 300, "x" * 7000, "\x00", "a\r b", "http://evil/",
)  # fmt: skip
_HIDDEN_REQUEST = b"POST /workers HTTP/1.1\r\nHost: x\r\nX-Smg-Target-Worker: 1\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Stub:
    """A router that remembers what is wrong with what it is sent, and answers."""

    keyed: bool
    faults: list[str] = field(default_factory=list)
    honest: set[str] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, with any number of requests."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head[:-4].split("\r\n")
                headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
                body = await self._body(reader, dict(headers))
                self._judge(first, headers, len(body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
                writer.write(b"" if first.startswith("HEAD ") else b"{}")
                await writer.drain()
        writer.close()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            self.faults.append(f"passed on in pieces: {headers}")
        return await reader.readexactly(int(headers.get("content-length", "0")))

    def _judge(self, first: str, headers: list[tuple[str, str]], size: int) -> None:
        names = [name for name, _ in headers]
        told = dict(headers)
        allowed = _OURS | {
            name.lower() for name in (*CREDENTIALS, *PASSED, *HEADERS.passed, HEADERS.bridge_key, _TENANT)
        }
        if told.get(_TENANT, "alice") != "alice" or (_TENANT in told and not self.keyed):
            self.faults.append(f"somebody else's tenant: {headers}")
        if told.get(HEADERS.bridge_key.lower()) != "k" * 32:
            self.faults.append(f"not the bridges' key: {headers}")
        more = {name for name in names if name not in allowed}
        wrong = []
        if more or len(names) != len(set(names)):
            wrong.append(f"headers {sorted(more)}, of {names}")
        if (told.get("x-forwarded-for"), told.get("x-forwarded-proto")) != ("127.0.0.1", "http"):
            wrong.append("forged origin")
        if told.get("upgrade", "websocket").lower() != "websocket":
            wrong.append("another protocol")
        match = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.1", first)
        path = match[2].partition("?")[0] if match else ""
        if not self._may_pass(path):
            wrong.append("path")
        name = told.get("x-request-id", "")
        if name.startswith("honest-"):
            self.honest.add(name)
        elif self.keyed and not (path.startswith(_PUBLIC) and size <= SMALL_BYTES):
            wrong.append("without a key")
        elif match and match[1] in ("GET", "HEAD", "DELETE", "OPTIONS") and size > SMALL_BYTES:
            wrong.append(f"a body of {size} bytes")
        if wrong:
            self.faults.append(f"{'; '.join(wrong)}: {first!r} {headers}")

    @staticmethod
    def _may_pass(path: str) -> bool:
        if "%" in path or "\\" in path or "//" in path or "/." in path:
            return False
        lower = f"{path.lower().rstrip('/')}/"
        if any(lower.startswith(f"{root}/") for root in (*PATHS.control, *PATHS.fleet)):
            return False
        return re.match(r"/v\d+[a-z0-9]*/.", path) is not None or any(path == it for it in PATHS.inference)


@asynccontextmanager
async def _frontend_at(directory: Path, settings: FrontendSettings, stub: Stub) -> AsyncIterator[int]:
    directory.mkdir()
    places = FrontendPlaces(directory)
    place_keys(places.keys("chat"), {hashlib.sha256(_KEY.encode()).hexdigest(): "alice"})
    server = await asyncio.start_server(stub.talk, "127.0.0.1", 0)
    async with server:
        behind = server.sockets[0].getsockname()[1]
        async with bare_nginx(directory, places, behind, settings, requests=64) as url:
            yield int(url.rsplit(":", 1)[1])


def _bent(rng: random.Random, text: str) -> str:
    """A path that somebody might read as another one."""
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        at = rng.randrange(len(text) + 1)
        bend = rng.randrange(7)
        if bend == 0:
            text = text[:at] + rng.choice(
                ("/", "//", "/./", "/../", "%2e", "%2f", "\\", ";", "#", "?", "\t", "%00", "é")
            )
        elif bend == 1:
            text = text[:at] + text[at:].upper()
        elif bend == 2 and at < len(text):
            text = f"{text[:at]}%{ord(text[at]):02x}{text[at + 1 :]}"
        elif bend == 3:
            text = f"/v1/models/..{text}"
        elif bend == 4:
            text = f"http://{rng.choice(('x', 'evil', ''))}{text}"
        elif bend == 5:
            text += rng.choice(("/", "?x=/workers", "/../workers", "/x/y/z", "/" + "x" * 300))
        else:
            text = rng.choice(("/v1", "/V1", "/v2", "/v1beta")) + text
    return text


def _header_lines(rng: random.Random, *, tame: bool) -> Iterator[str]:
    for _ in range(rng.randrange(8)):
        name = rng.choice((*_STEERING, *PASSED, *CREDENTIALS))
        value = rng.choice(_VALUES)
        if tame:  # What nginx itself refuses tells nothing of what it would have passed on.
            name = name if name not in ("Authorization", "Connection", "Upgrade", "Expect") else "X-Forwarded-Host"
            value = value if value.isprintable() else "evil"
        bend = rng.randrange(20 if tame else 10)
        bent = {0: name.replace("-", "_"), 1: name.upper()}
        if not tame:
            bent |= {2: f"{name} ", 3: f" {name}", 4: f"{name}\x00"}
        yield f"{bent.get(bend, name)}:{rng.choice((' ', '', '  '))}{value}"


def _request(rng: random.Random) -> bytes:
    """The bytes of one request, or of something like it. Half of them nginx has no fault to find with but the path."""
    tame = rng.random() < 0.5
    method = rng.choice(_METHODS[: 7 if tame else None])
    roots = (*_ROOTS[: -3 if tame else None], *((_PUBLIC,) * 10))
    target = rng.choice(roots) if tame and rng.random() < 0.7 else _bent(rng, rng.choice(roots))
    lines = [f"{method} {target} HTTP/1.{'1' if tame else rng.choice('1111019')}", *_header_lines(rng, tame=tame)]
    if tame or rng.random() < 0.95:
        lines.insert(1, f"Host: {'x' if tame else rng.choice(('x', 'evil/..', 'x:80', '127.0.0.1'))}")
    if rng.random() < 0.4:
        lines.append("Connection: close")
    size = rng.choice((0, 2, 2000, SMALL_BYTES, SMALL_BYTES + 1, 70_000))
    content = rng.choice((b"x" * size, _HIDDEN_REQUEST, _HIDDEN_REQUEST * 3))
    framing = rng.randrange(8)
    body = b""
    if framing in (0, 1, 2):
        lines.append(f"Content-Length: {len(content) + (rng.choice((-1, 1, 1000)) if framing == 2 else 0)}")
        body = content
    elif framing in (3, 4, 5):
        lines.append(f"Transfer-Encoding: {rng.choice(('chunked', 'chunked', 'Chunked', 'gzip, chunked', 'x'))}")
        said = len(content) if framing != 5 else len(content) // 2
        body = f"{said:x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
        if rng.random() < 0.2:
            lines.append(f"Content-Length: {rng.randrange(50)}")
    elif framing == 6:
        body = _HIDDEN_REQUEST
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def _throw(port: int, data: bytes) -> None:
    """Sends it and takes what comes, for as long as something does."""
    with suppress(ConnectionError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            async with asyncio.timeout(0.3) as patience:
                while await reader.read(65536):
                    # What was hidden in its body would be answered next.
                    patience.reschedule(asyncio.get_running_loop().time() + 0.03)
        finally:
            writer.close()


async def _ask_honestly(client: aiohttp.ClientSession, port: int, name: str, stub: Stub) -> None:
    headers = {"X-Request-Id": name, "Authorization": f"Bearer {_KEY}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    async with client.post(url, json={"text": name}, headers=headers) as response:
        assert response.status == 200, f"an honest request was answered {response.status}: {await response.text()}"
        assert name in stub.honest, "an honest request was answered by somebody else"


async def run(seed: int, seconds: float) -> None:
    """Throws requests made from the seed for so long. Raises AssertionError with what was found."""
    with tempfile.TemporaryDirectory(prefix="gw-fuzz-") as name:
        async with AsyncExitStack() as stack:
            plain, keyed = Stub(keyed=False), Stub(keyed=True)
            auth = {"keys_file": "/nowhere", "public_paths": [_PUBLIC], "pass_authorization": True}
            everything = FrontendSettings.model_validate({"paths": "all"})
            guarded = FrontendSettings.model_validate({"paths": "all", "auth": auth})
            frontends = [
                (await stack.enter_async_context(_frontend_at(Path(name, "plain"), everything, plain)), plain),
                (await stack.enter_async_context(_frontend_at(Path(name, "keyed"), guarded, keyed)), keyed),
            ]
            client = await stack.enter_async_context(aiohttp.ClientSession())
            end = time.monotonic() + seconds

            async def one_sender(number: int) -> None:
                rng = random.Random(f"{seed} {number}")
                count = 0
                while time.monotonic() < end or count < 10:
                    data = _request(rng)
                    for port, stub in frontends:
                        await _throw(port, data)
                        assert not stub.faults, f"seed {seed}: {data[:600]!r} or one beside it: {stub.faults[:3]}"
                    count += 1
                    if count % 10 == 0:
                        for port, stub in frontends:
                            await _ask_honestly(client, port, f"honest-{number}-{count}", stub)

            await asyncio.gather(*(one_sender(number) for number in range(AT_ONCE)))
        for kind in ("plain", "keyed"):
            text = Path(name, kind, "error.log").read_text(encoding="latin-1")
            forged = [line for line in text.split("\n") if line and not _LOG_LINE.match(line)]
            assert not forged, f"seed {seed}: not nginx's own lines: {forged[:3]}"
