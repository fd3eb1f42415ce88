"""Open connections to a bridge: read from the kernel, not guessed."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from gateway_sidecar.domain.model import PeerAddress
from gateway_sidecar.supervision.process import descriptors_of

_OPEN = frozenset((b"01", b"04", b"05", b"08"))  # established, fin-wait-1, fin-wait-2, close-wait
_OWING = _OPEN - {b"05"}
_LISTENS = b"00010000"
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))

# sock_diag(7) and linux/inet_diag.h: a question for all TCP sockets of a family that may still send, with `tcp_info`.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _ERROR, _DONE = 4, 20, 2, 3
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_INFO = 2  # INET_DIAG_INFO
_SENDS = 1 << 1 | 1 << 8  # established, close-wait
_QUESTION = struct.Struct("=IHHII BBBBI 48x")
_HEAD = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ENDS = struct.Struct("!4x HH 16s 16s")
_COOKIE = slice(44, 52)
_ANSWER_BYTES = 72  # sizeof(struct inet_diag_msg)
_ACKED_AND_RECEIVED = struct.Struct("=120x QQ")
_SENT_AND_RECEIVED_MS = struct.Struct("=44x I 4x I")  # how long ago
_MAPPED = IPv6Address("::ffff:0:0").packed[:12]
_READ_BYTES = 256 * 1024  # A choice: netlink fills what it is given, so a table of thousands is a few calls.

Client = tuple[int, bytes]
"""A connection of a client's: our port, and both ends as the kernel writes them."""
Place = int | PeerAddress
"""A bridge port, or an advertised address."""
Sent = Mapping[tuple[Place, bytes], int]
"""(place, connection) -> bytes that an engine has sent on it."""


def open_connections(
    ports: Container[int], tables: tuple[Path, ...] = _TABLES, *, hosts: Collection[str] = ()
) -> Counter[int]:
    """Local port -> connections that somebody may still send or receive on, for the given ports.

    hosts: the addresses that are listened on there; by default all of this machine's. Another gateway on this machine
    may have the same ports on other addresses.
    Blocks while the kernel writes out its table (about 1 ms per 1,000 connections): call in a thread.
    """
    found: Counter[int] = Counter()
    at = _host_texts(hosts)
    for local, _, state in _rows(tables):
        if state in _OPEN:
            port = int(local[-4:], 16)
            if port in ports and (not at or local[:-5] in at):
                found[port] += 1
    return found


def clients_at(listens: Iterable[tuple[str, int]], tables: tuple[Path, ...] = _TABLES) -> frozenset[Client]:
    """The connections of clients to these addresses and ports on which an answer may be sent. Blocks as
    `open_connections` does.

    One that is closed here, and whose client has everything, is over, however long that client keeps it.
    """
    by_port: dict[int, set[str]] = {}
    for host, port in listens:
        by_port.setdefault(port, set()).add(host)
    at = {port: _host_texts(hosts) for port, hosts in by_port.items()}
    return frozenset(
        (port, local + remote)
        for local, remote, state in _rows(tables)
        if state in _OWING
        and (texts := at.get(port := int(local[-4:], 16))) is not None
        and (not texts or local[:-5] in texts)
    )


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


def bytes_to_routers(places: Collection[Place], hosts: Collection[str] = ()) -> Sent:
    """What engines have sent over the connections that end at these places, since each began.

    hosts: where bridges listen, as of `open_connections`.
    Empty where the kernel cannot be asked. Blocks for about 1 ms per 1,000 connections: call in a thread.
    """
    found = {}
    wanted: dict[object, Place] = {
        place if isinstance(place, int) else (ipaddress.ip_address(place.host).packed, place.port): place
        for place in places
    }
    has_addresses, at = not all(isinstance(place, int) for place in places), _packed_hosts(hosts)
    with suppress(OSError):
        for answer in _tcp_info():
            here, there, local, remote = _ENDS.unpack_from(answer)
            place, is_far = wanted.get(here), False
            if place is not None and at and _packed(local, answer[0]) not in at:
                place = None
            if place is None and has_addresses:
                place = wanted.get((_packed(local, answer[0]), here))
                if place is None:
                    place, is_far = wanted.get((_packed(remote, answer[0]), there)), True
            if place is not None:
                numbers = _ACKED_AND_RECEIVED.unpack_from(_attribute(answer, _INFO))
                found[place, answer[_COOKIE]] = numbers[is_far]
    return found


