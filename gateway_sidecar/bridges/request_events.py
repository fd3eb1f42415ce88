"""Requests as they end: nginx tells of each in one datagram to a UDP port on 127.0.0.1.

nginx must not care whether anybody listens. With a Unix socket it does: while nobody reads, each request costs an error
line or two (nginx 1.22), and the kernel's queue holds ten datagrams. UDP drops what does not fit without a word, but a
port that nobody has open is an error again. So nginx itself holds the port open: it inherits a socket, bound and
never read (`placeholder`). The daemon binds the same port later, and the kernel gives each datagram to whoever bound
last; when the daemon dies they go to the placeholder again, and are dropped there.

Any process of this machine may send to the port. What does not carry the tag from nginx's configuration is not read.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from gateway_sidecar.domain.signals import RequestEnd

_HOST = "127.0.0.1"
_BUFFER_BYTES = 4 * 1024 * 1024
_REST_S = 0.05
_MOST_AT_ONCE = 1000
_LONGEST = 2048
_SO_MEMINFO = 55
_DROPS = 8  # SK_MEMINFO_DROPS
_IN_CONFIG = re.compile(r"syslog:server=127\.0\.0\.1:(\d+),nohostname,tag=([0-9a-f]+) ")
_SWITCHED = 101


@dataclass(frozen=True, slots=True)
class EventAddress:
    """Where nginx sends its events, and what tells them from anybody else's."""

    port: int
    tag: str

    @classmethod
    def in_config(cls, text: str) -> EventAddress | None:
        """What an nginx that runs was told; None for one that tells nobody."""
        found = _IN_CONFIG.search(text)
        return cls(int(found[1]), found[2]) if found else None

    def log_format(self, service: str) -> str:
        """nginx's directive that says what an event of this service looks like."""
        parts = (service, "$request_method", "$status", "$request_time", "$upstream_header_time")
        return f"log_format gateway_{service} '{'|'.join(parts)}|$sent_http_content_type';"

    def access_log(self, service: str) -> str:
        """nginx's directive that sends this service's events."""
        return f"access_log syslog:server={_HOST}:{self.port},nohostname,tag={self.tag} gateway_{service};"


def placeholder() -> tuple[socket.socket, EventAddress]:
    """A socket for nginx to inherit and nobody to read, on a port that the kernel chooses. Raises OSError."""
    sock = _bound(0, buffer_bytes=1)
    sock.set_inheritable(True)
    return sock, EventAddress(sock.getsockname()[1], secrets.token_hex(12))


def read_event(datagram: bytes, tag: bytes) -> RequestEnd | None:
    """One event; None for what is none, or not of the kind that signals are made of.

    `<190>Nov 20 22:33:13 TAG: chat|POST|200|0.031|0.004|text/event-stream`. Requests for an answer are POSTs and
    WebSockets: a list of models, or somebody's health check, is no load.
    """
    head, mark, rest = datagram.partition(b"|")
    head, _, service = head.rpartition(b" ")
    if not mark or not head.endswith(tag + b":"):
        return None
    try:
        method, status_text, took, header, content_type = rest.split(b"|", 4)
        status = int(status_text)
        if method != b"POST" and status != _SWITCHED:
            return None
        streamed = content_type.startswith(b"text/event-stream")
        return RequestEnd(service.decode("ascii"), status, float(took), _last(header) if streamed else None)
    except ValueError:
        return None


def _last(times: bytes) -> float | None:
    """Of `0.002, 0.004 : 0.013`, one for each upstream that was tried, the one that answered."""
    last = times.replace(b":", b",").rpartition(b",")[2].strip()
    return None if last in (b"", b"-") else float(last)


def _bound(port: int, *, buffer_bytes: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)  # As much of it as the kernel allows.
        sock.bind((_HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


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
            self._sock = _bound(address.port, buffer_bytes=_BUFFER_BYTES)
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
