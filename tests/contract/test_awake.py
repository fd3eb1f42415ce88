"""What comes over a real socket while the daemon is stopped, or a moment later."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop

from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_an_answer_that_came_during_a_stall_is_heard(pair: Pair) -> None:
    """The loop runs its timers first when it is late: a time-out must not win over what lies in the socket."""

    async def ask() -> None:
        ours, theirs = pair
        with awake.watched():
            await asyncio.sleep(0.2)
            before = awake.stalls()
            asking = asyncio.create_task(_received(ours, within_s=0.5))
            await asyncio.sleep(0)
            theirs.send(b"x")
            time.sleep(1.2)  # noqa: ASYNC251 - the stall
            assert await asking == b"x"
            assert awake.stalls() > before

    uvloop.run(ask())


def test_an_answer_that_comes_a_moment_after_a_stall_is_heard(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped with us has to wake up first."""
    monkeypatch.setattr(awake, "_MOMENT_S", 60.0)  # A busy machine makes what follows the stall as long as that.

    async def ask() -> None:
        ours, theirs = pair
        with awake.using(awake.Clock()), awake.watched():
            await asyncio.sleep(0.2)
            asking = asyncio.create_task(_received(ours, within_s=0.3))
            await asyncio.sleep(0)
            time.sleep(1.2)  # noqa: ASYNC251 - the stall
            await asyncio.sleep(0.4)
            theirs.send(b"x")
            assert await asking == b"x"

    uvloop.run(ask())


async def test_silence_ends_in_time(pair: Pair) -> None:
    began = time.monotonic()
    with awake.watched(), pytest.raises(TimeoutError):
        await _received(pair[0], within_s=0.2)
    assert time.monotonic() - began >= 0.2
    with pytest.raises(TimeoutError):
        await _received(pair[0], within_s=0.0)


async def test_cancellation_is_no_time_out(pair: Pair) -> None:
    task = asyncio.create_task(_received(pair[0], within_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _received(sock: socket.socket, *, within_s: float) -> bytes:
    async with within(within_s):
        return await asyncio.get_running_loop().sock_recv(sock, 10)
