"""Who still holds a connection to a bridge port: read from the kernel, not guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from pathlib import Path

_OPEN = frozenset((b"01", b"04", b"05", b"08"))  # established, fin-wait-1, fin-wait-2, close-wait


def open_connections(ports: Container[int], tables: tuple[Path, ...] | None = None) -> Counter[int]:
    """Local port -> connections that somebody may still send or receive on, for the given ports.

    Blocks while the kernel writes out its table (about 1 ms per 1,000 connections): call in a thread.
    """
    found: Counter[int] = Counter()
    for table in tables or (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")):
        try:
            rows = table.read_bytes().splitlines()[1:]
        except FileNotFoundError:
            continue  # No IPv6 on this machine.
        for row in rows:
            _, local, _, state, _ = row.split(maxsplit=4)
            if state in _OPEN:
                port = int(local[-4:], 16)
                if port in ports:
                    found[port] += 1
    return found
