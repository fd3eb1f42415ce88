"""Takes the pictures of the live page in docs/images, in the real Chromium: `make page-shots`.

The page, its files and its stream are the real ones. What is told is made up here, since a machine has neither 200
engines nor an hour of time: statuses of two services, an hour of traffic, and the events of a morning.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from gateway_sidecar import __version__
from gateway_sidecar.api.bounded_server import BoundedServer, tcp_listener
from gateway_sidecar.api.models import Replica, Service, Status
from gateway_sidecar.api.page import add_page
from gateway_sidecar.api.page_feed import Feed
from gateway_sidecar.api.page_view import page_document
from gateway_sidecar.config import Endpoint
from gateway_sidecar.domain.history import EVERY_S, POINTS, History, Point
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.journal import Journal
from gateway_sidecar.telemetry.metrics import Metrics
from tests.chromium import Tab, chromium
from tests.ssh_servers import free_port

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_DESKTOP = (1280, 860)
_PHONE = (360, 760)

Rows = list[Replica]


def replica(name: str, state: str = "serving", reason: str | None = None, **other: Any) -> Replica:
    """A row of `status`; what the page does not show is left out."""
    known: dict[str, Any] = {
        "id": name, "state": state, "state_age_s": 4123.0, "worker_type": "regular", "connection_mode": "http",
        "runtime_type": "vllm", "model": "qwen3-32b", "in_flight": None, "reason": reason,
    }  # fmt: skip
    return cast("Replica", known | other)


def service(name: str, port: int, replicas: Rows, **other: Any) -> Service:
    """A service of these replicas, without trouble of its own."""
    serving = sum(row["state"] == "serving" for row in replicas)
    said: dict[str, Any] = {
        "name": name, "listen": f"127.0.0.1:{port}", "frontend_listen": [], "not_in_force": None, "serving": serving,
        "expected": sum(row["state"] != "draining" for row in replicas), "waiting": 0, "missing": None, "reason": None,
        "unanswered": {}, "replicas": replicas, "scaling": None,
        "source": {"settings": {}, "blind": None, "refused": {}},
        "router": {"type": "smg", "state": "up", "restarts": 0, "reason": None},
        "traffic": {
            "requests_per_s": 12.3, "errors_per_s": 0.0, "in_flight": 31.0, "ttft_p50_s": 0.21, "ttft_p99_s": 1.32,
        },
    }  # fmt: skip
    return cast("Service", said | other)


def status(*services: Service, **other: Any) -> Status:
    """A gateway of these services."""
    said: dict[str, Any] = {
        "daemon": {"version": __version__, "uptime_s": 353_000.0, "configuration": {"on_disk": "in force"}},
        "leave": None, "services": list(services), "addresses": [], "nginx": {"state": "up", "reason": None},
        "store": None, "problems": [], "ready": True,
    }  # fmt: skip
    return cast("Status", said | other)


def well() -> Status:
    """Two services; one replica drains, one loads."""
    chat = [replica(f"gpu{n}-a", in_flight=float(4 + n % 3)) for n in range(1, 7)]
    chat.append(replica("gpu7-a", "draining", "drain requested", state_age_s=14.0, in_flight=2.0))
    code = [
        *(replica(f"gpu{n}-b", model="devstral-24b", runtime_type="sglang", connection_mode="grpc", in_flight=1.0)
          for n in range(1, 4)),
        replica("gpu4-b", "loading", "its health check answers 503 (loading the model)", state_age_s=48.0,
                model="devstral-24b", runtime_type="sglang"),
    ]  # fmt: skip
    slower = {
        "requests_per_s": 2.1, "errors_per_s": 0.0, "in_flight": 3.0, "ttft_p50_s": 0.093, "ttft_p99_s": 0.41
    }  # fmt: skip
    return status(service("chat", 30000, chat), service("code", 30001, code, traffic=slower))


def many() -> Status:
    """A service of 200 replicas, of which some are not well."""
    dice = random.Random(7)
    rows = [replica(f"rack{n // 20:02}-{n % 20:02}", in_flight=float(dice.randrange(3, 9))) for n in range(200)]
    ailing = [
        ("loading", "its health check answers 503 (loading the model)"),
        ("loading", "its health check answers 503 (loading the model)"),
        ("unreachable", "connect: Connection refused (the SSH server cannot reach 127.0.0.1:8000)"),
        ("dead", "its requests have waited for 8 s, and its own metrics show no work"),
        ("draining", "drain requested"),
    ]
    for state, reason in ailing:
        at = dice.randrange(200)
        rows[at] = replica(rows[at]["id"], state, reason, state_age_s=dice.uniform(5, 300))
    traffic = {"requests_per_s": 412.0, "errors_per_s": 0.3, "in_flight": 1034.0, "ttft_p50_s": 0.34, "ttft_p99_s": 2.9}
    return status(service("chat", 30000, rows, traffic=traffic))


def broken() -> Status:
    """A router that refuses its arguments, a service without a replica, a store that is away."""
    chat = [
        replica("gpu1-a", "registering", "the router is not up", state_age_s=74.0),
        replica("gpu2-a", "foreign", "it answers as an HTTP server without a model list (GET /v1/models: 404)",
                state_age_s=2700.0, runtime_type=None, connection_mode=None, model=None, worker_type=None),
        replica("gpu3-a", "unreachable", "the tunnel is down: Permission denied (publickey)",
                state_age_s=608.0),
        replica("gpu4-a", "loading", "its health check answers 503 (loading the model)", state_age_s=31.0),
        replica("gpu5-a", "absent", "there is no socket", state_age_s=0.0, runtime_type=None, connection_mode=None,
                model=None, worker_type=None),
    ]  # fmt: skip
    router = {
        "type": "smg", "state": "refused", "restarts": 3,
        "reason": "it refuses its arguments: error: unexpected argument '--polcy' found",
    }  # fmt: skip
    code = [
        replica(
            "gpu1-b", "dead", "its requests have waited for 8 s, and its own metrics show no work", state_age_s=95.0
        )
    ]
    nothing = dict.fromkeys(("requests_per_s", "errors_per_s", "in_flight", "ttft_p50_s", "ttft_p99_s"))
    return status(
        service("chat", 30000, chat, router=router, waiting=17, missing="router", traffic=nothing),
        service("code", 30001, code, waiting=4, missing="replica", reason="no replica of service code serves",
                traffic={**nothing, "requests_per_s": 0.4, "errors_per_s": 0.4, "in_flight": 0.0}),
        problems=["certificates: example.net expires in 3 days; renew the certificate"],
        store={"gateway": "gw1", "state": "away", "reason": "127.0.0.1:2379: Connection refused", "others": []},
        ready=False,
    )  # fmt: skip


def hour(history: History, rates: Mapping[str, float], *, ends_badly: bool = False) -> None:
    """An hour of traffic with a busy quarter, as the daemon would have taken it; rates: of each service, at its end."""
    dice, now = random.Random(11), awake.monotonic()
    for number in range(POINTS):
        busy = 1 + 1.2 * math.exp(-(((number - 210) / 45) ** 2)) + 0.2 * math.sin(number / 17)
        down = ends_badly and number > POINTS - 12
        points = {}
        for name, at_rest in rates.items():
            rate = 0.0 if down else at_rest * busy * dice.uniform(0.85, 1.15)
            errors = dice.uniform(0.2, 1.2) if number in range(205, 217) else 0.0
            first = 0.16 * busy * dice.uniform(0.9, 1.1)
            latency = (
                (None,) * 4 if down else (first, first * dice.uniform(4, 7), first * 14, first * dice.uniform(28, 35))
            )
            waiting = min(17.0, (number - POINTS + 12) * 2.0) if down else 0.0
            points[name] = Point(rate, errors, 0.0 if down else rate * 2.6, max(0.0, waiting), *latency)
        history.take(now - (POINTS - 1 - number) * EVERY_S, points)


def morning(journal: Journal, *, goes_badly: bool = False) -> None:
    """Events, the last one a moment ago."""
    for ago_s, event in _told(goes_badly):
        at = datetime.now(UTC) - timedelta(seconds=ago_s)
        journal.note({"timestamp": at.isoformat().replace("+00:00", "Z"), "level": "info", **event})


def _told(goes_badly: bool) -> Iterator[tuple[float, dict[str, object]]]:
    for number, name in enumerate(("gpu1-a", "gpu2-a", "gpu3-a", "gpu1-b")):
        yield 3000 - 90 * number, {"event": "replica.seen", "service": "chat", "replica": name}
        yield 2960 - 90 * number, {"event": "replica.serving", "service": "chat", "replica": name, "since_seen_s": 38.1}
    yield 1400, {"event": "scaling.recommended", "service": "chat", "role": "regular", "desired": 7, "was": 6,
                 "reason": "mean in flight 6.8, target 6 for each"}  # fmt: skip
    yield 1320, {"level": "warning", "event": "replica.ejected", "service": "chat", "replica": "gpu2-a", "failures": 5,
                 "over_s": 2.1, "reason": "connections refused"}  # fmt: skip
    yield 1318, {"event": "replica.serving", "service": "chat", "replica": "gpu2-a", "since_seen_s": 12.0}
    if goes_badly:
        yield 610, {"level": "warning", "event": "tunnel.down", "replica": "chat/gpu3-a", "state": "refused",
                    "reason": "Permission denied (publickey)"}  # fmt: skip
        yield 300, {"level": "error", "event": "store.away", "reason": "127.0.0.1:2379: Connection refused"}
        yield 96, {"level": "warning", "event": "replica.dead", "service": "code", "replica": "gpu1-b",
                   "reason": "its requests have waited for 8 s, and its own metrics show no work"}  # fmt: skip
        yield 80, {"level": "error", "event": "router.exited", "service": "chat", "exit_code": 2}
        yield 76, {"level": "error", "event": "router.not_started", "service": "chat",
                   "reason": "it refuses its arguments: error: unexpected argument '--polcy' found"}  # fmt: skip
        yield 31, {"event": "replica.loading", "service": "chat", "replica": "gpu4-a",
                   "reason": "its health check answers 503 (loading the model)"}  # fmt: skip
    else:
        yield 48, {"event": "replica.loading", "service": "code", "replica": "gpu4-b",
                   "reason": "its health check answers 503 (loading the model)"}  # fmt: skip
        yield 14, {"event": "replica.draining", "service": "chat", "replica": "gpu7-a", "reason": "drain requested"}


class Site:
    """The page of a status."""

    def __init__(self, of: Status, *, goes_badly: bool = False) -> None:
        self.history, self.journal = History(), Journal()
        document = {**page_document(of), "gateway": "gw1.example.net"}
        self.feed = Feed(lambda: document, self.history, self.journal, Tasks("-", Metrics()))
        hour(self.history, {it["name"]: it["traffic"]["requests_per_s"] or 11.0 for it in of["services"]},
             ends_badly=goes_badly)  # fmt: skip
        morning(self.journal, goes_badly=goes_badly)
        self.port = free_port()
        self.server: BoundedServer | None = None

    async def __aenter__(self) -> str:
        app, taken_up = web.Application(), asyncio.Event()
        taken_up.set()
        add_page(app, self.feed, taken_up)
        self.server = BoundedServer(app, Tasks("-", Metrics()))
        await self.server.listen(tcp_listener(Endpoint("127.0.0.1", self.port)))
        return f"http://127.0.0.1:{self.port}/"

    async def __aexit__(self, *_: object) -> None:
        assert self.server is not None
        await self.server.close()


async def take(
    tab: Tab, url: str, name: str, size: tuple[int, int], *, phone: bool = False, dark: bool = False
) -> None:
    """One picture, once the page is live."""
    await tab.show(*size, phone=phone, dark=dark)
    await tab.go(url)
    tab.complaints.clear()  # Of the page before, whose daemon has gone.
    await tab.until("document.querySelector('#connection').textContent === 'live'")
    await tab.until("document.querySelectorAll('#log li').length > 3")
    await _kept(tab, name)


async def _kept(tab: Tab, name: str) -> None:
    wide = await tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        raise RuntimeError(f"{name}: the page is {wide} px wider than the window")
    if tab.complaints:
        raise RuntimeError(f"{name}: {tab.complaints}")
    (IMAGES / f"{name}.png").write_bytes(await tab.picture())


def smaller(png: bytes) -> bytes:
    """The picture with 256 colours, which is a third of Chromium's (8 bits, RGB, not interlaced)."""
    chunks, at = dict[bytes, bytes](), 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        chunks[kind] = chunks.get(kind, b"") + png[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, depth, colours = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colours) == (8, 2), "no picture of Chromium's"
    lines = _unfiltered(zlib.decompress(chunks[b"IDAT"]), 3 * width)
    pixels = [[line[x : x + 3] for x in range(0, 3 * width, 3)] for line in lines]
    palette = _palette(Counter(chain.from_iterable(pixels)))

    @cache
    def nearest(pixel: bytes) -> int:
        return min(range(len(palette)), key=lambda n: _distance(pixel, palette[n]))

    body = b"".join(b"\0" + bytes(map(nearest, line)) for line in pixels)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0), b"PLTE": b"".join(palette),
        b"IDAT": zlib.compress(body, 9), b"IEND": b"",
    }  # fmt: skip
    return png[:8] + b"".join(
        struct.pack(">I", len(said)) + kind + said + struct.pack(">I", zlib.crc32(kind + said))
        for kind, said in parts.items()
    )


