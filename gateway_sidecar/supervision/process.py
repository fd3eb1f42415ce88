"""Child processes that outlive the daemon: start, adopt, watch, stop.

A process is ours only if its pid, its start time and the machine's boot id match what was written down when it was
started. Nothing is ever killed by name or by port.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.errors import ProcessError
from gateway_sidecar.supervision.awake import within

_OURS_ALONE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID")
"""What systemd tells the daemon and no child of it."""

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_NOT_PROXIED = "localhost,127.0.0.1,::1,0.0.0.0/0,::/0"
"""Every address: that is how routers know their workers. What a router downloads has a name, and may need the proxy."""

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def boot_id() -> str:
    """This boot of this machine."""
    return _BOOT_ID.read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process, or only its corpse."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one process from every other that has or had its pid."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a live process; None if there is none."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return start_ticks(self.pid) == self.start_ticks and boot_id() == self.boot_id


def peer_of(sock: socket.socket) -> int:
    """The process at the other end of a Unix socket: which connected, or listened; 0 for one that cannot be seen."""
    return int(_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])


def own_children(*directories: Path) -> Callable[[int], bool]:
    """Tells whether a process was started by a daemon of these directories.

    Such write to a log there, and nobody else.
    """
    below = tuple(f"{os.path.realpath(directory)}/" for directory in directories)

    def is_own(pid: int) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/fd/1").startswith(below)  # noqa: PTH115 - once for each engine of a crowd
        except OSError:
            return False  # Gone, or of a user into whose processes we cannot look.

    return is_own


def descriptors_of(pid: int) -> Sequence[Path]:
    """The links to what this process has open. Each may be gone when it is read, and the process when it is looked for.

    Empty if it is gone, or of a user into whose processes we cannot look. Blocks: call in a thread.
    """
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return [Path(entry) for entry in entries]
    except OSError:
        return ()


class Process:
    """One process of ours, started by us or adopted. Knows at once when it ends."""

    def __init__(self, identity: Identity, pidfd: int, popen: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._popen = popen
        self._ended = asyncio.Event()
        self.exit_code: int | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.identity.pid

    @property
    def running(self) -> bool:
        """False once the kernel has said that it ended."""
        return not self._ended.is_set()

    @classmethod
    def adopt(cls, identity: Identity) -> Process | None:
        """Takes over a process that an earlier daemon started; None if that very process is gone."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except (OSError, OverflowError):  # Gone, or no pid at all.
            return None
        # Checked after the pidfd is open: from here on the pid cannot be recycled under us.
        if not identity.is_alive():
            os.close(pidfd)
            return None
        return cls(identity, pidfd, None)

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        log_fd: int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        keep_fds: Sequence[int] = (),
    ) -> Process:
        """Starts a process in a session of its own, its output on `log_fd` (closed here). Raises ProcessError.

        It inherits `keep_fds`, and no other descriptor of ours.

        """

        def start() -> subprocess.Popen[bytes]:
            try:
                return subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    env=environment_of_child(env or {}),
                    cwd=cwd,
                    start_new_session=True,
                    pass_fds=keep_fds,
                )
            finally:
                os.close(log_fd)

        try:
            popen = await asyncio.to_thread(start)
        except OSError as error:
            raise ProcessError(f"cannot start {argv[0]}: {error.strerror}") from error
        # It cannot be reaped before we wait for it, so its pid is safe to open.
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError as error:
            popen.kill()
            popen.wait()
            raise ProcessError(f"cannot watch {argv[0]}: {error.strerror}") from error
        identity = Identity.of(popen.pid)
        if identity is None:
            identity = Identity(popen.pid, 0, boot_id())
        return cls(identity, pidfd, popen)

    async def wait(self) -> None:
        """Returns when it has ended."""
        await self._ended.wait()

    def send(self, sig: signal.Signals) -> None:
        """Sends a signal to this very process; nothing if it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sig)

    async def stop(self, *, grace_s: float, sig: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to end, and after `grace_s` seconds makes it."""
        self.send(sig)
        try:
            async with within(grace_s):
                await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.wait()

    def detach(self) -> None:
        """Forgets the process and leaves it running."""
        if self.running:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            if self._popen is not None:
                # Popen warns of a child that was not waited for; this one is meant to outlive us.
                self._popen.returncode = 0

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._popen is not None:
            self.exit_code = self._popen.wait()
        self._ended.set()


def environment_of_child(above: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment, less what systemd told the daemon alone, with `above` on top.

    A proxy that it names is for host names only.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    environment = {**inherited, **above}
    if any(value and name.lower() in _PROXIES for name, value in environment.items()):
        exempt = [environment.get("no_proxy"), environment.get("NO_PROXY"), _NOT_PROXIED]
        environment["no_proxy"] = environment["NO_PROXY"] = ",".join(dict.fromkeys(filter(None, exempt)))
    return environment


def writers_of(*logs: Path) -> list[Identity]:
    """Processes that were started with their output on one of these: session leaders whose stdout and stderr it is.

    That is how we start ours and nobody else does, so this finds those that no record tells of: a daemon may die
    between a start and its record.
    """
    resolved = {str(log.resolve()) for log in logs}
    return [identity for _, identity in _writers(resolved.__contains__)]


def writers_below(directory: Path) -> dict[str, list[Identity]]:
    """The same for all logs in a directory, in one go: file name -> processes."""
    above = f"{directory.resolve()}/"
    writers: dict[str, list[Identity]] = {}
    for log, identity in _writers(lambda path: path.startswith(above) and "/" not in path[len(above) :]):
        writers.setdefault(log.removeprefix(above), []).append(identity)
    return writers


def _writers(is_meant: Callable[[str], bool]) -> Iterator[tuple[str, Identity]]:
    """Session leaders whose stdout and stderr are one and the same file that is meant, and that file's path."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            outputs = {os.readlink(entry / "fd" / fd) for fd in ("1", "2")}  # noqa: PTH115 - for every process there is
            outputs.discard("/dev/null")  # Where ssh leads its stdout once it is connected.
            is_leader = os.getsid(int(entry.name)) == int(entry.name)
        except OSError:
            continue  # Gone, or another user's.
        path = outputs.pop().removesuffix(" (deleted)") if len(outputs) == 1 else ""
        if is_leader and is_meant(path):
            identity = Identity.of(int(entry.name))
            if identity is not None:
                yield path, identity


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process in bytes; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return None
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def session_members(leader: Identity) -> list[Identity]:
    """Live processes of the session that `leader` opened, itself excluded, whether or not it still lives.

    The kernel does not give a pid to anyone else while it names a session, so this finds a dead master's workers
    and nobody else's.
    """
    if leader.boot_id != boot_id():
        return []
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == leader.pid:
            continue
        try:
            stat = (entry / "stat").read_bytes()
        except OSError:
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        if int(fields[3]) == leader.pid and int(fields[19]) >= leader.start_ticks and fields[0] not in b"ZX":
            members.append(Identity(int(entry.name), int(fields[19]), leader.boot_id))
    return members
