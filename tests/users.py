"""Other users of this machine, without an entry in passwd, for tests of who may do what."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

GROUP = 42429
"""Whose members may place sockets; each of these users is one."""

# What is started lets its group write the sockets that it makes.
_AS_USER = 'umask 0007; exec "$@"'
_OPENED = """\
set -e
kept=$(mktemp -d)
mount --bind "$1" "$kept"
mount -t tmpfs -o mode=0755 tmpfs "$2"
mkdir -p "$1"
mount --move "$kept" "$1"
rmdir "$kept"
shift 2
exec "$@"
"""


def why_not() -> str | None:
    """Why nobody can be become here; None where it can."""
    if os.geteuid() != 0:
        return "only root can become others"
    return None if shutil.which("setpriv") else "setpriv is not installed (Debian: util-linux)"


@dataclass(frozen=True)
class User:
    """One of them."""

    uid: int

    @property
    def enter(self) -> list[str]:
        """What a command line begins with that is to run as this user."""
        ids = [f"--reuid={self.uid}", f"--regid={self.uid}", f"--groups={GROUP}", "--inh-caps=-all"]
        return [*with_python(), "setpriv", *ids, "sh", "-c", _AS_USER, "sh"]

    async def does(self, *command: str | Path) -> bool:
        """Runs a command as this user; whether it went well."""
        process = await asyncio.create_subprocess_exec(*self.enter, *map(str, command), stderr=asyncio.subprocess.PIPE)
        await process.communicate()
        return process.returncode == 0


def with_python() -> list[str]:
    """Where the interpreter lies in a directory that is closed to others: a view of the machine that opens it."""
    python = Path(sys.executable).resolve().parents[1]
    closed = [each for each in python.parents if not stat.S_IMODE(each.stat().st_mode) & 0o001]
    if not closed:
        return []
    return ["unshare", "--mount", "sh", "-c", _OPENED, "sh", str(python), str(closed[-1])]
