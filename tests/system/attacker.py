"""A local user who means harm: a process of his own that does what its first argument says.

It says `ready` when it is at it, and goes on until its standard input ends.
"""

from __future__ import annotations

import select
import socket
import sys

_SAYINGS = (b"", b"GET /metrics HTT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


def connections(port: int, count: int, *, buffer: int | None = None) -> dict[int, socket.socket]:
    """By their descriptors."""
    made = {}
    for _ in range(count):
        one = socket.socket()
        if buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(5)
        try:
            one.connect(("127.0.0.1", port))
        except OSError:
            one.close()
            continue
        made[one.fileno()] = one
    return made


def say(sockets: dict[int, socket.socket]) -> None:
    """Some say nothing, some half a request, some one that is answered."""
    for number, one in enumerate(sockets.values()):
        try:
            one.send(_SAYINGS[number % len(_SAYINGS)])
        except OSError:
            continue  # Cut already.


def hold(ports: list[int], count: int) -> None:
    """Makes `count` connections to each port, and then more, 500 a second, where some are cut."""
    held: dict[int, dict[int, socket.socket]] = {port: {} for port in ports}
    for port, sockets in held.items():
        while len(sockets) < count:
            sockets |= connections(port, 100)
        say(sockets)
    print("ready", flush=True)
    while True:
        for port, sockets in held.items():
            fresh = connections(port, min(50, count - len(sockets)))
            say(fresh)
            sockets |= fresh
        watched = select.poll()
        watched.register(sys.stdin, select.POLLIN)
        for sockets in held.values():
            for descriptor in sockets:
                watched.register(descriptor, select.POLLIN | select.POLLHUP)
        for descriptor, _ in watched.poll(100):
            if descriptor == sys.stdin.fileno():
                return
            for sockets in held.values():
                if descriptor in sockets and not is_open(sockets[descriptor]):
                    sockets.pop(descriptor).close()


def is_open(one: socket.socket) -> bool:
    """Reads what there is."""
    try:
        return bool(one.recv(65536))
    except OSError:
        return False


def ask_and_take_nothing(port: int, path: str, count: int) -> None:
    """Asks for a page, many times at once, and reads none of it."""
    sockets = connections(port, count, buffer=4096)
    for one in sockets.values():
        one.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    what, port, *rest = sys.argv[1:]
    if what == "hold":
        hold([int(one) for one in port.split(",")], int(rest[0]))
    else:
        ask_and_take_nothing(int(port), rest[0], int(rest[1]))
