"""The nginx processes that show engines their keys: a bridge leads to one only when it shows the right key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from structlog.testing import capture_logs

from gateway_sidecar.control.edge.key_proxies import KeyProxies
from gateway_sidecar.domain.model import Access
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.key_proxy import Keyed, KeyedNginx
from gateway_sidecar.supervision.process import Identity
from tests.unit.fake_time import beside, in_fake_time

PORT = 24001
ONE = Keyed(Path("/r1.sock"), Access(api_key="one"), False)
OTHER = Keyed(Path("/r1.sock"), Access(api_key="other"), False)


class PlayedNginx:
    """Shows what it was led to, unless it refuses."""

    def __init__(self, port: int) -> None:
        self.listens_at = Path(f"/run/keyed/{port}.sock")
        self.process: object | None = None
        self.shows: Keyed | None = None
        self.refuses = 0
        self.leads = 0
        self.on_end: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        return self.process is not None

    async def lead(self, to: Keyed) -> None:
        self.leads += 1
        await asyncio.sleep(0.1)
        if self.refuses:
            self.refuses -= 1
            raise NginxError("nginx refuses it")
        self.process = self.process or object()
        self.shows = to

    def on_exit(self, then: Callable[[], None]) -> None:
        self.on_end = then

    def adopt(self, identity: Identity) -> bool:
        self.process = identity
        return True

    async def stop(self) -> None:
        self.process = self.shows = None


class Proxies:
    """The proxies, running, with connections that the test counts."""

    def __init__(self, left: dict[int, Identity]) -> None:
        self.made: dict[int, PlayedNginx] = {}
        self.connections: Counter[int] = Counter()
        self.has_looked = False
        self.keys = KeyProxies(self._make, lambda: left, lambda _: self.connections)

    @property
    def nginx(self) -> PlayedNginx:
        return self.made[PORT]

    def led_to(self, to: Keyed) -> Path | None:
        """Where the bridge has to lead; None while it must not."""
        return self.keys.request(PORT, to).listens_at

    def _make(self, port: int) -> KeyedNginx:
        self.made[port] = PlayedNginx(port)
        return cast("KeyedNginx", cast("Any", self.made[port]))


@asynccontextmanager
async def proxies(left: dict[int, Identity] | None = None) -> AsyncIterator[Proxies]:
    with capture_logs():
        made = Proxies(left or {})
        await made.keys.begin(lambda: made.has_looked)
        async with beside(made.keys.run()):
            yield made


@in_fake_time
async def test_a_bridge_is_led_there_only_once_the_key_is_shown() -> None:
    async with proxies() as it:
        assert it.led_to(ONE) is None
        await asyncio.sleep(1)
        assert it.led_to(ONE) == it.nginx.listens_at
        assert it.nginx.shows == ONE
        assert it.led_to(OTHER) is None, "it still shows the other key"
        await asyncio.sleep(1)
        assert it.led_to(OTHER) == it.nginx.listens_at


@in_fake_time
async def test_one_that_refuses_is_tried_again_ever_less_often() -> None:
    async with proxies() as it:
        it.led_to(ONE)
        it.nginx.refuses = 1000
        await asyncio.sleep(100)
        assert it.keys.request(PORT, ONE).problem == "nginx refuses it"
        assert 10 <= it.nginx.leads <= 25
        it.nginx.refuses = 0
        await asyncio.sleep(11)
        assert it.led_to(ONE) is not None


@in_fake_time
async def test_one_that_ends_is_started_again_at_once() -> None:
    async with proxies() as it:
        it.led_to(ONE)
        await asyncio.sleep(1)
        await it.nginx.stop()
        it.nginx.on_end()
        assert it.led_to(ONE) is None
        await asyncio.sleep(0.5)
        assert it.led_to(ONE) is not None


@in_fake_time
async def test_one_that_nobody_wants_is_ended_when_it_is_quiet() -> None:
    async with proxies() as it:
        it.has_looked = True
        it.led_to(ONE)
        await asyncio.sleep(1)
        it.connections[PORT] = 1
        it.keys.withdraw(PORT)
        await asyncio.sleep(100)
        assert it.nginx.running
        it.connections[PORT] = 0
        await asyncio.sleep(2)
        assert not it.nginx.running


@in_fake_time
async def test_what_an_earlier_daemon_left_is_kept_until_everybody_was_seen() -> None:
    """Its replica may be there, and not have been looked at yet."""
    async with proxies({PORT: Identity(1, 1, "boot")}) as it:
        await asyncio.sleep(100)
        assert it.nginx.running
        it.has_looked = True
        await asyncio.sleep(2)
        assert not it.nginx.running
