"""A gRPC engine's connections, carried byte by byte to grpcio's own server.

grpcio opens and accepts its sockets itself, so what an engine does to a connection (hang, break off, drip) is
done here, between the engine's socket and grpcio's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from examples.simulated.core import EngineCore
from examples.simulated.options import Lie

CHUNK_BYTES = 256 * 1024
TRUNCATED_BYTES = 100
DRIP_INTERVAL_S = 1.0


class Relay:
    """Carries connections to the abstract Unix socket named `upstream`."""

    def __init__(self, core: EngineCore, upstream: str) -> None:
        self._core = core
        self._upstream = f"\0{upstream}"
        self._carried: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol for one accepted connection."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=CHUNK_BYTES), self._begin)

    def drop_connections(self) -> None:
        """Break every open connection."""
        for task, writer in self._carried.items():
            writer.transport.abort()
            task.cancel()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._core.stopping:  # Accepted in the engine's last instant.
            writer.transport.abort()
            return
        task = asyncio.create_task(self._carry(reader, writer))
        self._carried[task] = writer
        task.add_done_callback(self._carried.pop)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._upstream, limit=CHUNK_BYTES)
        except ConnectionError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(self._pump(reader, inner_writer), self._answer(inner_reader, writer))
        finally:
            inner_writer.close()
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                await self._core.moving()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                await self._core.moving()
                await self._deliver(data, writer)
        writer.close()

    async def _deliver(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        # What has begun to drip does so only while it is told to: a router keeps its connections for longer than that.
        while data and self._core.behaviour.lie is Lie.SLOW_DRIP:
            writer.write(data[:1])
            data = data[1:]
            await writer.drain()
            await asyncio.sleep(DRIP_INTERVAL_S)
        if self._core.behaviour.lie is Lie.TRUNCATED:
            writer.write(data[:TRUNCATED_BYTES])
            raise ConnectionAbortedError("truncated, as told")
        writer.write(data)
        await writer.drain()
