"""A connection by which an engine's end is felt, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway_sidecar.control.replicas.liveness import LivenessConnections, connect_liveness
from gateway_sidecar.control.replicas.tenure import Probed, Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import Access, ConnectionMode, EngineFacts, Ready
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from tests.unit.engines import FACTS, SETTINGS, tenure_of
from tests.unit.fake_time import FakeTimeLoop, in_fake_time


class PlayedTransport:
    """What an engine is connected by."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self.is_open = True
        self.written = b""
        self.says_no_more = False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.says_no_more = True

    def abort(self) -> None:
        if self.is_open:
            self.is_open = False
            self._protocol.connection_lost(None)


class Engine:
    """Takes one connection, or refuses it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.fault: OSError | None = None
        patch.setattr(FakeTimeLoop, "create_unix_connection", self._connect)

    async def _connect(self, make: Callable[[], asyncio.Protocol], path: str) -> tuple[Any, asyncio.Protocol]:
        self.asked.append(path)
        if self.fault is not None:
            raise self.fault
        self.protocol = make()
        self.transport = PlayedTransport(self.protocol)
        self.protocol.connection_made(cast("Any", self.transport))
        return self.transport, self.protocol


@in_fake_time
async def test_the_end_is_told_once_whoever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ends = Engine(monkeypatch), []
    transport = await connect_liveness("/r1.sock", lambda: ends.append(1), grpc=False)
    assert engine.asked == ["/r1.sock"]
    assert ends == []
    engine.protocol.connection_lost(ConnectionResetError())
    assert ends == [1]
    assert cast("Any", transport) is engine.transport


@in_fake_time
async def test_one_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    engine.fault = ConnectionRefusedError()
    with pytest.raises(OSError):  # noqa: PT011 - any
        await connect_liveness("/r1.sock", lambda: None, grpc=False)


@in_fake_time
async def test_a_server_that_greets_and_pings_is_heard_out_and_one_that_talks_on_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is asked over it; what comes all the same would be received for ever."""
    engine, ends = Engine(monkeypatch), []
    await connect_liveness("/r1.sock", lambda: ends.append(1), grpc=False)
    for _ in range(64):
        engine.protocol.data_received(b"x" * 1024)
    assert engine.transport.is_open
    engine.protocol.data_received(b"x")
    assert not engine.transport.is_open
    assert ends == [1]


@in_fake_time
async def test_a_grpc_server_is_greeted_and_its_pings_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it takes the connection for one that never begins, and closes it."""
    engine = Engine(monkeypatch)
    await connect_liveness("/r1.sock", lambda: None, grpc=True)
    greeting, settings, ping = engine.transport.written, b"\0\0\0\x04%b\0\0\0\0", b"\0\0\x08\x06%b\0\0\0\x0012345678"
    assert greeting.startswith(b"PRI * HTTP/2.0")
    engine.protocol.data_received(settings % b"\0" + ping % b"\0")
    assert engine.transport.written == greeting + settings % b"\x01" + ping % b"\x01"
    engine.protocol.data_received(b"\xff" * 9)
    assert not engine.transport.is_open


@in_fake_time
async def test_in_line_an_engine_hears_at_once_that_nothing_will_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes the connection when its turn comes, and waits for no request on it."""
    engine = Engine(monkeypatch)
    await connect_liveness("/r1.sock", lambda: None)
    assert not engine.transport.says_no_more
    await connect_liveness("/r1.sock", lambda: None, in_line=True)
    assert engine.transport.says_no_more


class Site:
    """One engine that is well and bridged, as its prober knows it, and the connections to it."""

    def __init__(self, engine: Engine, facts: EngineFacts = FACTS) -> None:
        self.engine = engine
        self.tenure = tenure_of("r1")
        self.tenure.probe = Probed(facts, Ready(facts), due=1e9, identify_next=False)
        self.tenure.bridge.port, self.tenure.bridge.linked = 24001, True
        self.suspected = 0
        self.queue: WorkQueue[Key] = WorkQueue(awake.monotonic)
        self.liveness = LivenessConnections(SETTINGS, self.queue, cast("Any", self), Metrics())

    def suspect(self, tenure: Tenure) -> None:
        """As the prober has it."""
        assert tenure is self.tenure
        self.suspected += 1

    async def look(self) -> int:
        """Looks at the tenure as the loop would, a moment later; how often the engine was connected to by then."""
        self.liveness.keep_up(self.tenure)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return len(self.engine.asked)


@in_fake_time
async def test_an_engine_that_ends_is_asked_at_once_and_connected_to_again_a_moment_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(Engine(monkeypatch))
    assert await site.look() == await site.look() == 1
    site.engine.protocol.connection_lost(None)
    assert site.suspected == 1
    assert await site.look() == 1, "it may close each of them"
    await asyncio.sleep(0.5)
    assert site.queue.pop() == site.tenure.key
    assert await site.look() == 2


@in_fake_time
async def test_a_server_that_closes_idle_connections_after_a_while_is_not_asked_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(Engine(monkeypatch))
    for life_s in (5.0, 5.1, 5.0):
        await site.look()
        await asyncio.sleep(life_s)
        site.engine.protocol.connection_lost(None)
        assert site.queue.pop() in (site.tenure.key, None)
    assert site.suspected == 1, "the first time nobody knew"
    await site.look()
    await asyncio.sleep(8)
    site.engine.protocol.connection_lost(None)
    assert site.suspected == 2


@in_fake_time
@pytest.mark.parametrize(("fault", "suspected"), [(ConnectionRefusedError(), 1), (BlockingIOError(), 0)])
async def test_an_engine_that_cannot_be_connected_to_is_asked_unless_its_queue_is_full(
    monkeypatch: pytest.MonkeyPatch, fault: OSError, suspected: int
) -> None:
    """Who is busy is not dead."""
    site = Site(Engine(monkeypatch))
    site.engine.fault = fault
    assert await site.look() == await site.look() == 1
    assert site.suspected == suspected
    await asyncio.sleep(0.5)
    assert site.queue.pop() == site.tenure.key
    assert await site.look() == 2


@in_fake_time
async def test_an_engine_that_serves_one_at_a_time_is_connected_to_anew_and_not_suspected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It closes the connection once it has taken it."""
    site = Site(Engine(monkeypatch), EngineFacts("external", ConnectionMode.HTTP))
    for number in range(1, 4):
        assert await site.look() == number
        assert site.engine.transport.says_no_more
        site.engine.protocol.connection_lost(None)
        await asyncio.sleep(0.5)
    assert site.suspected == 0


@in_fake_time
async def test_an_engine_that_is_being_asked_is_connected_to_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer may show that it is another one."""
    site = Site(Engine(monkeypatch))
    site.tenure.probe.due = 0.0
    assert await site.look() == 0
    site.tenure.probe.due = 1e9
    await asyncio.sleep(0.5)
    assert site.queue.pop() == site.tenure.key
    assert await site.look() == 1


@in_fake_time
async def test_nobody_watches_an_engine_that_is_drained_or_that_nothing_leads_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(Engine(monkeypatch))
    site.tenure.bridge.linked = False
    assert await site.look() == 0
    site.tenure.bridge.linked = True
    assert await site.look() == 1
    site.tenure.drain.requested = True
    await site.look()
    assert not site.engine.transport.is_open
    assert site.suspected == 0, "the daemon closed it itself"
    site.tenure.drain.requested, site.tenure.probe.access = False, Access(tls=True)
    assert await site.look() == 1, "a connection without a handshake is an error to a server that speaks TLS"
