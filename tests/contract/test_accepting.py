"""What asyncio does with those who are accepted just as a server ends, as `tests/conftest.py` has it."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.mark.parametrize("turns", range(6))
async def test_who_is_accepted_as_a_server_ends_is_not_left_open(tmp_path: Path, turns: int) -> None:
    """Whichever turn of the loop it is between `accept` and the protocol."""
    server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(tmp_path / "a.sock"))
        for _ in range(turns):
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        with suppress(ConnectionResetError):  # It was not accepted yet.
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    gc.collect()
