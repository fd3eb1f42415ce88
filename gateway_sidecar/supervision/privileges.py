"""What the daemon may do and what it starts may not."""

from __future__ import annotations

import ctypes
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

_PR_CAP_AMBIENT = 47  # prctl(2), linux/prctl.h
_PR_CAP_AMBIENT_LOWER = 3  # linux/prctl.h
_PR_SET_KEEPCAPS = 8  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # capset(2), linux/capability.h
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12  # capabilities(7), linux/capability.h
_OURS_ALONE, _NOT_FOR_OTHERS = 0o077, 0o027  # umask(2): what is taken away


def keep_to_ourselves(capability: int) -> None:
    """No child gets this capability by inheritance; the daemon keeps it if it has it.

    systemd gives it as an ambient one, which every program started from here would have too. Root's children are
    root, and have it anyway.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Fails only on a kernel that has no ambient capabilities, and so none to inherit.
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, capability, 0, 0)


def keep_files_to_ourselves() -> None:
    """No file that is made from here on, by the daemon or a child, is others' to read, or its group's to change.

    A umask that is stricter stays.
    """
    os.umask(os.umask(_OURS_ALONE) | _NOT_FOR_OTHERS)


@dataclass(frozen=True, slots=True)
class User:
    """A user to become. `name` is None for one without an entry in passwd; `why` says why it is this one.

    groups: those besides what /etc/group says. capabilities: those that are kept of root's. told: what told of both,
    None where they are assumed.
    """

    uid: int
    gid: int
    name: str | None
    why: str
    groups: tuple[int, ...] = ()
    capabilities: frozenset[int] = frozenset()
    told: str | None = None

    def __str__(self) -> str:
        return f"uid {self.uid}" if self.name is None else f"{self.name} (uid {self.uid})"


def user_called(text: str, why: str) -> User:
    """The user of a name, or of a number. Raises KeyError if there is none."""
    if not text.isdecimal():
        entry = pwd.getpwnam(text)
        return User(entry.pw_uid, entry.pw_gid, entry.pw_name, why)
    try:
        return user_called(pwd.getpwuid(int(text)).pw_name, why)
    except KeyError:
        return User(int(text), int(text), None, why)


def become(user: User) -> None:
    """From here on this process is that user's, and has of root's rights those `capabilities` alone that it has now.

    What it starts has none of them. Raises OSError.
    """
    kept = sum(1 << capability for capability in user.capabilities if has_capability(capability))
    in_file = [] if user.name is None else os.getgrouplist(user.name, user.gid)
    os.setgroups(sorted({*in_file, *user.groups}))
    os.setgid(user.gid)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_KEEPCAPS, int(kept != 0), 0, 0, 0)
    os.setuid(user.uid)
    if kept:
        low, high = kept & 0xFFFFFFFF, kept >> 32
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # Effective, permitted, inheritable; twice 32 bits.
        if libc.capset(header, sets) != 0:
            raise OSError(ctypes.get_errno(), f"cannot keep capabilities as {user}")


def has_capability(capability: int) -> bool:
    """Whether this process has it in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
