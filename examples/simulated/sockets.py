"""Unix sockets as engines leave them: bound first, listening later, at paths of any length."""

from __future__ import annotations

import os
import socket
from pathlib import Path

LONGEST_ADDRESS = 107
"""Bytes of a Unix socket address that Linux takes, without the final NUL."""


def bind(path: Path) -> socket.socket:
    """Bind `path`, open to everybody (0666), in place of whatever file is there; nobody listens yet.

    A path that is too long for an address is bound through its directory's file descriptor, so the file is
    created under its final name, as a watcher of a real engine would see it. Only where the name alone is too
    long is it bound under a hidden short name and renamed.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if len(os.fsencode(path)) <= LONGEST_ADDRESS:
            sock.bind(str(path))
        else:
            _bind_in_directory(sock, path)
        path.chmod(0o666)
    except OSError:
        sock.close()
        raise
    return sock


def unlink_if_same(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket file, unless it is another's by now."""
    try:
        if identity_of(path) == identity:
            path.unlink()
    except FileNotFoundError:
        return


def identity_of(path: Path) -> tuple[int, int]:
    """Device and inode of the file at `path`."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _bind_in_directory(sock: socket.socket, path: Path) -> None:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = f"/proc/self/fd/{directory}/{path.name}"
        if len(os.fsencode(address)) <= LONGEST_ADDRESS:
            sock.bind(address)
            return
        short = path.with_name(f".{os.getpid()}-{sock.fileno()}")
        sock.bind(f"/proc/self/fd/{directory}/{short.name}")
        short.rename(path)
    finally:
        os.close(directory)
