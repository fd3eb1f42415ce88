"""Other users of this machine, without an entry in passwd, for tests of who may do what."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]

GROUP = 42429
"""Whose members may place sockets; each of these users is one."""

# What is started lets its group write the sockets that it makes.
_UMASK = 0o007
_AS_USER = f'umask {_UMASK:04o}; exec "$@"'


def why_not() -> str | None:
    """Why nobody can be become here; None where it can."""
    if os.geteuid() != 0:
        return "only root can become others"
    return None if shutil.which("setpriv") else "setpriv is not installed (Debian: util-linux)"


@dataclass(frozen=True)
class User:
    """One of them. Where nobody can be become, whoever runs the tests stands in for each."""

    uid: int

    @property
    def enter(self) -> list[str]:
        """What a command line begins with that is to run as this user."""
        if why_not() is not None:
            return []
        ids = [f"--reuid={self.uid}", f"--regid={self.uid}", f"--groups={GROUP}", "--inh-caps=-all"]
        return [*with_python(), "setpriv", *ids, "sh", "-c", _AS_USER, "sh"]

    async def does(self, *command: str | Path) -> bool:
        """Runs a command as this user; whether it went well."""
        process = await asyncio.create_subprocess_exec(*self.enter, *map(str, command), stderr=asyncio.subprocess.PIPE)
        await process.communicate()
        return process.returncode == 0

    async def says(self, *command: str | Path) -> str:
        """What a command prints that this user runs."""
        process = await asyncio.create_subprocess_exec(*self.enter, *map(str, command), stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        return said.decode().strip()

    @contextmanager
    def here(self) -> Iterator[None]:
        """This process acts as the user: files that it makes are his, and he is whom the kernel names for a socket
        that it listens on. Nothing may be awaited meanwhile: all threads and tasks are that user."""
        if self.uid == os.geteuid() or why_not() is not None:
            yield
            return
        group, groups, umask = os.getegid(), os.getgroups(), os.umask(_UMASK)
        os.setgroups([GROUP])
        os.setegid(self.uid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(group)
            os.setgroups(groups)
            os.umask(umask)

    def binds(self, path: Path, *, backlog: int | None = 1024) -> socket.socket:
        """A socket of this user's, in place of what lies there; without a backlog nobody listens yet."""
        with self.here():
            path.unlink(missing_ok=True)
            made = socket.socket(socket.AF_UNIX)
            made.bind(str(path))
            if backlog is not None:
                made.listen(backlog)
        return made


DAEMON, ONE, OTHER = User(42420), User(42421), User(42422)
SELF = User(os.geteuid())


def give(path: Path, user: User, mode: int) -> None:
    """Makes a file or directory this user's."""
    path.chmod(mode)
    if why_not() is None:
        os.chown(path, user.uid, user.uid)


def with_python() -> list[str]:
    """Where the interpreter, or what it runs, lies in a directory that is closed to others: a view of the machine that
    opens it."""
    opened: dict[Path, list[Path]] = {}
    for wanted in _without_nested(Path(sys.executable).resolve().parents[1], Path(sys.prefix), _REPOSITORY):
        closed = [each for each in (wanted, *wanted.parents) if not stat.S_IMODE(each.stat().st_mode) & 0o001]
        if closed:
            within = [wanted] if wanted not in closed else [it for it in wanted.iterdir() if it.is_dir()]
            opened.setdefault(closed[-1], []).extend(within)
    if not opened:
        return []
    script = "".join(_opening(closed, paths) for closed, paths in opened.items())
    return ["unshare", "--mount", "sh", "-c", f'set -e\n{script}exec "$@"', "sh"]


def _without_nested(*paths: Path) -> list[Path]:
    return [path for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]


def _opening(closed: Path, paths: Iterable[Path]) -> str:
    """Shell commands after which a directory is open and has these in it, and no more."""
    put_aside, put_back = "", ""
    for number, path in enumerate(map(str, paths)):
        kept, place = f'"$kept/{number}"', shlex.quote(path)
        put_aside += f"mkdir {kept}\nmount --bind {place} {kept}\n"
        put_back += f"mkdir -p {place}\nmount --move {kept} {place}\nrmdir {kept}\n"
    emptied = f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(closed))}\n"
    return f'kept=$(mktemp -d)\n{put_aside}{emptied}{put_back}rmdir "$kept"\n'
