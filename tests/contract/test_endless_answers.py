"""Engines that talk without end over a real socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from gateway_sidecar.control.replicas.liveness import connect_liveness
from gateway_sidecar.engines.unix_socket import UnixConnection

MIB = 1024 * 1024


async def test_a_server_that_has_much_to_say_gives_others_their_turn() -> None:
    """What lies in the socket already would be received in one go, however much it is."""
    ours, theirs = socket.socketpair()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"x" * 50_000)
        counting = asyncio.create_task(count())
        connection = UnixConnection(ours)
        for _ in range(50):
            assert len(await connection.receive(1000)) == 1000
        counting.cancel()
    assert turns >= 49


async def test_a_server_that_talks_on_the_liveness_connection_is_not_listened_to(tmp_path: Path) -> None:
    """Nothing is asked over it; what comes all the same would be received for ever."""
    path, ended = str(tmp_path / "r1.sock"), asyncio.Event()
    sent = 0

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except OSError:
            writer.close()

    server: Any = await asyncio.start_unix_server(talk, path)
    try:
        await connect_liveness(path, ended.set, grpc=False)
        async with asyncio.timeout(60):
            await ended.wait()
        assert sent < 4 * MIB
    finally:
        server.close()