def _palette(counts: Counter[bytes]) -> list[bytes]:
    """First the colours that are unlike all before, then the most frequent."""
    found: list[bytes] = []
    for least in (600, 0):
        for colour, _ in counts.most_common():
            if len(found) < 256 and all(_distance(colour, other) > least for other in found):
                found.append(colour)
    return found


def _distance(a: bytes, b: bytes) -> int:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def _unfiltered(raw: bytes, length: int) -> Iterator[bytes]:
    """The lines of an RGB picture: each byte was written as its distance from what its neighbours foretell."""
    above = bytearray(length)
    for begin in range(0, len(raw), length + 1):
        kind, line = raw[begin], bytearray(raw[begin + 1 : begin + 1 + length])
        for x in range(length):
            left, up, corner = (line[x - 3], above[x], above[x - 3]) if x >= 3 else (0, above[x], 0)
            near = min(
                (abs(up - corner), 0, left), (abs(left - corner), 1, up), (abs(left + up - 2 * corner), 2, corner)
            )
            line[x] = (line[x] + (0, left, up, (left + up) // 2, near[2])[kind]) & 255
        yield bytes(line)
        above = line


async def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    async with chromium() as tab:
        async with Site(well()) as url:
            await take(tab, url, "page", _DESKTOP)
        async with Site(many()) as url:
            await take(tab, url, "page-200", _DESKTOP, dark=True)
            await take(tab, url, "page-phone", _PHONE, phone=True)
        async with Site(broken(), goes_badly=True) as url:
            await take(tab, url, "page-broken", _DESKTOP)
        tab.complaints.clear()
        await tab.until("document.querySelector('#connection').textContent.startsWith('disconnected')")
        tab.complaints.clear()  # That the connection was refused.
        await _kept(tab, "page-away")
    for picture in sorted(IMAGES.glob("page*.png")):
        picture.write_bytes(smaller(picture.read_bytes()))


if __name__ == "__main__":
    asyncio.run(main())
