"""A connection by which an engine's end is felt, without a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway_sidecar.control.replicas.liveness import connect_liveness, is_refused
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


class PlayedSocket:
    """Answers a `connect` with a fault, or with nothing."""

    fault: OSError | None = None

    def __init__(self, *_: object) -> None:
        return

    def __enter__(self) -> PlayedSocket:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def connect(self, address: str) -> None:
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        (ConnectionRefusedError(), True),
        (BlockingIOError(), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (None, False),
    ],
)
def test_only_a_refusal_proves_that_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, fault: OSError | None, *, refused: bool
) -> None:
    """A full backlog does not: busy is not dead."""
    monkeypatch.setattr(PlayedSocket, "fault", fault)
    monkeypatch.setattr(socket, "socket", PlayedSocket)
    assert is_refused("/r1.sock") is refused
