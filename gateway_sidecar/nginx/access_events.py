"""Requests as they end: nginx reports each in one datagram to a UDP port on 127.0.0.1. nginx must not depend on a
listener. With a Unix socket it does: while nobody reads, each request costs an error line or two (nginx 1.22), and the
kernel's queue holds ten datagrams. UDP drops what does not fit without a word, but a port that nobody has open is an
error again. So nginx itself holds the port open: it inherits a socket, bound and never read (`placeholder`). The daemon
binds the same port later; when it dies the datagrams go to the placeholder again, and are dropped there.

Any process of this machine may send to the port. Nobody but this user's processes, and root, may bind it: Linux lets a
socket join others on a port by SO_REUSEPORT only if their user is its own. (SO_REUSEADDR lets anybody join, and gives
the datagrams, with their tag, to whoever bound last.) A program in the kernel decides for each datagram which of the
sockets gets it: the daemon's if it carries the tag from nginx's configuration, else the placeholder. So a flood of
others costs the daemon no event.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from gateway_sidecar.domain.signals import RequestEnd

_HOST = "127.0.0.1"
BRIDGES = "-"
"""Stands for a service's name in what bridges report: requests that failed at one engine, tries of a router too."""

_BUFFER_BYTES = 4 * 1024 * 1024
"""For stalls of the event loop: with 1,040 requests/s none is lost (docs/figures.md, `signals`)."""
_REST_S = 0.05  # A choice: events are read in crowds of 20 times a second, which costs less than one by one.
_MOST_AT_ONCE = 1000  # With 10 us for each (docs/figures.md, `signals`), 10 ms until others have their turn.
_LONGEST = 2048  # A choice: an event is a service's name, a status and some numbers.
_SO_MEMINFO = 55  # asm-generic/socket.h
_DROPS = 8  # SK_MEMINFO_DROPS
_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
_TAG_AT = len("<190>Nov 20 22:33:13 ")  # nginx pads the day: it is the same length always.
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_PLACEHOLDER, _DAEMON = 0, 1
"""Who bound first is the first of the port's sockets: always nginx's, and then the daemon's, or the oldest daemon's."""
_SWITCHED = 101  # HTTP's Switching Protocols: a WebSocket, which begins with GET
_STATUS = re.compile(rb"[1-5][0-9]{2}")
_SECONDS = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,3})?")
"""As nginx writes times. It is no other number: `nan`, `-1` and `1e999` are numbers to Python too."""


@dataclass(frozen=True, slots=True)
class EventAddress:
    """Where nginx sends its events, and what tells them from anybody else's."""

    port: int
    tag: str


def placeholder() -> tuple[socket.socket, EventAddress]:
    """A socket for nginx to inherit, never read, on a port that the kernel chooses. Raises OSError."""
    sock = _socket(buffer_bytes=1)
    try:
        sock.bind((_HOST, 0))
        # Not before it is bound: else the kernel might choose a port that another of this user's daemons shares.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.set_inheritable(True)
    except OSError:
        sock.close()
        raise
    return sock, EventAddress(sock.getsockname()[1], secrets.token_hex(12))


def read_event(datagram: bytes, tag: bytes) -> RequestEnd | None:
    """One event; None for what is none, or not of the kind that signals are made of.

    `<190>Nov 20 22:33:13 TAG: chat|POST|200|0.031|0.004|WORKER|OK`: how long it took, and how long a stream's first
    event did, or nothing; WORKER an URL or `-`; OK nothing where the client did not get all of it. Requests for an
    answer are POSTs and WebSockets: a list of models, or somebody's health check, is no load.
    """
    head, mark, rest = datagram.partition(b"|")
    head, _, service = head.rpartition(b" ")
    if not mark or not head.endswith(tag + b":"):
        return None
    try:
        method, status_text, took, first, worker, whole = rest.split(b"|", 5)
        if not _STATUS.fullmatch(status_text):
            return None
        status = int(status_text)
        if method != b"POST" and status != _SWITCHED:
            return None
        first_s = _seconds(first) if first else None
        name, url = service.decode("ascii"), worker.decode("ascii")
        return RequestEnd(name, status, _seconds(took), first_s, url, is_whole=whole == b"OK")
    except ValueError:
        return None


def _seconds(text: bytes) -> float:
    if not _SECONDS.fullmatch(text):
        raise ValueError("no time of nginx's")
    return float(text)


def _socket(*, buffer_bytes: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)  # As much of it as the kernel allows.
    return sock


def _joined(address: EventAddress) -> socket.socket:
    """A socket beside the placeholder, which gets all that carries the tag."""
    sock = _socket(buffer_bytes=_BUFFER_BYTES)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((_HOST, address.port))
        program = _program(address.tag.encode())
        held = ctypes.create_string_buffer(program, len(program))
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        )
    except OSError:
        sock.close()
        raise
    return sock


def _program(tag: bytes) -> bytes:
    """Classic BPF: which of the port's sockets gets a datagram. Without a daemon its number is nobody's, and the kernel
    gives the datagram to one that there is: the placeholder."""
    words = struct.unpack(f">{len(tag) // 4}I", tag[: len(tag) // 4 * 4])
    steps = []
    for number, word in enumerate(words):
        steps.append((_LOAD_WORD, 0, 0, _TAG_AT + 4 * number))  # Beyond the datagram's end it returns 0.
        steps.append((_JUMP_IF_EQUAL, 0, 2 * (len(words) - number) - 1, word))
    steps += [(_RETURN, 0, 0, _DAEMON), (_RETURN, 0, 0, _PLACEHOLDER)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class EventListener:
    """Takes nginx's events in, many at a time: the event loop is woken 20 times a second at the most."""

    def __init__(self, take: Callable[[RequestEnd], None]) -> None:
        self._take = take
        self._sock: socket.socket | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._lost_before = 0
        self.address: EventAddress | None = None

    @property
    def lost(self) -> int:
        """Events that came faster than they were read, and were dropped by the kernel."""
        return self._lost_before + (_drops(self._sock) if self._sock is not None else 0)

    def listen(self, address: EventAddress | None) -> None:
        """Listens there from now on, and nowhere else. Raises OSError."""
        if address == self.address:
            return
        self.close()
        if address is not None:
            self._sock = _joined(address)
            self.address = address
            asyncio.get_running_loop().add_reader(self._sock, self._read)

    def close(self) -> None:
        """Leaves the port to the placeholder."""
        if self._sock is not None:
            self._lost_before += _drops(self._sock)
            if self._resting is not None:
                self._resting.cancel()
                self._resting = None
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
        self._sock = self.address = None

    def _read(self) -> None:
        sock, address, take = self._sock, self.address, self._take
        assert sock is not None
        assert address is not None
        receive, tag = sock.recv, address.tag.encode()
        pause_s = 0.0
        for _ in range(_MOST_AT_ONCE):
            try:
                end = read_event(receive(_LONGEST), tag)
            except OSError:  # All is read; an error that was waiting is gone with this.
                pause_s = _REST_S
                break
            if end is not None:
                take(end)
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        self._resting = loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._read)


def _drops(sock: socket.socket) -> int:
    """How many datagrams the kernel had no room for."""
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
    fields = struct.unpack(f"={len(info) // 4}I", info)
    return fields[_DROPS] if len(fields) > _DROPS else 0
