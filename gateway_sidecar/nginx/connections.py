"""Open connections to a bridge: read from the kernel, not guessed."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections import Counter
from collections.abc import Collection, Container, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from gateway_sidecar.domain.model import PeerAddress

_OPEN = frozenset((b"01", b"04", b"05", b"08"))  # established, fin-wait-1, fin-wait-2, close-wait
_LISTENS = b"00010000"
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


def open_connections(ports: Container[int], tables: tuple[Path, ...] = _TABLES) -> Counter[int]:
    """Local port -> connections that somebody may still send or receive on, for the given ports.

    Blocks while the kernel writes out its table (about 1 ms per 1,000 connections): call in a thread.
    """
    found: Counter[int] = Counter()
    for local, _, state in _rows(tables):
        if state in _OPEN:
            port = int(local[-4:], 16)
            if port in ports:
                found[port] += 1
    return found


def connections_at(addresses: Collection[PeerAddress], tables: tuple[Path, ...] = _TABLES) -> Counter[PeerAddress]:
    """Address -> open connections that end there, for addresses of this machine and of others alike. Blocks."""
    wanted = {text: address for address in addresses for text in _kernel_texts(address)}
    found: Counter[PeerAddress] = Counter()
    for local, remote, state in _rows(tables):
        if state not in _OPEN:
            continue
        if (here := wanted.get(local)) is not None:
            found[here] += 1
        elif (there := wanted.get(remote)) is not None and not _same_host(local, remote):
            found[there] += 1  # Else it is a local one, and its other end is counted already.
    return found


def listening_at(pid: int, tables: tuple[Path, ...] = _TABLES) -> frozenset[tuple[IPv4Address | IPv6Address, int]]:
    """The TCP addresses that this process listens on: what it serves, whatever it was told to.

    Empty if it is gone, or of a user into whose processes we cannot look. Blocks: call in a thread.
    """
    held = set()
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            held.add(os.readlink(entry).encode())  # noqa: PTH115 - for every connection there is
    found = set()
    for table in tables:
        with suppress(FileNotFoundError), table.open("rb") as rows:
            for row in rows:
                if b" 0A " in row:
                    fields = row.split(maxsplit=10)
                    if fields[3] == b"0A" and b"socket:[%s]" % fields[9] in held:
                        found.add((kernel_address(fields[1]), int(fields[1][-4:], 16)))
    return frozenset(found)


def holds_listener(pid: int, path: Path, table: Path = Path("/proc/self/net/unix")) -> bool:
    """Whether this process takes connections to the Unix socket at that path. Blocks: call in a thread."""
    listening = set()
    with table.open("rb") as rows:
        for row in rows:
            fields = row.split(maxsplit=7)
            if len(fields) == 8 and fields[3] == _LISTENS and fields[7].rstrip(b"\n") == os.fsencode(path):
                listening.add(f"socket:[{fields[6].decode()}]")
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            if os.readlink(entry) in listening:  # noqa: PTH115 - for every connection there is
                return True
    return False


def kernel_address(text: bytes) -> IPv4Address | IPv6Address:
    """`0500000A:1F40`, an address as the kernel's tables write it -> the address; a mapped IPv4 one as IPv4."""
    digits = text.partition(b":")[0].decode()
    words = (int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8))
    packed = b"".join(words)
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


def _kernel_texts(address: PeerAddress) -> Iterator[bytes]:
    """An address as the kernel's tables write it: IPv4 as such, and as an IPv6 socket has it."""
    packed = ipaddress.ip_address(address.host).packed
    for each in (packed,) if len(packed) == 16 else (packed, IPv6Address(f"::ffff:{address.host}").packed):
        words = (int.from_bytes(each[at : at + 4], sys.byteorder) for at in range(0, len(each), 4))
        yield f"{''.join(f'{word:08X}' for word in words)}:{address.port:04X}".encode()


def _same_host(one: bytes, other: bytes) -> bool:
    return one.partition(b":")[0] == other.partition(b":")[0]


def _rows(tables: tuple[Path, ...]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Local address, far address and state of every TCP socket."""
    for table in tables:
        # Row by row: a busy machine has megabytes of them, and this is read many times a second.
        with suppress(FileNotFoundError), table.open("rb") as rows:  # There is none for IPv6 on some machines.
            next(rows, None)
            for row in rows:
                _, local, remote, state, _ = row.split(maxsplit=4)
                yield local, remote, state
