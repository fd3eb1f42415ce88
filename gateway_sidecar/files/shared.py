"""A file of the daemon's that other programs read."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from gateway_sidecar.files.replace import put_in_place, write_beside


def keep_shared(path: Path, text: str, mode: int, group: str | None) -> bool:
    """Sees that the file holds this, with this mode and group; whether it had to be written. Raises OSError. Blocks."""
    gid = -1 if group is None else _gid_of(group)
    try:
        found = path.lstat()
        same = path.read_text("utf-8") == text and (found.st_mode & 0o7777) == mode and gid in (-1, found.st_gid)
    except (FileNotFoundError, UnicodeDecodeError):
        same = False
    if same:
        return False
    fresh = write_beside(path, text, mode)
    if gid != -1:
        os.chown(fresh, -1, gid)
    put_in_place(fresh, path)
    return True


def trouble_with_group(group: str) -> str | None:
    """Why this user cannot give a file to the group; None if it can. Blocks."""
    try:
        gid = _gid_of(group)
    except LookupError as error:
        return str(error)
    may = os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups())
    return None if may else f"user {os.geteuid()} is no member of group '{group}'"


def _gid_of(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise LookupError(f"there is no group '{group}'") from None
