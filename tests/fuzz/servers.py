"""The other side of a trial: a server on a socket, in threads of its own, that says what a trial makes it say."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_PATIENCE_S = 2.0
"""For a side that neither reads nor writes; trials are over before that."""
_MOST_SENT = 24 * 1024 * 1024
"""On one connection."""


class Spoken(Exception):
    """Enough was said on a connection, or nobody listens any more."""


class Line:
    """One connection, as the one who talks on it sees it. `random` is this connection's own."""

    def __init__(self, sock: socket.socket, source: random.Random) -> None:
        self.random = source
        self._sock = sock
        self._left = _MOST_SENT

    def hear(self) -> bytes:
        """What was said; b"" is the end, or silence. Raises Spoken."""
        try:
            return self._sock.recv(65536)
        except OSError:
            raise Spoken from None

    def say(self, *parts: bytes) -> None:
        """Says it all. Raises Spoken."""
        for part in parts:
            self._left -= len(part)
            if self._left < 0:
                raise Spoken
            try:
                self._sock.sendall(part)
            except OSError:
                raise Spoken from None

    def say_again(self, part: bytes, most_bytes: int) -> None:
        """Says one thing again and again, in large pieces."""
        if part:
            whole = part * max(1, 65536 // len(part))
            for _ in range(max(1, most_bytes // len(whole))):
                self.say(whole)

    def hold(self) -> None:
        """Says nothing more, until the other side goes."""
        while self.hear():
            pass


Talk = Callable[[Line], None]


@contextlib.contextmanager
def serving(path: Path, talk: Talk, seed: str) -> Iterator[None]:
    """Serves at `path` with `talk` for every connection until the block ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    try:
        with _accepting(listener, talk, seed):
            yield
    finally:
        path.unlink()


@contextlib.contextmanager
def serving_tcp(talk: Talk, seed: str) -> Iterator[int]:
    """The same at a port of 127.0.0.1, which it tells."""
    listener = socket.create_server(("127.0.0.1", 0))
    with _accepting(listener, talk, seed):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def _accepting(listener: socket.socket, talk: Talk, seed: str) -> Iterator[None]:
    listener.listen(64)
    listener.settimeout(_PATIENCE_S)
    open_ones: set[socket.socket] = set()
    threads: list[threading.Thread] = []

    def one(sock: socket.socket, number: int) -> None:
        sock.settimeout(_PATIENCE_S)
        with sock, contextlib.suppress(Spoken):
            talk(Line(sock, random.Random(f"{seed}/{number}")))
        open_ones.discard(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):
            for number in range(1000):
                sock, _ = listener.accept()
                open_ones.add(sock)
                threads.append(threading.Thread(target=one, args=(sock, number), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for sock in tuple(open_ones):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
