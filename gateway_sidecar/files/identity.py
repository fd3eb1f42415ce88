"""What tells one socket from every other, whatever is done to its times, mode and owner: Python's `stat` lacks it."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from gateway_sidecar.domain.model import SocketIdentity

_AT_FDCWD, _NOFOLLOW, _EMPTY_PATH = -100, 0x100, 0x1000  # linux/fcntl.h
_INO, _BTIME = 0x100, 0x800  # linux/stat.h
_ANSWER = struct.Struct("=I28xQ40xqI44xII")
"""statx(2): mask, inode, birth (s, ns), device (major, minor). Its size is 256 bytes."""
_statx = ctypes.CDLL(None, use_errno=True).statx


def socket_identity(at: str | Path | int) -> SocketIdentity:
    """The identity of what is at a path, be it a link, or of what is open. Raises OSError. Blocks."""
    answer = ctypes.create_string_buffer(256)
    if isinstance(at, int):
        failed = _statx(at, b"", _EMPTY_PATH, _INO | _BTIME, answer)
    else:
        failed = _statx(_AT_FDCWD, os.fsencode(at), _NOFOLLOW, _INO | _BTIME, answer)
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), at)
    mask, inode, born_s, born_ns, major, minor = _ANSWER.unpack_from(answer)
    return SocketIdentity(os.makedev(major, minor), inode, born_s * 10**9 + born_ns if mask & _BTIME else 0)
