"""Runs a command under the system call filter of the systemd unit: `python -m tests.under_unit COMMAND...`.

The unit's own lines are read, systemd's own sets are asked for, and libseccomp loads what they come to, as systemd
does. The unit's daemon is not root, and so its nginx does not change its user; what that takes is let through for root.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parents[1] / "systemd" / "gateway-sidecar.service"
_PR_SET_NO_NEW_PRIVS = 38
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EQUAL = 4
_OF_NGINX_AS_ROOT = frozenset({"setuid", "setgid", "setgroups", "chown"})
_LIBRARY = ctypes.util.find_library("seccomp")


class _Argument(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def why_not() -> str | None:
    """Why this cannot be done here; None where it can."""
    if _LIBRARY is None:
        return "libseccomp is not installed"
    return None if shutil.which("systemd-analyze") else "systemd-analyze is not installed"


def settings(name: str) -> list[str]:
    """The unit's lines of one setting."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def allowed_calls() -> frozenset[str]:
    """What the unit's SystemCallFilter lines leave."""
    allowed: frozenset[str] = frozenset()
    for line in settings("SystemCallFilter"):
        names = frozenset().union(*map(_calls_of, line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def _calls_of(name: str) -> frozenset[str]:
    if not name.startswith("@"):
        return frozenset({name})
    text = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name], check=True, capture_output=True, text=True
    ).stdout
    words = [line.strip() for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return frozenset().union(*map(_calls_of, words))


def allowed_families() -> frozenset[int]:
    """The address families of RestrictAddressFamilies."""
    names = [name for line in settings("RestrictAddressFamilies") for name in line.split()]
    return frozenset(int(getattr(socket, name)) for name in names)


def confine() -> None:
    """This process, and whatever it starts, may do only what the unit allows; the rest is EPERM."""
    assert _LIBRARY is not None
    library, libc = ctypes.CDLL(_LIBRARY), ctypes.CDLL(None, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Argument),
    ]  # fmt: skip
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(_ERRNO | errno.EPERM)
    families = allowed_families()
    as_root = _OF_NGINX_AS_ROOT if os.geteuid() == 0 else frozenset()
    for name in sorted(allowed_calls() | as_root):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # Not on this machine.
        if name == "socket":
            for family in families:
                equal = (_Argument * 1)(_Argument(0, _EQUAL, family, 0))
                _check(library.seccomp_rule_add_array(context, _ALLOW, number, 1, equal))
        else:
            _check(library.seccomp_rule_add_array(context, _ALLOW, number, 0, None))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    _check(library.seccomp_load(context))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(-result, "libseccomp")


if __name__ == "__main__":
    confine()
    os.execvp(sys.argv[1], sys.argv[1:])
