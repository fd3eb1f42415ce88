"""Streams tokens of 150 bytes: `python -m bench.token_source SOCKET`.

A client sends `RATE SECONDS`, the rate in tokens a second or 0 for as fast as it is read; each token is a write of its
own, as an engine's server-sent events are.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

TOKEN = b"data: " + b"x" * 142 + b"\n\n"


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        rate, seconds = (float(word) for word in (await reader.readline()).split())
        loop = asyncio.get_running_loop()
        began, sent = loop.time(), 0
        while (now := loop.time()) - began < seconds:
            writer.write(TOKEN)
            sent += 1
            if rate:
                await asyncio.sleep(max(0.0, began + sent / rate - now))
            else:
                await writer.drain()
                await asyncio.sleep(0)
    writer.close()


async def _run(path: str) -> None:
    server = await asyncio.start_unix_server(_stream, path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1]))