def waiting_at(ports: Container[int], hosts: Collection[str] = ()) -> frozenset[int]:
    """Those of these ports of this machine where a request over HTTP/1 waits for the first byte of its answer.

    hosts: where bridges listen, as of `open_connections`.
    Empty where the kernel cannot be asked. Blocks for about 1 ms, and 3 us more for each connection: call in a thread.
    """
    found, at = set(), _packed_hosts(hosts)
    with suppress(OSError):
        for answer in _tcp_info():
            port, _, local, _ = _ENDS.unpack_from(answer)
            if port in ports and (not at or _packed(local, answer[0]) in at):
                sent_ms, received_ms = _SENT_AND_RECEIVED_MS.unpack_from(_attribute(answer, _INFO))
                if sent_ms > received_ms:
                    found.add(port)
    return frozenset(found)


def _packed_hosts(hosts: Collection[str]) -> frozenset[bytes]:
    """As `_packed` gives them; empty for all addresses."""
    addresses = [ipaddress.ip_address(host) for host in hosts]
    return frozenset() if any(it.is_unspecified for it in addresses) else frozenset(it.packed for it in addresses)


def _packed(address: bytes, family: int) -> bytes:
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address[:12] == _MAPPED else address


def _tcp_info() -> list[bytes]:
    """An `inet_diag_msg` for each socket that may send. Raises OSError."""
    return [answer for family in (socket.AF_INET, socket.AF_INET6) for answer in _tcp_info_of(family)]


def _tcp_info_of(family: int) -> list[bytes]:
    answers: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_QUESTION.pack(_QUESTION.size, _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0,
                                    family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _SENDS))  # fmt: skip
        while True:
            read, at = netlink.recv(_READ_BYTES), 0
            while at < len(read):
                size, kind, *_ = _HEAD.unpack_from(read, at)
                if kind in (_ERROR, _DONE):
                    return answers
                answers.append(read[at + _HEAD.size : at + size])
                at += size + 3 & ~3
    return answers


def _attribute(answer: bytes, kind: int) -> bytes:
    at = _ANSWER_BYTES
    while at < len(answer):
        size, this = _ATTRIBUTE.unpack_from(answer, at)
        if this == kind:
            return answer[at + _ATTRIBUTE.size : at + size]
        at += size + 3 & ~3
    return bytes(_ACKED_AND_RECEIVED.size)


def listening_at(pid: int, tables: tuple[Path, ...] = _TABLES) -> frozenset[tuple[IPv4Address | IPv6Address, int]]:
    """The TCP addresses that this process listens on: what it serves, whatever it was told to.

    Empty if it is gone, or of a user into whose processes we cannot look. Blocks: call in a thread.
    """
    held = set()
    for entry in descriptors_of(pid):
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
    for entry in descriptors_of(pid):
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
    """An address and its port as the kernel's tables write it."""
    yield from (b"%s:%04X" % (text, address.port) for text in _texts_of(address.host))


def _host_texts(hosts: Collection[str]) -> frozenset[bytes]:
    """Addresses as the kernel's tables write them; empty for all addresses."""
    if any(ipaddress.ip_address(host).is_unspecified for host in hosts):
        return frozenset()
    return frozenset(text for host in hosts for text in _texts_of(host))


def _texts_of(host: str) -> Iterator[bytes]:
    """An address without a port: IPv4 as such, and as an IPv6 socket has it."""
    packed = ipaddress.ip_address(host).packed
    for each in (packed,) if len(packed) == 16 else (packed, IPv6Address(f"::ffff:{host}").packed):
        words = (int.from_bytes(each[at : at + 4], sys.byteorder) for at in range(0, len(each), 4))
        yield "".join(f"{word:08X}" for word in words).encode()


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
