"""Lets a Unix socket be reached over TCP: `python -m tests.system.tcp_front HOST PORT SOCKET`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def serve(host: str, port: int, path: str) -> None:
    """Carries every connection on, until ended."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
        target.close()

    server = await asyncio.start_server(carry, host, port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
